"""The profile of a release, derived from the table of changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from qemu_svm.model.kernels import abi
from qemu_svm.model.kernels.changes import Change, Evidence, numbers
from qemu_svm.model.kernels.release import Known, Release
from qemu_svm.model.kernels.table import CHANGES
from qemu_svm.model.kernels.vendor import judged_as
from qemu_svm.model.profile import FIRST, Profile, in_order

MEASURED = ("5.10.223", "5.10.262", "6.1.176", "6.1.192", "6.12.107", "6.12.117", "7.2.12")
"""Kernels whose answers were recorded and held against the model."""

_READ = frozenset({"5.10", "5.15", "6.1", "6.6", "6.12", "6.18", "7.2", "7.3"})
"""Series whose changelogs were read, see :mod:`qemu_svm.model.kernels.table`."""

COMMITS = ("commits",)
"""What was read of a series whose changelogs were not."""

_NAMED = {
    "5.8.0": "5.8", "5.10.97": "5.10", "5.10.262": "5.10.262", "5.11.12": "5.11",
    "5.13.0": "5.13", "5.15.0": "5.15", "5.17.0": "5.17", "6.1.175": "6.1", "6.4.8": "6.6",
    "6.12.86": "6.12", "6.12.117": "6.12.117", "7.2.10": "7.2",
}  # fmt: skip
"""Spans that have the name of a release that stands for them; others are named by their first."""

_SREGS = ("R-01", "R-02", "R-03", "R-04", "R-07", "R-05")
_VMRUN = "vmrun."


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive releases that behave alike.

    :param name: the name of its row.
    """

    name: str
    first: tuple[int, int, int]
    last: tuple[int, int, int]


def profile_of(release: Release) -> Profile | None:
    """What a kernel does; None before Linux 5.8.

    Kernels whose number says where their tree began are taken for another release
    (:func:`qemu_svm.model.kernels.vendor.judged_as`).  The profile is named after the
    text that named the release.
    """
    judged, why = judged_as(release)
    if judged.numbers < FIRST.numbers:
        return None
    span = span_of(judged.numbers)
    basis = _basis(span, judged)
    return replace(
        _derived(*judged.numbers), name=_name(release, span), row=span.name,
        about=_about(release, judged, why), numbers=judged.numbers,
        measured=basis[0], read=basis[1],
    )  # fmt: skip


def _name(release: Release, span: Span) -> str:
    # The words that were given, unless they are the name of another row.
    given = release.text or release.version
    taken = any(one.name == given for one in spans()) and given != span.name
    return release.version if taken else given


def evidence(release: Release) -> Evidence:
    """How the behaviour of a release is known."""
    judged, why = judged_as(release)
    if not why and judged.version in MEASURED:
        return Evidence.MEASURED
    return Evidence.READ if not why and judged.series in _READ else Evidence.DERIVED


def _about(release: Release, judged: Release, why: str) -> str:
    if why:
        article = "an" if release.distribution.value[0] in "aeiouAEIO" else "a"
        return f"{article} {release.distribution} kernel; judged as {judged.version} because {why}"
    if release.known is Known.NEWEST:
        return f"{release.version}, the newest update of the series that is known"
    words = {
        Known.STATED: "", Known.MAPPED: f", by the numbers of {release.distribution}",
        Known.AT_LEAST: " or a later update: the release does not say which",
        Known.CANDIDATE: "",
    }[release.known]  # fmt: skip
    if release.known is Known.CANDIDATE:
        return f"{release}; judged as {release.version}{_beyond(judged)}"
    return f"Linux {release.version}{words}{_beyond(judged)}"


def _beyond(release: Release) -> str:
    # What the table cannot know.
    series, update = list(abi.NEWEST.items())[-1]
    if release.numbers[:2] > numbers(series)[:2]:
        return f"; the table of changes ends at {series}.{update}"
    known = abi.NEWEST.get(release.series, release.update)
    if release.update > known:
        return f"; the table of changes ends at {release.series}.{known} for this series"
    return ""


