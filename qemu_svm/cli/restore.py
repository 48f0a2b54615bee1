"""``svmstream restore FILE --qemu BINARY -- ARGS…``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options, progress, qemus, signals
from qemu_svm.cli.output import show
from qemu_svm.cli.status import (
    EXIT_FINDINGS,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    print_error,
    report_damage,
)
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb
from qemu_svm.errors import StreamRefused

if TYPE_CHECKING:
    from qemu_svm.api import Dump
    from qemu_svm.qmp.address import Address
    from qemu_svm.qmp.client import Client
    from qemu_svm.qmp.restore import RestoreReport


@dataclass(frozen=True, slots=True)
class _Options:
    # How to restore, as the command line says it.
    arguments: tuple[str, ...]
    socket: str | None
    mode: str | None
    capabilities: tuple[str, ...]
    qemu_file: str | None
    run: bool | None
    json: bool


@verb(
    "restore",
    "svmstream restore dump.bin --check --qemu qemu-system-x86_64 -- -M pc -m 32",
    "svmstream restore dump.bin --qmp /run/vm.qmp",
    "svmstream restore dump.bin --paused --qemu qemu-system-x86_64 -- -M pc",
)
@options.file_argument
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS...]")
@click.option("--qemu", "binary", type=qemus.binary, metavar="BINARY|VERSION",
              help="Start this QEMU with ARGS.")  # fmt: skip
@options.vm_options("Use a running QEMU that waits for a stream (-incoming defer).", required=False)
@click.option("--check", "mode", flag_value="check",
              help="Stop QEMU after it has loaded the stream.")  # fmt: skip
@click.option("--detach", "mode", flag_value="detach", help="Leave QEMU running; see --socket.")
@click.option("--paused", "guest", flag_value="paused", help="Leave the guest stopped.")
@click.option("--run", "guest", flag_value="run", help="Resume the guest, even if saved stopped.")
@click.option("--socket", metavar="PATH", help="Path of QEMU's QMP socket, for other clients.")
@options.description_option
@options.channel_option
@click.option("--capability", "capabilities", multiple=True, metavar="NAME",
              help="Enable a migration capability.")  # fmt: skip
@click.option("--qemu-file", metavar="PATH",
              help="QEMU reads FILE itself, from the path that it has there.")  # fmt: skip
@options.json_option
@options.limit_option
@options.timeout_option
def command(
    *,
    file: str,
    arguments: tuple[str, ...],
    binary: str | None,
    address: Address | None,
    mode: str | None,
    guest: str | None,
    socket: str | None,
    lender: str | None,
    channels: tuple[str, ...],
    capabilities: tuple[str, ...],
    qemu_file: str | None,
    as_json: bool,
    timeout: float,
) -> int:
    """Load the stream FILE, however it is packed, into a QEMU.

    With --qemu, QEMU is started with ARGS and stays in the foreground: the
    verb ends with it (unless --check or --detach is given). Without --paused and
    --run the guest runs if it ran when it was saved. If QEMU refuses the stream,
    its message is shown beside the part of the stream that it is about.
    """
    if (binary is None) == (address is None):
        raise click.UsageError("give either --qemu BINARY or --qmp SOCKET (--domain NAME)")
    if address is not None and (arguments or mode or socket):
        raise click.UsageError("ARGS, --check, --detach and --socket need --qemu")
    if mode == "detach" and socket is None:
        raise click.UsageError("--detach needs --socket PATH: otherwise QEMU cannot be reached")
    run = {"run": True, "paused": False}.get(guest or "")
    chosen = _Options(arguments, socket, mode, capabilities, qemu_file, run, as_json)
    with opened(file, channels=channels, description=lender) as dump:
        report_damage(dump)
        if address is not None:
            work = _into_running(address, timeout, dump, chosen)
        else:
            work = _into_new(binary or "", dump, chosen)
        try:
            return signals.run(work)
        except StreamRefused as error:
            from qemu_svm.findings.refusal import refusal

            show(refusal(dump.machine, file, error), as_json=as_json)
            return EXIT_REFUSED
        except KeyboardInterrupt:
            print_error("interrupted" + ("; QEMU was ended" if binary else ""))
            return EXIT_INTERRUPTED


async def _into_running(address: Address, timeout: float, dump: Dump, chosen: _Options) -> int:
    from qemu_svm.qmp import Client

    async with Client.connect(address, timeout=timeout) as client:
        report = await _restore(client, dump, chosen)
    show(report, as_json=chosen.json)
    return 0


async def _into_new(binary: str, dump: Dump, chosen: _Options) -> int:
    from qemu_svm.qmp.process import Process

    mode = chosen.mode
    process = Process.start(
        binary,
        chosen.arguments,
        socket=chosen.socket,
        paused=chosen.run is False or mode == "check",
        attached=mode is None and not chosen.json and dump.path != "-",
    )
    try:
        async with process.connected() as client:
            report = await _restore(client, dump, chosen)
        show(report, as_json=chosen.json)
        if mode == "detach":
            process.detach()
        if mode is not None:
            return 0
        process.listen(print_error)
        return EXIT_FINDINGS if await process.wait() else 0
    finally:
        process.end()


async def _restore(client: Client, dump: Dump, chosen: _Options) -> RestoreReport:
    from qemu_svm.qmp.restore import RestoreReport, restore

    restored = await restore(
        client,
        dump.machine.stream,
        dump.channels,
        capabilities=chosen.capabilities,
        qemu_file=chosen.qemu_file,
        run=chosen.run,
        progress=progress.migration(),
    )
    return RestoreReport(dump.path, restored, chosen.socket)
