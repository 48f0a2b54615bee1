"""``svmstream simulate FILE``."""

from __future__ import annotations

import click

from qemu_svm.cli import EXIT_FINDINGS, common, output
from qemu_svm.findings.results import SimulationReport
from qemu_svm.findings.verdict import Verdict, judge_restore
from qemu_svm.model.profiles import profiles
from qemu_svm.model.scenario import scenario


def _race(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    race: dict[str, int] = {}
    for value in values:
        name, equals, number = value.partition("=")
        try:
            race[name] = int(number, 0)
        except ValueError:
            raise click.BadParameter(f"'{value}' is not FIELD=NUMBER, such as efer=0x0") from None
        if not equals:
            raise click.BadParameter(f"'{value}' is not FIELD=NUMBER, such as efer=0x0")
    return race


@click.command(
    "simulate",
    epilog="Examples: svmstream simulate dump.bin --kernel 6.1; svmstream simulate dump.bin "
    "--kernel all --plan cpuid,sregs:l1,nested,regs,run",
)
@common.file_argument
@common.json_option
@common.limit_option
@click.option("--kernel", "kernel_name", default="6.1", show_default=True,
              help="The destination's kernel: a release or uname -r (6.12.118, 5.15.0-91-generic, "
              "6.1), auto for this host's, or all.")  # fmt: skip
@click.option("--plan", "plan_text", default="qemu", show_default=True,
              help="qemu, qemu-VERSION, selftests, or steps separated by commas.")  # fmt: skip
@click.option("--vcpu", "index", default=0, show_default=True, help="Which vCPU.")
@click.option("--race", multiple=True, callback=_race, metavar="FIELD=VALUE",
              help="L1 changes vmcb12 between check and use; adds a second VMRUN.")  # fmt: skip
@click.option("--no-npt", is_flag=True, help="The destination's host has npt=0.")
@click.option("--no-irqchip", is_flag=True, help="The local APIC is not in the kernel.")
@click.option("--maxphyaddr", default=40, show_default=True, help="Guest address width.")
@click.option("-v", "--verbose", is_flag=True, help="Show the whole state after every step.")
def command(
    *,
    file: str,
    as_json: bool,
    kernel_name: str,
    plan_text: str,
    index: int,
    race: dict[str, int],
    no_npt: bool,
    no_irqchip: bool,
    maxphyaddr: int,
    verbose: bool,
) -> int:
    """Restore the stream FILE in a model of KVM, step by step.

    A PLAN is a list of ioctls: cpuid sregs nested regs msrs events debugregs
    mpstate run vmrun smi rsm. Settings follow a colon: sregs:l1,
    nested:flags=0x1, nested:@0x550=0x104000, msrs:efer=0x1500, events:smm=1.
    """
    with common.opened(file) as machine:
        restore = scenario(machine, common.vcpu(machine, index), plan_text, npt=not no_npt,
                           irqchip=not no_irqchip, maxphyaddr=maxphyaddr, race=race)  # fmt: skip
        finished = [restore.simulate(kernel) for kernel in profiles(kernel_name)]
        report = SimulationReport(
            machine, plan_text, tuple(finished), tuple(map(judge_restore, finished))
        )
        output.show(report, as_json=as_json, verbose=verbose)
        unreadable = common.told(machine)
    if unreadable:
        return unreadable
    return 0 if report.verdict in (Verdict.RIGHT, Verdict.OPEN) else EXIT_FINDINGS
