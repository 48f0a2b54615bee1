"""``svmstream vmruns LOG``."""

from __future__ import annotations

import click

from qemu_svm.cli import options
from qemu_svm.cli.output import show
from qemu_svm.cli.status import report_problems
from qemu_svm.cli.verbs import verb
from qemu_svm.source import open_source


@verb(
    "vmruns",
    "svmstream vmruns box.log --level L1 -v",
    "svmstream vmruns box.log --show 27",
)
@click.argument("log", metavar="LOG")
@options.json_option
@options.limit_option
@click.option("--vcpu", "cpu", type=int, help="Only this CPU of the emulated host.")
@click.option("--level", type=click.Choice(("L1", "L2", "unknown"), case_sensitive=False),
              help="Only the VMRUNs that ran L1, or L2.")  # fmt: skip
@click.option("--exit", "exit_name", metavar="EXIT",
              help="Only runs with this #VMEXIT: VMRUN, 0x80.")  # fmt: skip
@click.option("--first", cls=options.Renamed, formerly={"--from": None}, type=int, default=0,
              help="Begin at this VMRUN.")  # fmt: skip
@click.option("--last", cls=options.Renamed, formerly={"--to": None}, type=int,
              help="End at this VMRUN.")  # fmt: skip
@click.option("--show", "number", type=int, metavar="N",
              help="The VMCB of record N with all its fields.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True,
              help="Show each run on its own, with what changed in its VMCB.")  # fmt: skip
def command(
    *,
    log: str,
    as_json: bool,
    cpu: int | None,
    level: str | None,
    exit_name: str | None,
    first: int,
    last: int | None,
    number: int | None,
    verbose: bool,
) -> int:
    """Show every VMCB that KVM gave the processor, from a log of svmtrace.

    Lists the VMCBs, whether each is vmcb01 or vmcb02, and every entry with its
    exit. The log may be compressed ("-" for standard input); it is written by
    svmtrace, a plugin for the emulator.
    """
    from qemu_svm.vmruns.log import read_log
    from qemu_svm.vmruns.results import RunsReport, vmcb
    from qemu_svm.vmruns.roles import Role
    from qemu_svm.vmruns.select import Selection, exit_codes

    codes = exit_codes(exit_name) if exit_name is not None else None
    role = Role[level.upper()] if level is not None else None
    limits = options.limits()
    with open_source(log, limits) as source:
        read = read_log(source, limits=limits)
        selection = Selection(cpu, role, codes, first, last)
        result = RunsReport(read, selection) if number is None else vmcb(read, number)
        show(result, as_json=as_json, verbose=verbose)
        damage = [] if read.damage is None else [read.damage]
        return report_problems(log, damage, complete=not damage)
