"""``svmstream replay FILE``."""

from __future__ import annotations

from pathlib import Path

import click

from qemu_svm import api
from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.lab.options import KERNEL, mirror_option, trial_options
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, report_damage
from qemu_svm.cli.streams import opened, opened_saved
from qemu_svm.cli.verbs import verb


@verb(
    "replay",
    "svmstream replay dump.bin --lab 6.1 --compare --inside",
    "svmstream replay dump.bin --plan cpuid,sregs:l1,nested,regs,run",
    "svmstream replay rec.jsonl --saved dump.bin --lab 6.12 --compare",
)
@options.file_argument
@options.json_option
@options.limit_option
@options.state_options
@options.saved_option
@options.plan_option
@click.option("--kvm", "device", metavar="PATH", help="A KVM of this machine.  [default: /dev/kvm]")
@click.option("--lab", "kernel", type=KERNEL, metavar="KERNEL",
              help="The KVM of an emulated AMD host with this kernel: 5.10, 6.1, 6.12, 7.2, or one "
              "by its version, such as 6.12.105.")  # fmt: skip
@trial_options
@mirror_option
@options.npt_option
@options.description_option
@options.channel_option
@options.vcpu_option
@click.option("--compare", is_flag=True, help="Compare with the model, and mark differences.")
@click.option("--inside", is_flag=True, help="Read the vCPU in the kernel's memory after every "
              "step: both VMCBs, the caches (root, or --lab).")  # fmt: skip
@click.option("--timeout", default=10.0, show_default=True, type=click.FloatRange(0.01, 3600),
              metavar="SECONDS", help="Limit for each KVM_RUN.")  # fmt: skip
@click.option("--shorten", is_flag=True, help="L2 executes one instruction that L1 intercepts, "
              "instead of its own code.")  # fmt: skip
@options.irqchip_option
@click.option("--maxphyaddr", default=40, show_default=True, type=click.IntRange(32, 52),
              help="Guest physical address width.")  # fmt: skip
@options.fail_on_option()
@click.option("-v", "--verbose", is_flag=True, help="Show the whole state after every step; with "
              "--inside, also addresses of the host.")  # fmt: skip
def command(
    *,
    file: str,
    as_json: bool,
    plan: str | None,
    device: str | None,
    kernel: str | None,
    patch: Path | None,
    module_files: tuple[Path, ...],
    mirror: str | None,
    npt: str,
    lender: str | None,
    channels: tuple[str, ...],
    vcpu: int,
    saved: str | None,
    compare: bool,
    inside: bool,
    timeout: float,
    shorten: bool,
    no_irqchip: bool,
    maxphyaddr: int,
    verbose: bool,
) -> int:
    """Restore the stream FILE into a real KVM, step by step.

    RAM and one vCPU are loaded into a new VM in the order of the plan (as in
    simulate); errno and state are shown after every step. L2 runs until L1 gets
    control again, and L1's registers are shown then. FILE may be state that is no
    stream, or a recording, whose put is replayed byte for byte (docs/state.md).
    """
    if device is not None and kernel is not None:
        raise click.UsageError("--kvm is for this machine, --lab for an emulated one: give one")
    if kernel is None and (patch is not None or module_files):
        raise click.UsageError("--patch and --module need --lab KERNEL")
    signals.interrupt_on_termination()
    with (
        opened_saved(saved) as original,
        opened(file, channels=channels, description=lender) as dump,
    ):
        with progress.steps() as shown:
            done = api.replay_plan(
                dump, plan, kernel=kernel, device=device, mirror=mirror, npt=npt == "on", vcpu=vcpu,
                irqchip=not no_irqchip, maxphyaddr=maxphyaddr, shorten=shorten,
                compare=compare, inside=inside, addresses=inside and verbose, timeout=timeout,
                progress=shown, saved=original, patch=patch, modules=module_files,
            )  # fmt: skip
        show(done, as_json=as_json, verbose=verbose)
        unreadable = report_damage(dump)
    if unreadable:
        return unreadable
    return EXIT_FINDINGS if not done.good and options.fails() else 0
