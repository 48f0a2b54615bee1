"""``svmstream vmruns LOG``."""

from __future__ import annotations

import click

from qemu_svm.cli import EXIT_UNREADABLE, common, complain, output
from qemu_svm.source import open_source
from qemu_svm.vmruns.log import read_log
from qemu_svm.vmruns.results import RunsReport, vmcb
from qemu_svm.vmruns.roles import Role
from qemu_svm.vmruns.select import Selection, exit_codes

_LEVELS = {"L1": Role.L1, "L2": Role.L2, "unknown": Role.UNKNOWN}


@click.command(
    "vmruns",
    epilog="Examples: svmstream vmruns box.log --level L1 -v; svmstream vmruns box.log --show 27",
)
@click.argument("log", metavar="LOG")
@common.json_option
@common.limit_option
@click.option("--vcpu", "cpu", type=int, help="Only this CPU of the emulated host.")
@click.option("--level", type=click.Choice(list(_LEVELS), case_sensitive=False),
              help="Only what L1 or L2 ran by.")  # fmt: skip
@click.option("--exit", "exit_name", metavar="EXIT", help="Only runs that ended so: VMRUN, 0x80.")
@click.option("--from", "first", type=int, default=0, help="From this VMRUN on.")
@click.option("--to", "last", type=int, help="Up to this VMRUN.")
@click.option("--show", "number", type=int, metavar="N",
              help="The VMCB of record N with all its fields.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True,
              help="Every run alone, with what changed in its VMCB.")  # fmt: skip
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
    """Every VMCB that KVM gave the processor, from a log of svmtrace.

    Shown are the VMCBs, whether each is vmcb01 or vmcb02, and every entry with
    its exit. The log may be compressed ("-" for standard input); the emulator's
    plugin svmtrace writes it.
    """
    codes = exit_codes(exit_name) if exit_name is not None else None
    role = _LEVELS[level] if level is not None else None
    wanted = Selection(cpu, role, codes, first, last)
    with open_source(log, common.limits()) as source:
        read = read_log(source, limits=common.limits())
        if number is not None:
            output.show(vmcb(read, number), as_json=as_json, verbose=verbose)
        else:
            output.show(RunsReport(read, wanted), as_json=as_json, verbose=verbose)
        if read.damage is None:
            return 0
        complain(f"{log}: {read.damage}")
        return EXIT_UNREADABLE