def _basis(span: Span, judged: Release) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inside = tuple(one for one in MEASURED if span.first <= numbers(one) <= span.last)
    read = (f"changelog of {judged.series}",) if judged.series in _READ else COMMITS
    return inside, read


@cache
def spans() -> tuple[Span, ...]:
    """All spans, in the order of their first release."""
    starts = sorted({numbers(one) for one in _NAMED} | set(_boundaries()))
    kept: list[tuple[int, int, int]] = []
    for start in starts:
        named = ".".join(map(str, start)) in _NAMED
        if kept and not named and _derived(*kept[-1]) == _derived(*start):
            continue
        kept.append(start)
    ends = [_before(start) for start in kept[1:]]
    newest = list(abi.NEWEST)[-1]
    ends.append(numbers(f"{newest}.{abi.NEWEST[newest]}"))
    names = (".".join(map(str, start)) for start in kept)
    return tuple(
        Span(_NAMED.get(name, name), start, end)
        for name, start, end in zip(names, kept, ends, strict=True)
    )


def _boundaries() -> Iterator[tuple[int, int, int]]:
    known = {numbers(series)[:2]: newest for series, newest in abi.NEWEST.items()}
    yield from (numbers(series) for series in abi.NEWEST)
    for change in CHANGES:
        if change.effective:
            yield from (one for one in change.boundaries if one[2] <= known.get(one[:2], -1))


def _before(start: tuple[int, int, int]) -> tuple[int, int, int]:
    # The release before this one: the last update of the series before, or the update before.
    major, minor, update = start
    if update:
        return major, minor, update - 1
    order = list(abi.NEWEST)
    series = order[order.index(f"{major}.{minor}") - 1]
    return numbers(f"{series}.{abi.NEWEST[series]}")


def span_of(version: tuple[int, int, int]) -> Span:
    """The span that a release is in; the last one for releases after it."""
    found = spans()[0]
    for span in spans():
        if span.first <= version:
            found = span
    return found


def changed_between(before: Release, after: Release) -> tuple[Change, ...]:
    """The changes of the table that one of two kernels has, in the order of mainline."""
    return tuple(change for change in CHANGES if change.is_in(before) != change.is_in(after))


def with_toggled(release: Release, change: Change) -> Profile | None:
    """What a kernel would do with one change more, or without it if it has it.

    None before Linux 5.8.
    """
    if release.numbers < FIRST.numbers:
        return None
    return _built([one for one in CHANGES if one.is_in(release) != (one is change)])


@lru_cache(maxsize=512)
def _derived(major: int, minor: int, update: int) -> Profile:
    release = Release(major, minor, update)
    return _built([change for change in CHANGES if change.is_in(release)])


def _built(changes: Sequence[Change]) -> Profile:
    # The profile that follows from changes, which are in the order of the table.
    checks, sregs = set(FIRST.set_nested_state), set(FIRST.sregs)
    fields: dict[str, Any] = {}
    vmrun: dict[str, Any] = {}
    for change in changes:
        if change.effective:
            checks = (checks | set(change.gains)) - set(change.loses)
            sregs |= set(change.sregs)
            _merge(change, fields, vmrun)
    return replace(
        FIRST, set_nested_state=in_order(checks),
        sregs=tuple(check for check in _SREGS if check in sregs),
        vmrun=replace(FIRST.vmrun, **vmrun), **fields,
    )  # fmt: skip


def _merge(change: Change, fields: dict[str, Any], vmrun: dict[str, Any]) -> None:
    for name, value in change.sets.items():
        into = vmrun if name.startswith(_VMRUN) else fields
        into[name.removeprefix(_VMRUN)] = value
    for name, more in change.adds.items():
        into, part = (vmrun, FIRST.vmrun) if name.startswith(_VMRUN) else (fields, FIRST)
        short = name.removeprefix(_VMRUN)
        into[short] = into.get(short, getattr(part, short)) | more
