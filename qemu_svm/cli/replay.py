"""``svmstream replay FILE``."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import EXIT_FINDINGS, common, output
from qemu_svm.errors import EnvironmentFault
from qemu_svm.lab.suites.catalogue import KERNELS
from qemu_svm.source import open_source

if TYPE_CHECKING:
    from qemu_svm.replay.target import Target


@click.command(
    "replay",
    epilog="Examples: svmstream replay dump.bin --lab 6.1 --compare; svmstream replay dump.bin "
    "--plan cpuid,sregs:l1,nested,regs,run",
)
@common.file_argument
@common.json_option
@common.limit_option
@click.option("--plan", "plan_text", default="qemu", show_default=True,
              help="qemu, qemu-VERSION, selftests, or steps separated by commas.")  # fmt: skip
@click.option("--kvm", "device", metavar="PATH", help="A KVM of this machine.  [default: /dev/kvm]")
@click.option("--lab", "kernel", type=click.Choice(KERNELS), help="The KVM of an emulated AMD host "
              "with this kernel.")  # fmt: skip
@click.option("--npt", type=click.Choice(("on", "off")), default="on", show_default=True,
              help="Nested paging of the emulated host.")  # fmt: skip
@click.option("--channel", "channels", multiple=True, metavar="FILE",
              help="A multifd channel, or a further connection of postcopy.")  # fmt: skip
@click.option("--vcpu", "index", default=0, show_default=True, help="Which vCPU.")
@click.option("--compare", "compared", is_flag=True, help="Mark what the model has differently.")
@click.option("--timeout", "seconds", default=10.0, show_default=True,
              type=click.FloatRange(0.01, 3600), help="Seconds that a run may take.")  # fmt: skip
@click.option("--shorten", is_flag=True, help="L2 executes one instruction that L1 intercepts, "
              "instead of its own code.")  # fmt: skip
@click.option("--no-irqchip", is_flag=True, help="The local APIC is not in the kernel.")
@click.option("--maxphyaddr", default=40, show_default=True, type=click.IntRange(32, 52),
              help="Guest address width.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Show the whole state after every step.")
def command(
    *,
    file: str,
    as_json: bool,
    plan_text: str,
    device: str | None,
    kernel: str | None,
    npt: str,
    channels: tuple[str, ...],
    index: int,
    compared: bool,
    seconds: float,
    shorten: bool,
    no_irqchip: bool,
    maxphyaddr: int,
    verbose: bool,
) -> int:
    """Restore the stream FILE into a real KVM, step by step.

    RAM and one vCPU go into a fresh VM in the order of the plan (as in simulate);
    errno and state are shown after every step. L2 runs until L1 has control
    again, and L1's registers are what is shown then.
    """
    from qemu_svm.replay.job import ReplayOptions
    from qemu_svm.replay.replay import prepare, replay

    if device is not None and kernel is not None:
        raise click.UsageError("--kvm means this machine, --lab an emulated one: give one of them")
    options = ReplayOptions(seconds=seconds, irqchip=not no_irqchip, maxphyaddr=maxphyaddr,
                            shorten=shorten, emulated=kernel is not None, vcpu=index)  # fmt: skip
    with common.opened(file) as machine, ExitStack() as stack:
        job = prepare(machine, common.vcpu(machine, index), plan_text, options)
        others = [stack.enter_context(open_source(path, common.limits())) for path in channels]
        with target(device, kernel, npt=npt == "on") as where:
            done = replay(machine, job, where, channels=others, compared=compared)
        output.show(done, as_json=as_json, verbose=verbose)
        unreadable = common.told(machine)
    if unreadable:
        return unreadable
    return 0 if done.good else EXIT_FINDINGS


@contextmanager
def target(device: str | None, kernel: str | None, *, npt: bool) -> Iterator[Target]:
    """Enter the KVM that is meant.

    :raises EnvironmentFault: it cannot run nested guests.
    """
    from qemu_svm.kvm.device import KVM_PATH
    from qemu_svm.replay.target import SVM_STATE, Local

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if kernel is not None:
        from qemu_svm.cli.lab.common import progress
        from qemu_svm.lab import Box
        from qemu_svm.lab.kvm import InBox

        def boot(share: Path) -> Box:
            return Box(kernel=kernel, npt=npt, share=share, progress=shown)

        with progress() as shown, InBox(boot) as box:
            yield box
        return
    device = device or KVM_PATH
    with Local(device) as local:
        try:
            probe = local.probe()
        except EnvironmentFault as fault:
            raise EnvironmentFault(fault.what, hint="--lab 6.1 brings a KVM along") from None
        if probe.nested_state != SVM_STATE:
            raise EnvironmentFault(
                f"{device} cannot hold nested SVM state: KVM_CAP_NESTED_STATE is "
                f"{probe.nested_state}, not {SVM_STATE}",
                hint="load kvm_amd with nested=1 on an AMD host, or use --lab 6.1",
            )
        yield local
