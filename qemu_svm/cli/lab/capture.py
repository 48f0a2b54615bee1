"""``svmstream lab capture``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click

from qemu_svm.cli import options
from qemu_svm.cli.lab.boxes import session
from qemu_svm.cli.lab.options import WHICH_BOX, box_arguments, box_options, name_option
from qemu_svm.cli.output import show
from qemu_svm.cli.verbs import verb


@verb(
    "capture",
    "svmstream lab capture --kernel 6.12 --qemu 10.0 --guest nested-npt -o dump.bin",
    epilog=WHICH_BOX,
)
@name_option
@box_options
@click.option("--guest", "guest_name", default="nested", show_default=True, metavar="NAME",
              help="The guest; --guests lists them.")  # fmt: skip
@click.option("--guests", "list_guests", is_flag=True, help="List the guests.")
@click.option("--machine", default="pc", show_default=True, metavar="TYPE",
              help="Machine type of the guest.")  # fmt: skip
@click.option("--guest-cpu", default="host,+svm", show_default=True, metavar="MODEL",
              help="CPU model of L1.")  # fmt: skip
@click.option("--guest-memory", type=click.IntRange(16), metavar="MIB",
              help="L1's memory.  [default: 32; 512 for linux]")  # fmt: skip
@click.option("-o", "--output", metavar="FILE",
              help="The stream; FILE.json records how it was made. FILE.zst is compressed.",
              )  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Replace existing files.")
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, 1000),
              help="Number of captures of one run: FILE-1, FILE-2 and so on.")  # fmt: skip
@click.option("--trace-ioctls", metavar="FILE",
              help="Also write QEMU's log of the vCPU ioctls up to the last save.")  # fmt: skip
@options.json_option
def command(
    *,
    name: str | None,
    guest_name: str,
    list_guests: bool,
    machine: str,
    guest_cpu: str,
    guest_memory: int | None,
    output: str | None,
    force: bool,
    count: int,
    trace_ioctls: str | None,
    as_json: bool,
    **box: Any,
) -> int:
    """Boot an AMD host in a box, run a guest in it, and capture the guest.

    The guest is saved repeatedly until the stream has the state and the values
    that the guest is made for; a stream that does not is never written.
    """
    from qemu_svm.lab.guests import GUESTS, LINUX, LINUX_IN_LINUX, find

    if list_guests:
        from qemu_svm.lab.results import GuestList

        show(GuestList((*GUESTS.values(), LINUX, LINUX_IN_LINUX)), as_json=as_json)
        return 0
    if output is None:
        raise click.UsageError("Missing option '-o'.")
    from qemu_svm.lab.record import RECORD, Origin, capture_files
    from qemu_svm.lab.vm import Settings

    guest = find(guest_name)
    settings = Settings(machine, guest_cpu, len(guest.vcpus), guest_memory or guest.memory)
    files = [_numbered(output, number, count) for number in range(1, count + 1)]
    logs = [] if trace_ioctls is None else [trace_ioctls]
    _check_paths([*files, *(file + RECORD for file in files), *logs], force=force)
    recipe = shlex.join(["svmstream", *sys.argv[1:]])
    with session(name, box) as host:
        origin = Origin(recipe, dict(host.versions), guest, settings, box_arguments(box))
        captured = capture_files(host, origin, files, replace=force, trace=trace_ioctls)
    show(captured, as_json=as_json)
    return 0


def _numbered(path: str, number: int, count: int) -> str:
    # dump.bin.zst becomes dump-2.bin.zst: the number precedes the first dot of the name.
    if count == 1:
        return path
    folder, name = os.path.split(path)
    stem, dot, rest = name.partition(".")
    return os.path.join(folder, f"{stem}-{number}{dot}{rest}")


def _check_paths(paths: Sequence[str], *, force: bool) -> None:
    # Before a box is booted.
    for path in paths:
        if os.path.lexists(path) and not force:
            raise click.UsageError(f"'{path}' exists already; -f replaces it")
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise click.UsageError(f"there is no directory '{folder}'")
