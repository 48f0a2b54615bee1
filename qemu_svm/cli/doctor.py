"""``svmstream doctor``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options, qemus, signals
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_ENVIRONMENT, EXIT_FINDINGS
from qemu_svm.cli.verbs import verb
from qemu_svm.doctor.model import PURPOSES

if TYPE_CHECKING:
    from qemu_svm.doctor.model import Check, Diagnosis
    from qemu_svm.qmp.address import Address


@verb(
    "doctor",
    "svmstream doctor --qmp unix:/run/vm.qmp --for capture",
    "svmstream doctor --probe | ssh HOST python3 - | svmstream doctor --host -",
)
@click.option("--qemu", type=qemus.binary, metavar="BINARY|VERSION",
              help="Check this QEMU; it is started without a machine.")  # fmt: skip
@options.vm_options("Check this VM: unix:PATH or HOST:PORT.", required=False)
@click.option("--put-back", is_flag=True,
              help="Put back what a capture that was killed has left: settings, a paused guest, "
              "incomplete files. Needs --qmp or --domain.")  # fmt: skip
@click.option("--for", "purposes", multiple=True, type=click.Choice(PURPOSES),
              help="What should be possible; may be repeated.")  # fmt: skip
@click.option("--directory", default=".", metavar="DIR", show_default=True,
              help="Where captures would be written.")  # fmt: skip
@click.option("--probe", "show_probe", is_flag=True,
              help="Print a program that collects the facts about another host.")  # fmt: skip
@click.option("--host", "other", metavar="FACTS",
              help="Check another host, by the output of that program; - for standard input.",
              )  # fmt: skip
@options.json_option
def command(
    *,
    qemu: str | None,
    address: Address | None,
    put_back: bool,
    purposes: Sequence[str],
    directory: str,
    show_probe: bool,
    other: str | None,
    as_json: bool,
) -> int:
    """Check what this host, a QEMU and a VM can do, and how to get what is missing.

    Exit status: 0 everything is available, 1 something is limited or missing, 4
    something is missing that was asked for (--for, --qemu, --qmp).
    """
    if show_probe:
        from qemu_svm.doctor import probe

        click.echo(Path(probe.__file__).read_text(), nl=False)
        return 0
    if other is not None and (qemu or address):
        raise click.UsageError(
            "--host is for another host: it cannot be used with --qemu, --qmp or --domain"
        )
    if put_back and address is None:
        raise click.UsageError("--put-back needs the VM: --qmp or --domain")
    from qemu_svm.doctor import diagnose
    from qemu_svm.doctor.judge_machine import judge_terminal
    from qemu_svm.render.text.base import console

    out = console()
    width = out.width if out.is_terminal else None
    if other is not None:
        diagnosis = diagnose.of_host(other)
    else:
        terminal = judge_terminal(width, sys.stdout.encoding, colour=not out.no_color)
        work = diagnose.here(qemu, address, Path(directory), [terminal], put_back=put_back)
        diagnosis = signals.run(work)
    show(diagnosis, as_json=as_json, width=width)
    return _status(diagnosis, {*purposes, "qemu" if qemu else "", "qmp" if address else ""})


def _status(diagnosis: Diagnosis, asked: set[str]) -> int:
    from qemu_svm.doctor.model import CheckState

    def missing(one: Check) -> bool:
        return one.state is CheckState.MISSING and bool(one.needed_for & asked)

    if any(map(missing, diagnosis.checks)):
        return EXIT_ENVIRONMENT
    bad = (CheckState.WARNING, CheckState.MISSING)
    return EXIT_FINDINGS if any(one.state in bad for one in diagnosis.checks) else 0
