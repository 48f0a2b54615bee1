"""``svmstream lab witness FILE``."""

from __future__ import annotations

import shutil
import signal
from contextlib import ExitStack
from typing import Any

import click

from qemu_svm.cli import EXIT_FINDINGS, EXIT_UNREADABLE, output
from qemu_svm.cli import common as streams
from qemu_svm.cli.lab.common import box_arguments, box_options, progress
from qemu_svm.errors import PlanError

QEMU = "restored by QEMU"
DEFAULT_KERNEL = "6.1"


@click.command(
    "witness",
    epilog="Examples: svmstream lab witness dump.bin --kernel 6.12; svmstream lab witness "
    "dump.bin --plan cpuid,sregs:l1,nested,regs,msrs,run",
)
@streams.file_argument
@box_options
@click.option("--plan", "plan_text", metavar="PLAN",
              help="Restore by these ioctls instead of QEMU; see simulate.")  # fmt: skip
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="Wait so long for L1 to get control again.")  # fmt: skip
@click.option("--log", "keep", metavar="FILE", help="Keep svmtrace's log; see vmruns.")
@streams.json_option
@streams.limit_option
@click.option("-v", "--verbose", is_flag=True, help="All fields.")
def command(
    *,
    file: str,
    plan_text: str | None,
    seconds: float,
    keep: str | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Restore the stream FILE in a box and look at what the processor is given.

    For every field of the VMCB of the first entry into L2, and of the first
    into L1 after it: what the stream says, what the model of the kernel
    predicts, and what the emulated processor got.  Exit status: 0 if each level
    got its own registers and the model foresaw it, else 1.
    """
    from qemu_svm.lab.results import WitnessReport
    from qemu_svm.lab.witness import WitnessBox, qemu_for, witness_restore

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with streams.opened(file) as machine:
        if not machine.vcpus:
            streams.warn(machine)
            return EXIT_UNREADABLE
        if len(machine.vcpus) > 1:
            raise PlanError("the stream has several vCPUs; only one can be told from another here")
        arguments = box_arguments(options)
        kernel = arguments.pop("kernel", DEFAULT_KERNEL)
        arguments.setdefault("qemu", qemu_for(machine.name, kernel))
        with ExitStack() as stack:
            with progress() as show:
                made = WitnessBox(kernel, progress=show, **arguments)
                bench = stack.enter_context(made)
            try:
                found = witness_restore(bench, machine, plan_text, seconds=seconds)
            finally:
                if keep is not None:
                    shutil.copy(bench.log, keep)
            versions = dict(bench.box.versions)
    plan = QEMU if plan_text is None else f"plan {plan_text}"
    report = WitnessReport(file, plan, versions, found)
    output.show(report, as_json=as_json, verbose=verbose)
    return 0 if found.clean else EXIT_FINDINGS
