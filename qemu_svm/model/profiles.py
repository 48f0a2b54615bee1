"""Kernels by name: spans of releases that behave alike, releases, and two proposals.

Sources: :mod:`qemu_svm.model.kernels.table`; the patch series "nSVM: introduce
svm->nested.save to cache save area fields" (v3 of 11 October 2021, its review
of 22 October, v4 and v5 of 3 November).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from qemu_svm.errors import PlanError
from qemu_svm.model.kernels import abi
from qemu_svm.model.kernels.derive import Span, profile_of, spans
from qemu_svm.model.kernels.release import Release, ReleaseError, parse
from qemu_svm.model.profile import Profile, SaveCacheFill, in_order

AUTO = "auto"
"""The name of this host's kernel."""


def _row(span: Span) -> Profile:
    found = profile_of(Release(*span.first))
    if found is None:
        raise AssertionError(span)
    return replace(found, name=span.name, about=words([span]), numbers=span.first)


def words(some: Iterable[Span]) -> str:
    """Spans in words, neighbours joined: ``5.8 to 5.14, 6.1.76 to 6.1.192``."""
    order = spans()
    runs: list[tuple[Span, Span]] = []
    for span in sorted(some, key=order.index):
        if runs and order.index(runs[-1][1]) + 1 == order.index(span):
            runs[-1] = (runs[-1][0], span)
        else:
            runs.append((span, span))
    return ", ".join(_run(first.first, last.last) for first, last in runs)


def _run(first: tuple[int, int, int], last: tuple[int, int, int]) -> str:
    starts, ends = _version(first), _version(last)
    series = "{}.{}".format(*last)
    if abi.NEWEST.get(series) == last[2] and (not first[2] or first[:2] != last[:2]):
        ends = series
    return starts if starts == ends else f"{starts} to {ends}"


def _version(numbers: tuple[int, int, int]) -> str:
    return "{}.{}.{}".format(*numbers) if numbers[2] else "{}.{}".format(*numbers)


_ROWS: Mapping[str, Profile] = {span.name: _row(span) for span in spans()}
_OF_NAME: Mapping[str, Span] = {span.name: span for span in spans()}

V3 = replace(
    _ROWS["5.15"],
    name="v3",
    about="the save cache as first posted: filled from the blob, so with L1's values",
    measured=(),
    read=("patch 'nSVM: introduce svm->nested.save', v3 of 11 October 2021",),
    set_nested_state=in_order(_ROWS["5.15"].set_nested_state, "C-06"),
    vmrun=_ROWS["5.17"].vmrun,
    has_save_cache=True,
    live_validation=True,
    save_cache=SaveCacheFill.BLOB,
    numbers=(0, 0, 0),
    row="v3",
)

REVIEW = replace(
    V3,
    name="review",
    about="the save cache where the review wanted it (v4, v5): filled from vmcb02",
    read=("review of 22 October 2021; v4 and v5 of 3 November 2021",),
    live_validation=False,
    save_cache=SaveCacheFill.VMCB02,
    row="review",
)

PROFILES: Mapping[str, Profile] = MappingProxyType({**_ROWS, "v3": V3, "review": REVIEW})
"""All rows by name: spans of releases, oldest first, then the two proposals."""

RELEASED = tuple(_ROWS)
"""Names of those that are kernels, not proposals."""


def released() -> list[Profile]:
    """One profile of each span of releases that behave alike."""
    return [PROFILES[name] for name in RELEASED]


def ranges(names: Iterable[str]) -> str:
    """Names of rows as releases, neighbours joined; other names as they are."""
    given = list(names)
    joined = words(_OF_NAME[name] for name in given if name in _OF_NAME)
    return ", ".join([*([joined] if joined else []), *(n for n in given if n not in _OF_NAME)])


def profiles(name: str) -> list[Profile]:
    """The profiles that a name stands for.

    :param name: a kernel's release (``6.12.118``, ``uname -r``; ``6.1`` is the newest update
        known), ``auto`` for this host's, ``v3`` or ``review`` for the proposals, ``all`` for
        one of each span of releases that behave alike, and the proposals.
    :raises PlanError: it is none of these, or a kernel before 5.8.
    """
    if name == "all":
        return list(PROFILES.values())
    if name in ("v3", "review"):
        return [PROFILES[name]]
    try:
        release = parse_auto() if name == AUTO else parse(name)
    except ReleaseError as error:
        raise PlanError(f"unknown kernel '{name[:80]}': {error.what}", near=error.near) from None
    found = profile_of(release)
    if found is None:
        raise PlanError(
            f"kernel '{name[:80]}' does not restore nested SVM state: Linux 5.8 is the first",
            near=("5.8",),
        )
    return [found]


def parse_auto() -> Release:
    """The release of this host's kernel.

    :raises ReleaseError: it has none.
    """
    host = platform.uname()
    try:
        with open("/proc/version_signature", encoding="utf-8", errors="replace") as file:
            signature = file.read(200)
    except OSError:
        signature = ""
    return parse(host.release, host.version, signature)
