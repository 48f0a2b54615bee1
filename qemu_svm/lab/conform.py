"""Random sequences on the model and on the kernel of a box, in parts that others can do.

A part is a batch of sequences in a box of its own; the parts of a run together are what the run
is in one box.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO

from qemu_svm.errors import EnvironmentFault, LabError
from qemu_svm.lab import kvm
from qemu_svm.lab.box.box import Box
from qemu_svm.lab.box.share import Share
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import build
from qemu_svm.replay.conform import BATCH, Guest, Report, conform
from qemu_svm.replay.job import kernel_of
from qemu_svm.work.items import Lost, Runner

ReadGuest = Callable[[str, Path], Guest]
"""Reads the guest of an input, and writes its RAM into a new file."""

Shown = Callable[[Report], None]
"""Called with what is known so far."""


def _shown(_report: Report) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about each sequence; sent to workers.

    :param files: the inputs with the guests, and ``read``, which reads one.
    :param kernel, npt, modules, types: of the box: see :class:`~qemu_svm.lab.box.box.Box`,
        and BTF of kvm-amd if it is not the kernel's own.
    :param inside: compare with the kernel's memory as well.
    :param folder: in which the inputs' names are meant, if not this process's own.
    """

    files: tuple[str, ...]
    read: ReadGuest
    kernel: str
    npt: bool
    seed: int
    inside: bool = False
    modules: Mapping[str, bytes] = field(default_factory=dict)
    types: bytes | None = None
    mirror: str | None = None
    folder: str = ""


def here(
    question: Question,
    numbers: range,
    *,
    record: IO[str] | None = None,
    shown: Shown = _shown,
    progress: Progress = SILENT,
) -> Report:
    """Run sequences in a box of this host.

    :param record: they are written to it, one line each.
    :raises SvmStreamError: there is no box, or a guest cannot be read.
    """

    def boot(share: Share) -> Box:
        return Box(kernel=question.kernel, npt=question.npt, share=share, mirror=question.mirror,
                   modules=question.modules, progress=progress)  # fmt: skip

    with kvm.InBox(boot, question.types, foreign=bool(question.modules)) as target:
        guests = []
        for number, path in enumerate(question.files):
            guest = question.read(
                os.path.join(question.folder, path), target.folder / f"ram{number}"
            )
            guests.append(replace(guest, place=path))
        return conform(
            target, guests, sequences=len(numbers), seed=question.seed, first=numbers.start,
            emulated=True, inside=question.inside, record=record, progress=shown,
        )  # fmt: skip


def _part(numbers: range, question: Question) -> tuple[Report, str]:
    # What a worker does.
    build.require_for_box(question.kernel)
    lines = io.StringIO()
    return here(question, numbers, record=lines), lines.getvalue()


def spread(
    question: Question,
    numbers: range,
    runner: Runner,
    *,
    record: IO[str] | None = None,
    shown: Shown = _shown,
) -> Report:
    """Run sequences in boxes of whoever does the parts; the report is that of :func:`here`.

    :raises LabError: nobody could do a part.
    :raises EnvironmentFault: their boxes differ.
    """
    cuts = range(numbers.start, numbers.stop, BATCH)
    parts = [range(cut, min(cut + BATCH, numbers.stop)) for cut in cuts]
    found: dict[int, tuple[Report, str]] = {}
    written = 0
    with closing(runner.results(partial(_part, question=question), parts)) as results:
        for part, result in results:
            if isinstance(result, Lost):
                raise LabError(f"sequences {part.start} to {part.stop - 1}: {result.why}")
            found[part.start] = result
            while record is not None and written < len(parts) and parts[written].start in found:
                record.write(found[parts[written].start][1])
                written += 1
            report = _together([found[start][0] for start in sorted(found)])
            shown(report)
    return report


def _together(reports: Sequence[Report]) -> Report:
    first = reports[0]
    made = Report(first.probe, first.profile, first.seed, first.layout)
    for one in reports:
        kernels = {kernel_of(each.probe) for each in (first, one)}
        if len(kernels) > 1:
            raise EnvironmentFault(
                f"the workers' caches have different kernels: {', '.join(sorted(kernels))}",
                hint="on each: svmstream lab clean --all; svmstream lab build --kernel KERNEL",
            )
        if one.probe.cpuid != first.probe.cpuid:
            raise EnvironmentFault(
                "the workers' emulators give their guests different CPUIDs",
                hint="install the same qemu-system-x86 on each",
            )
        made.sequences += one.sequences
        made.steps += one.steps
        made.compared += one.compared
        made.ends.update(one.ends)
        made.open.update(one.open)
        made.crashes += one.crashes
        made.repeated += one.repeated
        made.disagreements += one.disagreements
    return made
