"""``svmstream lab capture``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qemu_svm.cli import common as streams
from qemu_svm.cli import output as results
from qemu_svm.cli.lab.common import box_arguments, box_options, name_option
from qemu_svm.cli.lab.target import RULE, session
from qemu_svm.errors import EnvironmentFault

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from qemu_svm.lab.box.session import BoxSession
    from qemu_svm.lab.capture import Capture
    from qemu_svm.lab.guests import Guest
    from qemu_svm.lab.vm import Settings, Vm

_RECORD = ".json"
_LEVEL = 19
_QUICK, _LARGE = 6, 16 << 20


@click.command(
    "capture",
    epilog=RULE + "\n\nExample: svmstream lab capture --kernel 6.12 --qemu 10.0 --guest nested-npt "
    "-o dump.bin",
)
@name_option
@box_options
@click.option(
    "--guest",
    "guest_name",
    default="nested",
    show_default=True,
    metavar="NAME",
    help="Which guest; --guests lists them.",
)
@click.option("--guests", "listing", is_flag=True, help="List the guests.")
@click.option(
    "--machine", default="pc", show_default=True, metavar="TYPE", help="Machine type of the guest."
)
@click.option(
    "--guest-cpu",
    default="host,+svm",
    show_default=True,
    metavar="MODEL",
    help="Processor that L1 sees.",
)
@click.option(
    "--guest-memory",
    type=click.IntRange(16),
    metavar="MIB",
    help="L1's memory; by default 32, and 512 for linux.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="The stream; FILE.json beside it records what made it. FILE.zst is compressed.",
)
@click.option("-f", "--force", is_flag=True, help="Replace existing files.")
@click.option(
    "--count",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="So many captures of one run: FILE becomes FILE-1 and so on.",
)
@click.option(
    "--trace-ioctls", metavar="FILE", help="Also QEMU's log of the vCPU ioctls up to the last save."
)
@streams.json_option
def command(
    *,
    name: str | None,
    guest_name: str,
    listing: bool,
    machine: str,
    guest_cpu: str,
    guest_memory: int | None,
    output: str | None,
    force: bool,
    count: int,
    trace_ioctls: str | None,
    as_json: bool,
    **options: Any,
) -> int:  # fmt: skip
    """Boot an AMD host in a box, run a guest in it, and save the guest.

    The guest is saved again until the stream shows the state and the values
    that the guest is made for; a stream that does not is never written.
    """
    from qemu_svm.lab.guests import GUESTS, LINUX, find

    if listing:
        from qemu_svm.lab.results import GuestList

        results.show(GuestList((*GUESTS.values(), LINUX)), as_json=as_json)
        return 0
    if output is None:
        raise click.UsageError("Missing option '-o'.")
    from qemu_svm.lab.record import CaptureRecords, Origin, record
    from qemu_svm.lab.vm import Settings

    guest = find(guest_name)
    settings = Settings(machine, guest_cpu, len(guest.vcpus), guest_memory or guest.memory)
    files = [_numbered(output, number, count) for number in range(1, count + 1)]
    logs = [] if trace_ioctls is None else [trace_ioctls]
    _refuse([*files, *(file + _RECORD for file in files), *logs], force=force)
    recipe = shlex.join(["svmstream", *sys.argv[1:]])
    records = []
    with session(name, options) as box:
        origin = Origin(recipe, dict(box.versions), guest, settings, box_arguments(options))
        log = None if trace_ioctls is None else "ioctls.log"
        start, capture = _ways(guest, settings, log)
        with start(box) as vm:
            for number, file in enumerate(files):
                if number:
                    vm.qmp.execute("cont")
                taken = capture(vm)
                made = record(file, taken, origin)
                _keep(taken.path, file, CaptureRecords((made,)).to_json(), force=force)
                records.append(made)
        if trace_ioctls is not None:
            _keep(box.share / "ioctls.log", trace_ioctls, None, force=force)
    results.show(CaptureRecords(tuple(records)), as_json=as_json)
    return 0


def _ways(
    guest: Guest, settings: Settings, log: str | None
) -> tuple[Callable[[BoxSession], AbstractContextManager[Vm]], Callable[[Vm], Capture]]:
    # How a guest is started, and how it is saved in its state.
    from qemu_svm.lab import capture, linux, vm
    from qemu_svm.lab.guests import LINUX, assemble

    if guest is LINUX:
        return lambda box: linux.started(box, settings, trace=log), linux.capture
    image = assemble(guest)
    return (
        lambda box: vm.running(box, settings, image=image.data, trace=log),
        lambda running: capture.capture(running, guest, image),
    )


def _numbered(path: str, number: int, count: int) -> str:
    # dump.bin.zst is dump-2.bin.zst, before the first dot of the name.
    if count == 1:
        return path
    folder, name = os.path.split(path)
    stem, dot, rest = name.partition(".")
    return os.path.join(folder, f"{stem}-{number}{dot}{rest}")


def _refuse(paths: Sequence[str], *, force: bool) -> None:
    for path in paths:
        if os.path.lexists(path) and not force:
            raise click.UsageError(f"'{path}' exists already; -f replaces it")
        if not Path(path).parent.is_dir():
            raise click.UsageError(f"there is no folder '{Path(path).parent}'")


def _keep(source: Path, path: str, record: dict[str, Any] | None, *, force: bool) -> None:
    # The stream, or a log, and its record get their names together.
    from qemu_svm.qmp.output import Output

    suffixes = () if record is None else (_RECORD,)
    try:
        with Output(path, suffixes, replace=force) as output, source.open("rb") as stream:
            with open(output.writer(), "wb") as file:
                if path.endswith(".zst"):
                    import zstandard

                    level = _LEVEL if os.fstat(stream.fileno()).st_size < _LARGE else _QUICK
                    zstandard.ZstdCompressor(level).copy_stream(stream, file)
                else:
                    shutil.copyfileobj(stream, file)
            if record is not None:
                text = json.dumps(record, indent=1) + "\n"
                os.write(output.create(_RECORD), text.encode())
            output.commit()
    except OSError as error:
        raise EnvironmentFault(f"cannot write '{path}': {error.strerror}") from error
    finally:
        source.unlink()
