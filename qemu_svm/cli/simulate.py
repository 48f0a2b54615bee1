"""``svmstream simulate FILE``."""

from __future__ import annotations

import click

from qemu_svm.cli import options
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, report_damage
from qemu_svm.cli.streams import opened, opened_saved
from qemu_svm.cli.verbs import suggestion, verb
from qemu_svm.model.race import FIELDS as RACED


def _race(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    race: dict[str, int] = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            race[name] = int(number, 0)
        except ValueError:
            raise click.BadParameter(f"'{value}' is not FIELD=NUMBER, such as efer=0x0") from None
        if name not in RACED:
            raise click.BadParameter(
                f"VMRUN reads no field '{name}'.{suggestion(name, RACED)} Known: {' '.join(RACED)}"
            )
    return race


@verb(
    "simulate",
    "svmstream simulate dump.bin --kernel 6.1",
    "svmstream simulate dump.bin --kernel all --plan cpuid,sregs:l1,nested,regs,run",
    "svmstream simulate dump.bin --against cpuid,nested,sregs,regs,run",
)
@options.file_argument
@options.json_option
@options.limit_option
@options.state_options
@options.saved_option
@options.description_option
@options.channel_option
@options.kernel_option("6.1")
@options.plan_option
@click.option("--against", metavar="PLAN",
              help="A second plan: show the first step where they part, and what becomes of it.",
              )  # fmt: skip
@options.vcpu_option
@click.option("--race", multiple=True, callback=_race, metavar="FIELD=VALUE",
              help="L1 changes vmcb12 between check and use; adds a second VMRUN. FIELD is one of "
              f"{' '.join(RACED)}.")  # fmt: skip
@options.host_npt_option
@options.cpu_option
@options.irqchip_option
@options.maxphyaddr_option
@options.fail_on_option()
@click.option("-v", "--verbose", is_flag=True, help="Show the whole state after every step.")
def command(
    *,
    file: str,
    as_json: bool,
    lender: str | None,
    channels: tuple[str, ...],
    kernels: tuple[str, ...],
    plan: str | None,
    against: str | None,
    vcpu: int,
    saved: str | None,
    race: dict[str, int],
    npt: str,
    cpu: str | None,
    no_irqchip: bool,
    maxphyaddr: int,
    verbose: bool,
) -> int:
    """Restore the stream FILE in a model of KVM, step by step.

    A PLAN is a list of ioctls: cpuid sregs nested regs msrs events debugregs
    mpstate run vmrun smi rsm. Settings follow a colon: sregs:l1,
    nested:flags=0x1, nested:@0x550=0x104000, msrs:efer=0x1500, events:smm=1.
    FILE may be state that is no stream, or a recording, whose put is the plan
    then (docs/state.md).
    """
    from qemu_svm.findings.verdict import Verdict

    with (
        opened_saved(saved) as original,
        opened(file, channels=channels, description=lender) as dump,
    ):
        report = dump.simulate(plan, kernel=kernels, vcpu=vcpu, npt=npt == "on",
                               irqchip=not no_irqchip, maxphyaddr=maxphyaddr, cpu=cpu,
                               race=race, against=against, saved=original)  # fmt: skip
        show(report, as_json=as_json, verbose=verbose)
        unreadable = report_damage(dump)
    if unreadable:
        return unreadable
    good = report.verdict in (Verdict.RIGHT, Verdict.OPEN) and not any(report.recorded)
    return EXIT_FINDINGS if not good and options.fails() else 0
