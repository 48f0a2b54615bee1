"""Two boxes beside each other: the kernel as it is, and the kernel on trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from qemu_svm.lab.kvm import InBox
from qemu_svm.lab.trial.differ import Difference, Tally, difference, text_of
from qemu_svm.replay.conform import Guest
from qemu_svm.replay.job import ReplayJob, ReplayResult
from qemu_svm.replay.replay import perform

CRASHES = 3
"""Crashes of a kernel after which it is not given more plans; a box starts again after each."""


@dataclass(frozen=True, slots=True)
class Crash:
    """A plan that crashed the kernel of one side, or hung it.

    :param plan: up to the step in which it did.
    :param trouble: the kernel's oops, as it printed it; empty if it hung without a word.
    """

    guest: str
    plan: str
    with_patch: bool
    words: str
    step: int = 0
    text: str = ""
    trouble: str = ""

    @property
    def hung(self) -> bool:
        """Whether the kernel did not come back from the step."""
        return not self.trouble or any(word in self.words for word in ("lockup", "stall"))


@dataclass
class Sides:
    """The two kernels, and what was found.

    :param without, with_patch: their boxes.
    :param pool: two threads.
    :param inside: compare the kernels' memory as well.
    """

    without: InBox
    with_patch: InBox
    pool: ThreadPoolExecutor
    tally: Tally = field(default_factory=Tally)
    crashes: list[Crash] = field(default_factory=list)
    inside: bool = True

    @property
    def spent(self) -> bool:
        """Whether a kernel has crashed too often to go on, or hung, which takes long to see."""
        return any(
            sum(2 if one.hung else 1 for one in self.crashes if one.with_patch == side) >= CRASHES
            for side in (True, False)
        )

    def run(self, guest: Guest, jobs: Sequence[ReplayJob]) -> Iterator[Difference | None]:
        """Perform jobs on both kernels; return the first difference of each.

        It ends early if a kernel crashes too often.
        """
        first, second = (
            self.pool.submit(self._perform, guest, jobs, with_patch=with_patch)
            for with_patch in (False, True)
        )
        for job, one, other in zip(jobs, first.result(), second.result(), strict=False):
            yield difference(guest, job, one, other, self.tally)

    def _perform(
        self, guest: Guest, jobs: Sequence[ReplayJob], *, with_patch: bool
    ) -> list[ReplayResult]:
        side = self.with_patch if with_patch else self.without
        results: list[ReplayResult] = []
        if self.spent:
            return results
        layout = side.layout() if self.inside else None
        performed = perform(side, guest.ram, jobs, side.probe(), layout)
        for job, result in zip(jobs, performed, strict=False):
            results.append(result)
            if not result.host:
                continue
            number = min(len(result.steps) + 1, len(job.steps))
            plan = ",".join(step.text for step in job.steps[:number])
            words = result.host.splitlines()[0]
            self.crashes.append(
                Crash(guest.name, plan, with_patch, words, number, text_of(job, number),
                      side.trouble())
            )  # fmt: skip
            if self.spent:
                break
        return results
