"""``svmstream lab bisect FILE``."""

from __future__ import annotations

from pathlib import Path

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.lab.options import KERNEL, mirror_option, patch_option
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, EXIT_UNREADABLE, report_damage
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb


@verb(
    "bisect",
    "svmstream lab bisect dump.bin --good 6.12.105 --bad 6.12.118",
    "svmstream lab bisect dump.bin --good 6.1 --bad 6.12 --plan cpuid:nosvm,sregs",
    "svmstream lab bisect dump.bin --good 6.1.176 --bad 6.1.192 --patch v3.patch",
)
@options.file_argument
@options.json_option
@options.limit_option
@options.plan_option
@click.option("--good", required=True, type=KERNEL, metavar="KERNEL",
              help="A kernel with one answer, such as 6.12.105.")  # fmt: skip
@click.option("--bad", required=True, type=KERNEL, metavar="KERNEL",
              help="A kernel with another one; it may be older or newer.")  # fmt: skip
@click.option("--state", is_flag=True,
              help="The state after each step is a part of the answer.")  # fmt: skip
@click.option("--all", "every", is_flag=True,
              help="Try every kernel between the two, not only those that are needed.",
              )  # fmt: skip
@options.npt_option
@options.description_option
@options.channel_option
@options.vcpu_option
@click.option("--timeout", default=10.0, show_default=True, type=click.FloatRange(0.01, 3600),
              metavar="SECONDS", help="Limit for each KVM_RUN.")  # fmt: skip
@click.option("--shorten", is_flag=True, help="L2 executes one instruction that L1 intercepts, "
              "instead of its own code.")  # fmt: skip
@options.irqchip_option
@options.maxphyaddr_option
@patch_option
@mirror_option
def command(
    *,
    file: str,
    as_json: bool,
    lender: str | None,
    plan: str,
    good: str,
    bad: str,
    state: bool,
    every: bool,
    npt: str,
    channels: tuple[str, ...],
    vcpu: int,
    timeout: float,
    shorten: bool,
    no_irqchip: bool,
    maxphyaddr: int,
    patch: Path | None,
    mirror: str | None,
) -> int:
    """Find the update of a kernel that changed the answer to a plan.

    The plan restores a vCPU of the stream FILE, as in replay, on kernels that can be
    had between the two, each in a box. The answer is the errno of each step, how
    KVM_RUN ended, and L2's exit code. The exit status is 0 if the answer changes
    somewhere, 1 if both kernels give the same. With --patch, KVM of each kernel is
    built with the patch; a kernel between the two for which that is not possible is
    left out, with the reason.
    """
    from qemu_svm.lab.bisect import Wish, bisect
    from qemu_svm.lab.trial.subject import subject_of
    from qemu_svm.replay.job import ReplayOptions
    from qemu_svm.replay.replay import prepare

    signals.interrupt_on_termination()
    subject = None if patch is None else subject_of(patch, ())
    wish = Wish(
        good, bad, state=state, every=every, npt=npt == "on", mirror=mirror, patch=subject
    )  # fmt: skip
    how = ReplayOptions(
        seconds=timeout, irqchip=not no_irqchip, maxphyaddr=maxphyaddr, shorten=shorten,
        emulated=True, vcpu=vcpu,
    )  # fmt: skip
    with opened(file, channels=channels, description=lender) as dump:
        if not dump.vcpus:
            report_damage(dump)
            return EXIT_UNREADABLE
        job = prepare(dump.machine, dump.vcpu(vcpu), plan, how)
        with progress.steps() as shown:
            found = bisect(dump.machine, job, wish, channels=dump.channels, progress=shown)
    show(found, as_json=as_json)
    return 0 if found.boundaries else EXIT_FINDINGS
