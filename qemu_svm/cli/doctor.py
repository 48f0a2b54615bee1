"""``svmstream doctor``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from qemu_svm.cli import EXIT_ENVIRONMENT, EXIT_FINDINGS, common
from qemu_svm.doctor.model import PURPOSES, Check, State
from qemu_svm.errors import QmpError


@click.command(
    "doctor",
    epilog="Examples: svmstream doctor; svmstream doctor --qmp unix:/run/vm.qmp --for capture",
)
@click.option("--qemu", metavar="BINARY", help="A QEMU binary to ask (it is started without a VM).")
@click.option(
    "--qmp", "socket", metavar="SOCKET", help="A running VM to ask: unix:PATH, HOST:PORT."
)
@click.option("--for", "purposes", multiple=True, type=click.Choice(PURPOSES),
              help="What is to be possible here; may be given again.")  # fmt: skip
@click.option("--directory", default=".", metavar="DIR", help="Where captures are to go.")
@common.json_option
def command(
    *, qemu: str | None, socket: str | None, purposes: Sequence[str], directory: str, as_json: bool
) -> int:
    """Tell what this host, a QEMU and a VM can do, what is missing, how to get it.

    Exit status: 0 all is well, 1 something limits, 4 something is missing that
    is needed for what was asked (--for, --qemu, --qmp).
    """
    from qemu_svm.doctor.probe import host

    facts = host()
    checks = [*_host(facts), *_qemu(qemu), *_socket(socket), *_place(Path(directory))]
    if as_json:
        from qemu_svm.render.doctor_document import document

        common.print_json(document(checks, facts))
    else:
        from qemu_svm.render.doctor_text import report

        common.print_lines(report(checks))
    asked = {*purposes, *(["qemu"] if qemu else []), *(["qmp"] if socket else [])}
    if any(one.state is State.MISSING and one.needed_for & asked for one in checks):
        return EXIT_ENVIRONMENT
    limits = any(one.state in (State.WARNING, State.MISSING) for one in checks)
    return EXIT_FINDINGS if limits else 0


def _host(facts: dict[str, object]) -> Iterator[Check]:
    from qemu_svm.doctor.judge_host import judge

    yield from judge(facts)


def _qemu(name: str | None) -> Iterator[Check]:
    from qemu_svm.doctor.judge_qemu import judge_binary
    from qemu_svm.doctor.qemu import ask

    try:
        yield from judge_binary(ask(name or "qemu-system-x86_64"))
    except QmpError as error:
        yield Check(
            "QEMU", "binary", State.MISSING, error.what, "nothing can be captured or restored here",
            error.hint or "apt install qemu-system-x86", frozenset({"qemu", "restore", "lab"}),
        )  # fmt: skip


def _socket(address: str | None) -> Iterator[Check]:
    if address is None:
        return
    from qemu_svm.doctor.judge_qemu import judge_target
    from qemu_svm.doctor.target import ask

    try:
        yield from judge_target(asyncio.run(ask(address)))
    except QmpError as error:
        yield Check(
            "QMP socket", "answers", State.MISSING, error.what, "this VM cannot be driven",
            error.hint or "", frozenset({"qmp", "capture"}),
        )  # fmt: skip


def _place(folder: Path) -> Iterator[Check]:
    from qemu_svm.doctor.place import judge_places, judge_programs

    yield from judge_places(folder)
    yield from judge_programs()
