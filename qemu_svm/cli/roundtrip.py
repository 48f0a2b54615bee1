"""``svmstream roundtrip [FILE] --qemu BINARY -- ARGS…``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from qemu_svm import api
from qemu_svm.cli import options, progress, qemus, signals
from qemu_svm.cli.output import show
from qemu_svm.cli.status import (
    EXIT_FINDINGS,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_UNREADABLE,
    print_error,
    report_damage,
)
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb
from qemu_svm.errors import EnvironmentFault, OutputExists, StreamRefused

if TYPE_CHECKING:
    from qemu_svm.api import Dump
    from qemu_svm.qmp.address import Address
    from qemu_svm.qmp.capture import Captured
    from qemu_svm.qmp.restore import Restored

_FIRST, _SECOND = "first.bin", "second.bin"


@dataclass(frozen=True, slots=True)
class _Qemu:
    # The QEMU in between: a running one, or one to start.
    address: str | None
    binary: str | None
    arguments: Sequence[str]
    timeout: float


@verb(
    "roundtrip",
    "svmstream roundtrip --qmp /run/vm.qmp --qemu qemu-system-x86_64 -- -M pc",
    "svmstream roundtrip dump.bin --qemu qemu-system-x86_64 -- -M pc -m 32",
    "svmstream roundtrip --qmp /run/a.qmp --into /run/b.qmp --json",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[FILE] [-- ARGS...]")
@options.vm_options("Capture this VM first, instead of FILE.", required=False)
@click.option("--qemu", "binary", type=qemus.binary, metavar="BINARY|VERSION",
              help="Start this QEMU with ARGS.")  # fmt: skip
@click.option("--into", "target", cls=options.Renamed, formerly={"--to": None}, metavar="SOCKET",
              help="Use a running QEMU that waits for a stream (-incoming defer).")  # fmt: skip
@options.description_option
@options.channel_option
@click.option("--keep", metavar="DIR", help=f"Keep {_FIRST} and {_SECOND} in DIR.")
@click.option("--qemu-dir", metavar="DIR",
              help="The QEMUs read and write the files, in the directory that they see as DIR.",
              )  # fmt: skip
@options.mask_option
@options.fail_on_option()
@click.option("-v", "--all", "all_differences", is_flag=True, help="Show masked differences too.")
@options.json_option
@options.limit_option
@options.timeout_option
def command(
    *,
    words: tuple[str, ...],
    address: Address | None,
    binary: str | None,
    target: str | None,
    lender: str | None,
    channels: tuple[str, ...],
    keep: str | None,
    qemu_dir: str | None,
    patterns: tuple[str, ...],
    all_differences: bool,
    as_json: bool,
    timeout: float,
) -> int:
    """Load a stream into a second QEMU, save it again without running, and compare.

    Only known differences may appear: clocks, the run state, and what KVM does not
    preserve; these are masked, and listed. RAM is compared page by page.
    """
    if not words and address is None:
        raise click.UsageError("give either FILE or --qmp SOCKET (--domain NAME)")
    # With --qmp there is no FILE: all words are QEMU's.
    file, arguments = (words[0], words[1:]) if address is None else (None, words)
    if arguments and binary is None:
        raise click.UsageError("ARGS need --qemu")
    if (binary is None) == (target is None):
        raise click.UsageError("give either --qemu BINARY or --into SOCKET")
    if file == "-" and qemu_dir is not None:
        raise click.UsageError("with --qemu-dir, FILE must be a file that QEMU sees")
    from qemu_svm.findings.masks import DEFAULT, ROUND_TRIP, user_masks
    from qemu_svm.findings.results import RoundTrip

    masks = user_masks(patterns) + ROUND_TRIP + DEFAULT
    qemu = _Qemu(target, binary, arguments, timeout)
    with ExitStack() as stack:
        folder = keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="svmstream-"))
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"cannot make '{folder}': {error.strerror}") from error
        try:
            if address is not None:
                file = _capture(address, os.path.join(folder, _FIRST), qemu_dir, timeout)
            first = stack.enter_context(opened(file or "", channels=channels, description=lender))
            path = os.path.join(folder, _SECOND)
            restored, saved = signals.run(_through(first, qemu, path, qemu_dir))
        except StreamRefused as error:
            from qemu_svm.findings.refusal import refusal

            show(refusal(first.machine, first.path, error), as_json=as_json)
            return EXIT_REFUSED
        except OutputExists as error:
            raise click.UsageError(str(error)) from error
        except KeyboardInterrupt:
            print_error("interrupted; the guest is as it was before, and the second QEMU was ended")
            return EXIT_INTERRUPTED
        second = stack.enter_context(opened(saved.files[0]))
        shown = progress.share(second.ram.page_count, "of the pages compared")
        report = api.compare_dumps(first, second, masks, ram=True, progress=shown)
        unreadable = any([report_damage(first), report_damage(second)])
        result = RoundTrip(report, str(restored.version))
        show(result, as_json=as_json, all_differences=all_differences)
    if unreadable or (report.pages is not None and report.pages.problems):
        return EXIT_UNREADABLE
    return EXIT_FINDINGS if not report.same and options.fails() else 0


def _capture(address: Address, path: str, qemu_dir: str | None, timeout: float) -> str:
    from qemu_svm.qmp.capture import capture_stream

    shown = progress.migration()
    signals.run(
        capture_stream(address, path, timeout=timeout, qemu_directory=qemu_dir, progress=shown)
    )
    return path


async def _through(
    first: Dump, qemu: _Qemu, path: str, qemu_dir: str | None
) -> tuple[Restored, Captured]:
    from qemu_svm.qmp.process import incoming
    from qemu_svm.qmp.restore import save_again

    waiting = incoming(qemu.address, qemu.binary, qemu.arguments, timeout=qemu.timeout)
    async with waiting as client:
        return await save_again(
            client,
            first.machine.stream,
            path,
            first.channels,
            qemu_directory=qemu_dir,
            progress=progress.migration(),
        )
