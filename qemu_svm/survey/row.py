"""One row of a survey: what is known of one stream, and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from qemu_svm.findings.qemus import qemu_plan
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.model.profiles import profiles
from qemu_svm.results import Result
from qemu_svm.x86 import cpu_models
from qemu_svm.x86.cpuid import infer


class State(StrEnum):
    """The worst that is known of a stream; the order is that of a survey, worst first."""

    UNREADABLE = "unreadable"
    """It cannot be opened or decompressed, or is damaged from its start."""
    INCOMPLETE = "incomplete"
    """It is damaged or truncated."""
    REFUSED = "refused"
    """A kernel or QEMU asked about would refuse it."""
    BROKEN = "broken"
    """Accepted, but a vCPU cannot run."""
    WRONG = "wrong"
    """Accepted, but L1 or L2 continues with wrong registers."""
    WARNED = "warned"
    """It restores, with warnings or errors of rules."""
    RIGHT = "right"
    NO_STREAM = "no stream"
    """Another kind of file."""


RANK: Mapping[State, int] = {state: rank for rank, state in enumerate(State)}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about each stream; sent to processes and workers.

    :param kernels: releases of the destination; all if empty.
    :param qemu: version of the destination's QEMU; None if it is not known.
    :param source: kernel that saved the streams; None if it is not known.
    :param npt, cpu, maxphyaddr: of the destination, as for ``check``.
    """

    kernels: tuple[str, ...] = ()
    qemu: str | None = None
    source: str | None = None
    npt: bool = True
    cpu: str | None = None
    maxphyaddr: int = 40
    limits: Limits = DEFAULT

    def check(self) -> None:
        """Check that it can be answered, before any stream is opened.

        :raises PlanError: an unknown kernel, CPU model or version.
        """
        for name in (*self.kernels, *([] if self.source is None else [self.source])):
            profiles(name)
        cpuid = infer(0, 0, 0, self.maxphyaddr)
        if self.cpu is not None:
            cpu_models.parse(self.cpu, cpuid)
        if self.qemu is not None:
            qemu_plan(self.qemu)


@dataclass(frozen=True, slots=True)
class Row:
    """The result for one stream.

    :param path: as it is opened: a snapshot of an image is ``IMAGE#NAME``.
    :param size: of the stream in bytes, decompressed; None if it could not be opened.
    :param domain: name of the libvirt domain, of a save image.
    :param qemu: version in the machine type, at which or after which the source's QEMU is.
    :param l2: numbers of the vCPUs that were saved while they ran L2.
    :param verdicts: by the destination's name: the worst of its vCPUs.
    :param refused_by: rules by which a destination refuses it or goes wrong.
    :param advisories: rules that warn.
    :param error: why it cannot be read, or what is damaged.
    """

    path: str
    state: State
    size: int | None = None
    container: str | None = None
    machine: str | None = None
    domain: str | None = None
    qemu: str | None = None
    vcpus: int = 0
    l2: tuple[int, ...] = ()
    complete: bool = False
    verdicts: Mapping[str, str] = field(default_factory=dict)
    refused_by: tuple[str, ...] = ()
    advisories: tuple[str, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The members of one row of the document."""
        return {**asdict(self), "state": self.state.value, "l2": list(self.l2),
                "verdicts": dict(self.verdicts), "refused_by": list(self.refused_by),
                "advisories": list(self.advisories)}  # fmt: skip


@dataclass(slots=True)
class Summary:
    """Counts over all rows.

    :param states: rows by state.
    :param restores: by destination: how many would restore right, of how many judged.
    :param refused_by: how many rows each rule stops.
    :param advisories: how many rows each rule warns about.
    """

    streams: int = 0
    states: dict[str, int] = field(default_factory=dict)
    restores: dict[str, tuple[int, int]] = field(default_factory=dict)
    refused_by: dict[str, int] = field(default_factory=dict)
    advisories: dict[str, int] = field(default_factory=dict)
    in_l2: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row, in its form as JSON."""
        self.streams += 1
        self.states[row["state"]] = self.states.get(row["state"], 0) + 1
        self.in_l2 += bool(row["l2"])
        for name, verdict in row["verdicts"].items():
            right, judged = self.restores.get(name, (0, 0))
            self.restores[name] = (right + (verdict == "right"), judged + 1)
        for counts, rules in (
            (self.refused_by, row["refused_by"]), (self.advisories, row["advisories"])
        ):  # fmt: skip
            for rule in rules:
                counts[rule] = counts.get(rule, 0) + 1

    def to_json(self) -> dict[str, Any]:
        """The member ``summary`` of the document; counts largest first."""

        def sorted_(counts: Mapping[str, int]) -> dict[str, int]:
            return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

        return {
            "streams": self.streams,
            "states": {one.value: self.states[one] for one in State if one in self.states},
            "in_l2": self.in_l2,
            "restores": {
                name: {"right": right, "judged": judged}
                for name, (right, judged) in self.restores.items()
            },
            "refused_by": sorted_(self.refused_by),
            "advisories": sorted_(self.advisories),
        }


@dataclass(frozen=True, slots=True, repr=False)
class Survey(Result):
    """A finished survey.

    :param rows: yields all rows, in their form as JSON: the worst first, then by path.
    :param continued: rows that an interrupted survey had made already.
    """

    verb: ClassVar[str] = "survey"
    question: Question
    summary: Summary
    rows: Callable[[], Iterator[dict[str, Any]]]
    continued: int = 0
