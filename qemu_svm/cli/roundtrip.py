"""``svmstream roundtrip [FILE] --qemu BINARY -- ARGS…``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import (
    EXIT_FINDINGS,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_UNREADABLE,
    common,
    complain,
    output,
    qmp_common,
)
from qemu_svm.cli.restore import print_refusal
from qemu_svm.errors import OutputExists, StreamRefused
from qemu_svm.source import open_source

if TYPE_CHECKING:
    from qemu_svm.findings.masks import Mask
    from qemu_svm.machine import Machine
    from qemu_svm.qmp.capture import Captured
    from qemu_svm.qmp.client import Client
    from qemu_svm.qmp.restore import Restored
    from qemu_svm.source import Source

_FIRST, _SECOND = "first.bin", "second.bin"


@dataclass(frozen=True, slots=True)
class _Way:
    # Where the stream goes through.
    target: str | None
    binary: str | None
    arguments: Sequence[str]
    folder: str
    qemu_dir: str | None
    timeout: float


@click.command(
    "roundtrip",
    epilog="Examples: svmstream roundtrip --qmp /run/vm.qmp --qemu qemu-system-x86_64 -- -M pc; "
    "svmstream roundtrip dump.bin --qemu qemu-system-x86_64 -- -M pc -m 32; "
    "svmstream roundtrip --qmp /run/a.qmp --to /run/b.qmp --json",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[FILE] [-- ARGS...]")
@click.option("--qmp", "address", metavar="SOCKET", help="Capture this VM first, instead of FILE.")
@click.option("--qemu", "binary", metavar="BINARY", help="Start this QEMU, with ARGS.")
@click.option("--to", "target", metavar="SOCKET", help="Or use one that waits (-incoming defer).")
@click.option("--channel", "channels", multiple=True, metavar="FILE",
              help="A multifd channel of FILE.")  # fmt: skip
@click.option("--keep", metavar="DIR", help=f"Keep {_FIRST} and {_SECOND} there.")
@click.option("--qemu-dir", metavar="DIR",
              help="The QEMUs read and write the files, in what they see as DIR.")  # fmt: skip
@click.option("--mask", "patterns", multiple=True, metavar="PATTERN",
              help="A path that does not count, as for diff.")  # fmt: skip
@click.option("--all", "all_differences", is_flag=True, help="Show masked differences too.")
@common.json_option
@common.limit_option
@qmp_common.timeout_option
def command(
    *,
    words: tuple[str, ...],
    address: str | None,
    binary: str | None,
    target: str | None,
    channels: tuple[str, ...],
    keep: str | None,
    qemu_dir: str | None,
    patterns: tuple[str, ...],
    all_differences: bool,
    as_json: bool,
    timeout: float,
) -> int:
    """Put a stream into a second QEMU, save it again without running, compare.

    Nothing may differ but what is known to: clocks, the run state, and what
    KVM does not keep; that is masked, and listed. RAM is compared page by page.
    """
    if not words and address is None:
        raise click.UsageError("give either FILE or --qmp SOCKET")
    # With --qmp there is no FILE: all words are QEMU's.
    file, arguments = (words[0], words[1:]) if address is None else (None, words)
    if arguments and binary is None:
        raise click.UsageError("ARGS are for --qemu")
    if (binary is None) == (target is None):
        raise click.UsageError("give either --qemu BINARY or --to SOCKET")
    if file == "-" and qemu_dir is not None:
        raise click.UsageError("with --qemu-dir, FILE must be a file that QEMU sees")
    from qemu_svm.cli import interrupts
    from qemu_svm.findings.masks import DEFAULT, ROUND_TRIP, user_masks

    masks = user_masks(patterns) + ROUND_TRIP + DEFAULT
    with ExitStack() as stack:
        folder = keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="svmstream-"))
        os.makedirs(folder, exist_ok=True)
        way = _Way(target, binary, arguments, folder, qemu_dir, timeout)
        try:
            if address is not None:
                interrupts.run(_capture(address, way))
                file = os.path.join(folder, _FIRST)
            first = stack.enter_context(common.opened(file or ""))
            opened = [stack.enter_context(open_source(name, common.limits())) for name in channels]
            done = interrupts.run(_through(first, opened, way))
        except StreamRefused as error:
            print_refusal(first, file or "", error, as_json=as_json)
            return EXIT_REFUSED
        except OutputExists as error:
            raise click.UsageError(str(error)) from error
        except KeyboardInterrupt:
            complain("interrupted; the guest is as it was before, and the second QEMU was ended")
            return EXIT_INTERRUPTED
        second = stack.enter_context(common.opened(done[1].files[0]))
        return _compared(
            first, second, channels, masks, done, as_json=as_json, everything=all_differences
        )


async def _capture(address: str, way: _Way) -> None:
    from qemu_svm.qmp import Client
    from qemu_svm.qmp.capture import capture

    async with Client.connect(address, timeout=way.timeout) as client:
        await capture(
            client,
            os.path.join(way.folder, _FIRST),
            qemu_directory=way.qemu_dir,
            progress=qmp_common.progress(),
        )


async def _through(
    first: Machine, channels: Sequence[Source], way: _Way
) -> tuple[Restored, Captured]:
    from qemu_svm.qmp.restore import save_again

    async with _second(way) as client:
        return await save_again(
            client,
            first.stream,
            os.path.join(way.folder, _SECOND),
            channels,
            qemu_directory=way.qemu_dir,
            progress=qmp_common.progress(),
        )


@asynccontextmanager
async def _second(way: _Way) -> AsyncIterator[Client]:
    from qemu_svm.qmp import Client
    from qemu_svm.qmp.process import Process

    if way.target is not None:
        async with Client.connect(way.target, timeout=way.timeout) as client:
            yield client
        return
    process = Process.start(way.binary or "", way.arguments)
    try:
        client = await process.connect()
        try:
            yield client
        except StreamRefused as error:
            raise await process.explained(error) from error
        finally:
            await client.close()
    finally:
        process.end()


def _compared(
    first: Machine,
    second: Machine,
    channels: Sequence[str],
    masks: Sequence[Mask],
    done: tuple[Restored, Captured],
    *,
    as_json: bool,
    everything: bool,
) -> int:
    from qemu_svm.cli.diff import compare_pages
    from qemu_svm.findings.diff import compare
    from qemu_svm.findings.results import DiffReport, RoundTrip

    found = compare(first, second, masks)
    pages, unreadable = compare_pages(first, second, (channels, ()), masks)
    report = RoundTrip(DiffReport(first, second, found, pages), str(done[0].version))
    output.show(report, as_json=as_json, all_differences=everything)
    if unreadable:
        return EXIT_UNREADABLE
    return 0 if report.diff.same else EXIT_FINDINGS
