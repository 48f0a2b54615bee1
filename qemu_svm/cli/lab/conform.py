"""``svmstream lab conform``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.cluster import scheduler_option, workers
from qemu_svm.cli.lab.options import KERNEL, mirror_option, modules_of, trial_options
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, report_damage
from qemu_svm.cli.verbs import verb
from qemu_svm.errors import EnvironmentFault

if TYPE_CHECKING:
    from qemu_svm.limits import Limits
    from qemu_svm.replay.conform import Guest, Report

_REPORT_EVERY = 250  # sequences


@verb(
    "conform",
    "svmstream lab conform --kernel 6.1 --sequences 1000 --seed 1 dump.bin",
    "svmstream lab conform --scheduler tcp://10.0.0.1:8786 --first 5000 dump.bin",
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@options.json_option
@options.limit_option
@click.option("--kernel", type=KERNEL, metavar="KERNEL", default="6.1", show_default=True,
              help="Kernel of the emulated host: 5.10, 6.1, 6.12, 7.2, or one by its version, "
              "such as 6.12.105.")  # fmt: skip
@options.npt_option
@click.option("--sequences", default=1000, show_default=True, type=click.IntRange(1, 10_000_000),
              metavar="N", help="Number of sequences.")  # fmt: skip
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
@scheduler_option
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
    scheduler: str | None,
) -> int:
    """Run random restore sequences on the model and on a real kernel.

    The guests are the first vCPUs of the streams FILE. Orders, omissions,
    repetitions and damage of single fields are chosen by the seed; errno and
    state must be the same after every ioctl. Where they differ, the shortest
    plan that shows it is printed as a command. With --scheduler, workers of a Dask
    cluster do it, in boxes of their own; the result is the same.
    """
    from qemu_svm.lab import conform
    from qemu_svm.replay.results import ConformReport

    signals.interrupt_on_termination()
    numbers = range(first, first + sequences)
    with ExitStack() as stack:
        answers = stack.enter_context(_created(record)) if record else None
        shown = stack.enter_context(progress.steps())
        cluster = None if scheduler is None else stack.enter_context(workers(scheduler, shown.note))
        module = modules_of(kernel, patch, module_files, mirror=mirror, progress=shown)
        question = conform.Question(
            files, partial(_guest, limits=options.limits()), kernel, npt == "on", seed, inside,
            {} if module is None else module.files, None if module is None else module.types,
            mirror, "" if cluster is None else os.getcwd(),
        )  # fmt: skip

        def report_progress(report: Report) -> None:
            # The text changes rarely: without a terminal each text is one line.
            rough = report.sequences // _REPORT_EVERY * _REPORT_EVERY
            shown.step(
                f"{rough} of {sequences} sequences, {len(report.disagreements)} disagree",
                report.sequences,
                sequences,
            )

        if cluster is None:
            found = conform.here(
                question, numbers, record=answers, shown=report_progress, progress=shown
            )
        else:
            found = conform.spread(
                question, numbers, cluster, record=answers, shown=report_progress
            )
    show(ConformReport(found, kernel, npt == "on"), as_json=as_json)
    return EXIT_FINDINGS if found.disagreements else 0


def _guest(path: str, ram: Path, limits: Limits) -> Guest:
    from qemu_svm import api
    from qemu_svm.replay.conform import read_guest

    with api.open(path, limits=limits) as dump:
        if not dump.vcpus:
            report_damage(dump)
        return read_guest(dump.machine, ram)


def _created(path: Path) -> TextIO:
    try:
        return path.open("x", encoding="ascii")
    except OSError as error:
        raise EnvironmentFault(f"cannot create '{path}': {error.strerror}") from error
