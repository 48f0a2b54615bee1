"""The update of a kernel that changed an answer, found in boxes.

Each kernel is booted in a box of its own and performs the same plan with the same guest;
see :mod:`qemu_svm.replay.bisect` for the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import ClassVar

from qemu_svm.errors import LabError, PlanError
from qemu_svm.lab.box.box import Box
from qemu_svm.lab.box.share import Share
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.kvm import InBox
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import cache, kernels
from qemu_svm.lab.suites.catalogue import SUITES, Suite
from qemu_svm.lab.suites.kernels import Kernel
from qemu_svm.lab.trial.patches import PatchRefused
from qemu_svm.lab.trial.subject import Subject, modules_for
from qemu_svm.machine import Machine
from qemu_svm.model.kernels.changes import Change
from qemu_svm.model.kernels.derive import changed_between, profile_of, with_toggled
from qemu_svm.model.kernels.release import Release
from qemu_svm.model.profile import Profile
from qemu_svm.model.scenario import Scenario
from qemu_svm.replay.answers import Answer, Difference, answer_of, differences
from qemu_svm.replay.bisect import Search
from qemu_svm.replay.job import ReplayJob, host_of
from qemu_svm.replay.memory import RamFile, extract_ram
from qemu_svm.replay.replay import perform
from qemu_svm.replay.target import Probe
from qemu_svm.results import Result
from qemu_svm.source import Source


@dataclass(frozen=True, slots=True)
class Tried:
    """One kernel that was tried.

    :param answer: None if it could not be tried.
    :param why: why it could not; or the last message of its host, if that crashed.
    """

    kernel: Kernel
    answer: Answer | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where the answer changes.

    :param before, after: neighbours, but for kernels that were not tried.
    :param differences: what the first step that is answered differently differs in.
    :param changes: of the table, between the two.
    :param reasons: those of them that change the model's answer to this plan.
    """

    before: Kernel
    after: Kernel
    differences: tuple[Difference, ...]
    changes: tuple[Change, ...]
    reasons: tuple[Change, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Bisection(Result):
    """A search for the update that changed an answer.

    :param path: of the stream, as given.
    :param plan: as given.
    :param good, bad: the two ends, as given; either can be the older one.
    :param tried: oldest first.
    :param left: kernels between the ends that were not tried.
    :param boundaries: oldest first; empty if the answer never changes.
    :param patch: name of the patch with which KVM of each was built, or None.
    """

    verb: ClassVar[str] = "lab_bisect"
    path: str
    plan: str
    good: Kernel
    bad: Kernel
    tried: tuple[Tried, ...]
    left: tuple[Kernel, ...]
    boundaries: tuple[Boundary, ...]
    patch: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a search.

    :param good, bad: names of kernels, see :func:`qemu_svm.lab.suites.kernels.wanted`.
    :param state: the state after each step is a part of the answer.
    :param every: try all kernels between the two.
    :param npt: nested paging of the emulated hosts.
    :param mirror: Debian mirror; None for the host's.
    :param patch: with which KVM of each kernel is built.
    """

    good: str
    bad: str
    state: bool = False
    every: bool = False
    npt: bool = True
    mirror: str | None = None
    patch: Subject | None = None


def bisect(
    machine: Machine,
    job: ReplayJob,
    wish: Wish,
    *,
    channels: Sequence[Source] = (),
    progress: Progress = SILENT,
) -> Bisection:
    """Find the updates between two kernels at which the answer to a plan changes.

    :param job: the plan, with its guest; see :func:`qemu_svm.replay.replay.prepare`.
    :param channels: other inputs with pages of the stream, as for ``read_ram``.
    :raises StreamError: there is no RAM, or it cannot be read completely.
    :raises LabError: one of the two kernels cannot be had, built or booted.
    :raises PatchRefused: the patch does not apply to one of the two.
    :raises PlanError: a name that names no kernel, or twice the same.
    """
    good, bad, row = _row(wish, progress)
    with host_faults("make a directory for the guest's memory"):
        made = TemporaryDirectory(prefix="svmstream-bisect-")
    with made as folder, closing(extract_ram(machine, f"{folder}/ram", channels)) as ram:
        attempt = _Attempt(row, job, ram, wish, progress)
        search = Search(len(row), attempt)
        search.run(attempt.suspects, every=wish.every)
    boundaries = [attempt.boundary(one, two, search.answers) for one, two in search.boundaries()]
    tried = [
        Tried(row[place], answer, attempt.words.get(place))
        for place, answer in sorted(search.answers.items())
    ]
    left = [one for place, one in enumerate(row) if place not in search.answers]
    return Bisection(
        machine.stream.source.path, job.name, good, bad, tuple(tried), tuple(left),
        tuple(boundaries), None if wish.patch is None else wish.patch.name,
    )  # fmt: skip


def _row(wish: Wish, progress: Progress) -> tuple[Kernel, Kernel, list[Kernel]]:
    # The two ends, and all kernels from the older to the newer one.
    ends = [_end(text, wish.mirror, progress) for text in (wish.good, wish.bad)]
    good, bad = ends
    if good.version == bad.version:
        raise PlanError(f"{wish.good} and {wish.bad} are the same kernel, {good.version}")
    first, last = sorted(ends, key=lambda one: kernels.sorting(one.version))
    there = {one.order: one for one in _kept() if first.order < one.order < last.order}
    try:
        listed = kernels.between(first.order, last.order, mirror=wish.mirror, progress=progress)
    except LabError as error:
        progress.note(f"{error.what}: only kernels in the cache are tried")
        listed = ()
    between = {one.order: one for one in listed} | there
    middle = [between[order] for order in sorted(between)]
    return good, bad, [first, *middle, last]


def _end(text: str, mirror: str | None, progress: Progress) -> Kernel:
    wanted = kernels.wanted(text)
    if isinstance(wanted, Suite):
        built = cache.find(wanted)
        if built is not None:
            return kernels.of_manifest(built.manifest)
        series = kernels.order_of(wanted.kernel)
        wanted = kernels.Wanted(text, series, whole_series=True)
    met = [one for one in _kept() if wanted.is_met_by(one.version, one.release)]
    if met and not wanted.whole_series:
        return met[-1]
    return kernels.find(wanted, mirror=mirror, progress=progress)


def _kept() -> list[Kernel]:
    suites = [found for suite in SUITES if (found := cache.find(suite))]
    kept = [kernels.of_manifest(built.manifest) for built in (*suites, *cache.kernels())]
    return sorted(kept, key=lambda one: kernels.sorting(one.version))


@dataclass
class _Attempt:
    # Performs the plan on kernels of the row; remembers a probe, and words about failures.
    row: list[Kernel]
    job: ReplayJob
    ram: RamFile
    wish: Wish
    progress: Progress
    probe: Probe | None = None
    words: dict[int, str] = field(default_factory=dict)

    def __call__(self, place: int) -> Answer | None:
        kernel = self.row[place]
        files: Mapping[str, bytes] = {}

        def boot(share: Share) -> Box:
            return Box(
                kernel=kernel.version, npt=self.wish.npt, share=share, mirror=self.wish.mirror,
                modules=files, progress=self.progress,
            )  # fmt: skip

        try:
            if self.wish.patch is not None:
                module = modules_for(
                    kernel.version, self.wish.patch, mirror=self.wish.mirror,
                    progress=self.progress,
                )  # fmt: skip
                files = module.files
            with InBox(boot, foreign=bool(files)) as target:
                probe = target.probe()
                self.progress.step(f"{kernel.name_for_option}: {self.job.name}")
                (result,) = perform(target, self.ram, [self.job], probe)
        except (LabError, PatchRefused) as error:
            if place in (0, len(self.row) - 1):
                raise
            self.words[place] = error.what
            return None
        self.probe = self.probe or probe
        if result.host:
            self.words[place] = result.host
        return answer_of(result, state=self.wish.state)

    def suspects(self) -> Iterable[int]:
        """Places after which the model's answer changes."""
        expected = [self._expected(_profile(kernel)) for kernel in self.row]
        return [place for place in range(len(self.row) - 1)
                if expected[place] != expected[place + 1]]  # fmt: skip

    def _expected(self, profile: Profile | None) -> object:
        if profile is None or self.probe is None:
            return None
        host = host_of(self.probe, self.job.options)
        simulation = Scenario(self.job.saved, self.job.steps, host, self.ram.backed).simulate(
            profile
        )
        return [
            (one.errno, None if one.outcome is None else one.outcome.result)
            for one in simulation.results
        ]

    def boundary(self, one: int, two: int, answers: dict[int, Answer | None]) -> Boundary:
        before, after = self.row[one], self.row[two]
        old, new = answers[one], answers[two]
        assert old is not None
        assert new is not None
        releases = _release(before), _release(after)
        changes = changed_between(*releases)
        reasons = [change for change in changes if self._matters(releases[0], change)]
        return Boundary(before, after, tuple(differences(old, new)), changes, tuple(reasons))

    def _matters(self, release: Release, change: Change) -> bool:
        return self._expected(with_toggled(release, change)) != self._expected(profile_of(release))


def _release(kernel: Kernel) -> Release:
    major, minor, update, _candidate = kernel.order
    return Release(major, minor, update)


def _profile(kernel: Kernel) -> Profile | None:
    return profile_of(_release(kernel))
