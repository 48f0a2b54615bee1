"""``svmstream doctor``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from qemu_svm.cli import EXIT_ENVIRONMENT, EXIT_FINDINGS, common, interrupts, output
from qemu_svm.doctor.model import PURPOSES, Check, CheckState, Diagnosis
from qemu_svm.errors import QmpError


@click.command(
    "doctor",
    epilog="Examples: svmstream doctor --qmp unix:/run/vm.qmp --for capture; "
    "svmstream doctor --probe | ssh HOST python3 - | svmstream doctor --host -",
)
@click.option("--qemu", metavar="BINARY", help="This QEMU (it is started without a machine).")
@click.option("--qmp", "socket", metavar="SOCKET", help="This VM: unix:PATH or HOST:PORT.")
@click.option("--for", "purposes", multiple=True, type=click.Choice(PURPOSES),
              help="What is to be possible; may be given again.")  # fmt: skip
@click.option("--directory", default=".", metavar="DIR", help="Where captures are to go.")
@click.option("--probe", "show_probe", is_flag=True,
              help="Print a program that collects the facts about another host.")  # fmt: skip
@click.option("--host", "other", metavar="FACTS",
              help="Judge another host by what that program printed; - for standard input.",
              )  # fmt: skip
@common.json_option
def command(
    *,
    qemu: str | None,
    socket: str | None,
    purposes: Sequence[str],
    directory: str,
    show_probe: bool,
    other: str | None,
    as_json: bool,
) -> int:
    """Tell what this host, a QEMU and a VM can do, what is missing, how to get it.

    Exit status: 0 all is well, 1 something limits or is missing, 4 something is
    missing that is needed for what was asked (--for, --qemu, --qmp).
    """
    from qemu_svm.doctor import facts, probe
    from qemu_svm.doctor.judge_host import judge_host

    if show_probe:
        click.echo(Path(probe.__file__).read_text(), nl=False)
        return 0
    if other is not None and (qemu or socket):
        raise click.UsageError("--host is about another host: without --qemu and --qmp")
    found = probe.host() if other is None else facts.load(other)
    checks = list(judge_host(facts.read(found)))
    if other is None:
        checks += interrupts.run(_here(qemu, socket, Path(directory)))
    from qemu_svm.render.text.base import console

    out = console()
    width = out.width if out.is_terminal else None
    output.show(Diagnosis(tuple(checks), found), as_json=as_json, width=width)
    return _status(checks, {*purposes, "qemu" if qemu else "", "qmp" if socket else ""})


async def _here(qemu: str | None, socket: str | None, captures: Path) -> list[Check]:
    # What there is beside processor, KVM and kernel.
    from qemu_svm.doctor import judge_machine, judge_qemu
    from qemu_svm.doctor import qemu as programs
    from qemu_svm.doctor import target as vms

    checks: list[Check] = []
    ram = 0
    try:
        checks += judge_qemu.judge_binary(await programs.ask(qemu or "qemu-system-x86_64"))
    except QmpError as error:
        checks.append(_missing("QEMU", error, "nothing can be restored", "qemu", "restore"))
    if socket is not None:
        try:
            vm = await vms.ask(socket)
        except QmpError as error:
            checks.append(_missing("VM", error, "it cannot be driven", "qmp", "capture"))
        else:
            checks += judge_qemu.judge_target(vm)
            ram = vm.ram or 0
    checks += judge_machine.judge_places(captures, ram)
    checks += judge_machine.judge_lab()
    checks += judge_machine.judge_programs()
    return [*checks, _terminal()]


def _missing(group: str, error: QmpError, means: str, *needed_for: str) -> Check:
    return Check(
        group,
        "answers",
        CheckState.MISSING,
        error.what,
        means,
        error.hint or "",
        frozenset(needed_for),
    )


def _terminal() -> Check:
    from qemu_svm.doctor.judge_machine import judge_terminal
    from qemu_svm.render.text.base import console

    out = console()
    return judge_terminal(
        out.width if out.is_terminal else None, sys.stdout.encoding, colour=not out.no_color
    )


def _status(checks: Sequence[Check], asked: set[str]) -> int:
    bad = [one for one in checks if one.state in (CheckState.WARNING, CheckState.MISSING)]
    if any(one.state is CheckState.MISSING and one.needed_for & asked for one in bad):
        return EXIT_ENVIRONMENT
    return EXIT_FINDINGS if bad else 0
