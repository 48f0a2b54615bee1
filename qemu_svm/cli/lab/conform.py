"""``svmstream lab conform``."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import EXIT_FINDINGS, common, output
from qemu_svm.cli.lab.common import mirror_option, progress
from qemu_svm.errors import PlanError
from qemu_svm.lab.suites.catalogue import KERNELS

if TYPE_CHECKING:
    from qemu_svm.replay.conform import Guest, Report

_WORDS_EVERY = 250


@click.command(
    "conform",
    epilog="Example: svmstream lab conform --kernel 6.1 --sequences 1000 --seed 1 dump.bin",
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@common.json_option
@common.limit_option
@click.option("--kernel", type=click.Choice(KERNELS), default="6.1", show_default=True)
@click.option("--npt", type=click.Choice(("on", "off")), default="on", show_default=True,
              help="Nested paging of the emulated host.")  # fmt: skip
@click.option("--sequences", default=1000, show_default=True, type=click.IntRange(1), metavar="N")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), metavar="S")
@click.option("--first", default=0, type=click.IntRange(0), metavar="K",
              help="Begin with sequence K of the seed.")  # fmt: skip
@click.option("--record", metavar="NEW", type=click.Path(dir_okay=False, path_type=Path),
              help="Write what the kernel answered, a sequence a line (JSON).")  # fmt: skip
@mirror_option
def command(
    *,
    files: tuple[str, ...],
    as_json: bool,
    kernel: str,
    npt: str,
    sequences: int,
    seed: int,
    first: int,
    record: Path | None,
    mirror: str | None,
) -> int:
    """Random restore sequences on the model and on a real kernel.

    The guests are the first vCPUs of the streams FILE. Orders, omissions,
    repetitions and damage of single fields are drawn by the seed; errno and
    state must be the same after every ioctl. Where they differ, the shortest
    plan that shows it is printed as a command.
    """
    from qemu_svm.lab import Box
    from qemu_svm.lab.kvm import InBox
    from qemu_svm.replay.conform import conform
    from qemu_svm.replay.results import ConformReport

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        out = stack.enter_context(record.open("x", encoding="ascii")) if record else None
        shown = stack.enter_context(progress())

        def boot(share: Path) -> Box:
            return Box(kernel=kernel, npt=npt == "on", share=share, mirror=mirror, progress=shown)

        def tell(report: Report) -> None:
            # In words not each one: where there is no terminal a line stays of each.
            rough = report.sequences // _WORDS_EVERY * _WORDS_EVERY
            shown.step(
                f"{rough} of {sequences} sequences, {len(report.disagreements)} disagree",
                report.sequences,
                sequences,
            )

        target = stack.enter_context(InBox(boot))
        guests = [_guest(path, target.folder / f"ram{number}") for number, path in enumerate(files)]
        found = conform(
            target, guests, sequences=sequences, seed=seed, first=first, emulated=True,
            record=out, progress=tell,
        )  # fmt: skip
    output.show(ConformReport(found, kernel, npt == "on"), as_json=as_json)
    return EXIT_FINDINGS if found.disagreements else 0


def _guest(path: str, ram: Path) -> Guest:
    from qemu_svm.model.saved import from_vcpu
    from qemu_svm.replay.conform import Guest
    from qemu_svm.replay.memory import extract_ram

    with common.opened(path) as machine:
        if not machine.vcpus:
            common.warn(machine)
            raise PlanError(f"{path} has no readable vCPU")
        name = Path(path).name.partition(".mig")[0]
        return Guest(name, path, from_vcpu(machine.vcpus[0]), extract_ram(machine, str(ram)))
