"""``svmstream lab conform``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.lab.options import KERNEL, mirror_option, modules_of, trial_options
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, report_damage
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb
from qemu_svm.errors import EnvironmentFault

if TYPE_CHECKING:
    from qemu_svm.lab import Box
    from qemu_svm.lab.box.share import Share
    from qemu_svm.replay.conform import Guest, Report

_REPORT_EVERY = 250  # sequences


@verb(
    "conform",
    "svmstream lab conform --kernel 6.1 --sequences 1000 --seed 1 dump.bin",
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@options.json_option
@options.limit_option
@click.option("--kernel", type=KERNEL, metavar="KERNEL", default="6.1", show_default=True,
              help="Kernel of the emulated host: 5.10, 6.1, 6.12, 7.2, or one by its version, "
              "such as 6.12.105.")  # fmt: skip
@options.npt_option
@click.option("--sequences", default=1000, show_default=True, type=click.IntRange(1), metavar="N",
              help="Number of sequences.")  # fmt: skip
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), metavar="S",
              help="Seed of the random sequences.")  # fmt: skip
@click.option("--first", default=0, type=click.IntRange(0), metavar="K",
              help="Begin with sequence K of the seed.")  # fmt: skip
@click.option(
    "--inside", is_flag=True, help="Compare with the kernel's memory too: both VMCBs, the caches."
)
@click.option("--record", metavar="NEW", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the kernel's answers into a new file, one line (JSON) per sequence.",
              )  # fmt: skip
@trial_options
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
    inside: bool,
    record: Path | None,
    patch: Path | None,
    module_files: tuple[Path, ...],
    mirror: str | None,
) -> int:
    """Run random restore sequences on the model and on a real kernel.

    The guests are the first vCPUs of the streams FILE. Orders, omissions,
    repetitions and damage of single fields are chosen by the seed; errno and
    state must be the same after every ioctl. Where they differ, the shortest
    plan that shows it is printed as a command.
    """
    from qemu_svm.lab import Box
    from qemu_svm.lab.kvm import InBox
    from qemu_svm.replay.conform import conform
    from qemu_svm.replay.results import ConformReport

    signals.interrupt_on_termination()
    with ExitStack() as stack:
        answers = stack.enter_context(_created(record)) if record else None
        shown = stack.enter_context(progress.steps())

        module = modules_of(kernel, patch, module_files, mirror=mirror, progress=shown)

        def boot(share: Share) -> Box:
            return Box(
                kernel=kernel, npt=npt == "on", share=share, mirror=mirror, progress=shown,
                modules=None if module is None else module.files,
            )  # fmt: skip

        def report_progress(report: Report) -> None:
            # The text changes rarely: without a terminal each text is one line.
            rough = report.sequences // _REPORT_EVERY * _REPORT_EVERY
            shown.step(
                f"{rough} of {sequences} sequences, {len(report.disagreements)} disagree",
                report.sequences,
                sequences,
            )

        target = stack.enter_context(
            InBox(boot, None if module is None else module.types, foreign=module is not None)
        )
        guests = [_guest(path, target.folder / f"ram{number}") for number, path in enumerate(files)]
        found = conform(
            target, guests, sequences=sequences, seed=seed, first=first, emulated=True,
            inside=inside, record=answers, progress=report_progress,
        )  # fmt: skip
    show(ConformReport(found, kernel, npt == "on"), as_json=as_json)
    return EXIT_FINDINGS if found.disagreements else 0


def _guest(path: str, ram: Path) -> Guest:
    from qemu_svm.replay.conform import read_guest

    with opened(path) as dump:
        if not dump.vcpus:
            report_damage(dump)
        return read_guest(dump.machine, ram)


def _created(path: Path) -> TextIO:
    try:
        return path.open("x", encoding="ascii")
    except OSError as error:
        raise EnvironmentFault(f"cannot create '{path}': {error.strerror}") from error
