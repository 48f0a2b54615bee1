"""``svmstream restore FILE --qemu BINARY -- ARGS…``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import (
    EXIT_FINDINGS,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    common,
    complain,
    output,
    qmp_common,
)
from qemu_svm.errors import StreamRefused
from qemu_svm.machine import Machine
from qemu_svm.source import open_source

if TYPE_CHECKING:
    from qemu_svm.qmp.client import Client
    from qemu_svm.qmp.restore import Restored
    from qemu_svm.source import Source


@dataclass(frozen=True, slots=True)
class _Wishes:
    # What the command line says.
    file: str
    channels: tuple[Source, ...]
    capabilities: tuple[str, ...]
    qemu_file: str | None
    mode: str | None
    guest: str | None
    timeout: float
    json: bool


@click.command(
    "restore",
    epilog="Examples: svmstream restore dump.bin --check --qemu qemu-system-x86_64 -- -M pc -m 32; "
    "svmstream restore dump.bin --qmp /run/vm.qmp; "
    "svmstream restore dump.bin --paused --socket vm.qmp --qemu qemu-system-x86_64 -- -M pc",
)
@common.file_argument
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS...]")
@click.option("--qemu", "binary", metavar="BINARY", help="Start this QEMU, with ARGS.")
@click.option("--qmp", "address", metavar="SOCKET", help="Or use one that waits (-incoming defer).")
@click.option("--check", "mode", flag_value="check", help="End QEMU again when it has the stream.")
@click.option("--detach", "mode", flag_value="detach", help="Leave QEMU running; see --socket.")
@click.option("--paused", "guest", flag_value="paused", help="Keep the guest stopped.")
@click.option("--run", "guest", flag_value="run", help="Let it run, even if it was saved stopped.")
@click.option("--socket", metavar="PATH", help="Where QEMU's QMP is to listen, for others.")
@click.option("--channel", "channels", multiple=True, metavar="FILE", help="A multifd channel.")
@click.option("--capability", "capabilities", multiple=True, metavar="NAME",
              help="Switch a migration capability on.")  # fmt: skip
@click.option("--qemu-file", metavar="PATH",
              help="QEMU reads FILE itself, under the name that it has there.")  # fmt: skip
@common.json_option
@common.limit_option
@qmp_common.timeout_option
def command(
    *,
    file: str,
    arguments: tuple[str, ...],
    binary: str | None,
    address: str | None,
    mode: str | None,
    guest: str | None,
    socket: str | None,
    channels: tuple[str, ...],
    capabilities: tuple[str, ...],
    qemu_file: str | None,
    as_json: bool,
    timeout: float,
) -> int:
    """Feed the stream FILE, however it is packed, to a QEMU.

    With --qemu, QEMU is started with ARGS and stays in the foreground: the
    verb ends with it (--check and --detach do otherwise). Without --paused and
    --run the guest runs if it ran when it was saved. If QEMU does not take the
    stream, its words stand beside what the stream has there.
    """
    if (binary is None) == (address is None):
        raise click.UsageError("give either --qemu BINARY or --qmp SOCKET")
    if address is not None and (arguments or mode or socket):
        raise click.UsageError("ARGS, --check, --detach and --socket are for --qemu")
    if mode == "detach" and socket is None:
        raise click.UsageError("--detach needs --socket PATH, or nobody could reach that QEMU")
    from qemu_svm.cli import interrupts

    with ExitStack() as stack:
        machine = stack.enter_context(common.opened(file))
        common.warn(machine)
        opened = tuple(stack.enter_context(open_source(name, common.limits())) for name in channels)
        wishes = _Wishes(file, opened, capabilities, qemu_file, mode, guest, timeout, as_json)
        if address is not None:
            work = _into_waiting(address, machine, wishes)
        else:
            work = _into_new(binary or "", arguments, socket, machine, wishes)
        try:
            return interrupts.run(work)
        except StreamRefused as error:
            print_refusal(machine, file, error, as_json=as_json)
            return EXIT_REFUSED
        except KeyboardInterrupt:
            complain("interrupted" + ("; QEMU was ended" if binary else ""))
            return EXIT_INTERRUPTED


async def _into_waiting(address: str, machine: Machine, wishes: _Wishes) -> int:
    from qemu_svm.qmp import Client

    async with Client.connect(address, timeout=wishes.timeout) as client:
        _taken(await _restore(client, machine, wishes), wishes, None)
    return 0


async def _into_new(
    binary: str,
    arguments: Sequence[str],
    socket: str | None,
    machine: Machine,
    wishes: _Wishes,
) -> int:
    from qemu_svm.qmp.process import Process

    mode = wishes.mode
    process = Process.start(
        binary,
        arguments,
        socket=socket,
        paused=wishes.guest == "paused" or mode == "check",
        attached=mode is None and not wishes.json and wishes.file != "-",
    )
    try:
        client = await process.connect()
        try:
            done = await _restore(client, machine, wishes)
        except StreamRefused as error:
            raise await process.explained(error) from error
        finally:
            await client.close()
        _taken(done, wishes, socket)
        if mode == "detach":
            process.detach()
            return 0
        if mode == "check":
            return 0
        process.listen(complain)
        return EXIT_FINDINGS if await process.wait() else 0
    finally:
        process.end()


async def _restore(client: Client, machine: Machine, wishes: _Wishes) -> Restored:
    from dataclasses import replace

    from qemu_svm.qmp.restore import restore

    done = await restore(
        client,
        machine.stream,
        wishes.channels,
        capabilities=wishes.capabilities,
        qemu_file=wishes.qemu_file,
        progress=qmp_common.progress(),
    )
    if wishes.guest == "run":
        await client.cont()
    elif wishes.guest == "paused" and done.status.running:
        await client.stop()
    return replace(done, status=await client.status())


def _taken(done: Restored, wishes: _Wishes, socket: str | None) -> None:
    from qemu_svm.qmp.restore import RestoreReport

    output.show(RestoreReport(wishes.file, done, socket), as_json=wishes.json)


def print_refusal(machine: Machine, path: str, error: StreamRefused, *, as_json: bool) -> None:
    """Print QEMU's words beside what the stream has there."""
    from qemu_svm.findings.refusal import explain_refusal
    from qemu_svm.findings.results import RestoreRefusal

    reason = tuple(error.reason.splitlines())
    output.show(
        RestoreRefusal(path, reason, tuple(explain_refusal(machine, reason))), as_json=as_json
    )
