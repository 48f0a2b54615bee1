"""``svmstream lab witness FILE``."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import Any

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.lab.options import box_arguments, box_options, with_modules
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, EXIT_UNREADABLE, report_damage
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb
from qemu_svm.lab.suites.catalogue import DEFAULT_KERNEL


@verb(
    "witness",
    "svmstream lab witness dump.bin --kernel 6.12",
    "svmstream lab witness dump.bin --plan cpuid,sregs:l1,nested,regs,msrs,run",
)
@options.file_argument
@box_options
@options.vcpu_option
@click.option("--plan", metavar="PLAN",
              help="Restore by these ioctls instead of QEMU; see simulate.")  # fmt: skip
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="How long to wait until L1 gets control again.")  # fmt: skip
@click.option("--log", metavar="FILE", help="Keep svmtrace's log; see vmruns.")
@options.json_option
@options.limit_option
@options.description_option
@options.channel_option
@options.fail_on_option()
@click.option("-v", "--verbose", is_flag=True, help="Show all fields.")
def command(
    *,
    file: str,
    vcpu: int,
    plan: str | None,
    seconds: float,
    log: str | None,
    as_json: bool,
    lender: str | None,
    channels: tuple[str, ...],
    verbose: bool,
    **box: Any,
) -> int:
    """Restore the stream FILE in a box and check what the processor is given.

    QEMU restores all vCPUs of the stream; one of them is compared. For every
    field of the VMCB of the first entry into L2, and of the first into L1 after
    it: what the stream says, what the model of the kernel predicts, and what
    the emulated processor got. If an event for L1 is pending, L1 is entered
    first, and L2's next entry counts. The exit status is 0 if each level got
    its own registers and the model predicted it, else 1.
    """
    from qemu_svm.lab.results import WitnessReport
    from qemu_svm.lab.witness import WitnessBox, qemu_for, witness_restore
    from qemu_svm.qmp.output import writing

    signals.interrupt_on_termination()
    with opened(file, channels=channels, description=lender) as dump:
        machine = dump.machine
        if not machine.vcpus:
            report_damage(dump)
            return EXIT_UNREADABLE
        dump.vcpu(vcpu)  # before a box is booted
        arguments = box_arguments(box)
        kernel = arguments.pop("kernel", DEFAULT_KERNEL)
        arguments.setdefault("qemu", qemu_for(machine.name, kernel))
        with ExitStack() as stack:
            with progress.steps() as shown:
                arguments = with_modules(arguments | {"kernel": kernel}, shown)
                arguments.pop("kernel")
                bench = stack.enter_context(WitnessBox(kernel, progress=shown, **arguments))
            try:
                found = witness_restore(bench, machine, plan, seconds=seconds, vcpu=vcpu)
            finally:
                if log is not None:
                    with writing(log):
                        shutil.copy(bench.log, log)
            versions = dict(bench.box.versions)
    how = "restored by QEMU" if plan is None else f"plan {plan}"
    how = f"vCPU {vcpu}, {how}" if len(machine.vcpus) > 1 else how
    show(WitnessReport(file, how, versions, found), as_json=as_json, verbose=verbose)
    return EXIT_FINDINGS if not found.clean and options.fails() else 0
