"""The profile of a release, derived from the table of changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from qemu_svm.model.kernels.changes import Change
from qemu_svm.model.kernels.release import Release
from qemu_svm.model.kernels.table import CHANGES
from qemu_svm.model.profiles import FIRST, Profile, in_order

FIRST_SERIES = (5, 8)
"""The first series that saves and restores nested SVM state."""

_SREGS = ("R-01", "R-02", "R-03", "R-04", "R-07", "R-05")
_VMRUN = "vmrun."


def profile_of(release: Release) -> Profile | None:
    """What a kernel does; None before Linux 5.8.

    The profile is named after the release that it was derived for.
    """
    if release.numbers[:2] < FIRST_SERIES:
        return None
    return replace(_derived(*release.numbers), name=release.version)


@lru_cache(maxsize=256)
def _derived(major: int, minor: int, update: int) -> Profile:
    release = Release(major, minor, update)
    profile = FIRST
    for change in CHANGES:
        if change.effective and change.is_in(release):
            profile = _with(profile, change)
    return profile


def _with(profile: Profile, change: Change) -> Profile:
    checks = (set(profile.set_nested_state) | set(change.gains)) - set(change.loses)
    known = {*profile.sregs, *change.sregs}
    fields: dict[str, Any] = {
        "set_nested_state": in_order(checks),
        "sregs": tuple(check for check in _SREGS if check in known),
    }
    vmrun: dict[str, Any] = {}
    for name, value in _values(profile, change).items():
        if name.startswith(_VMRUN):
            vmrun[name.removeprefix(_VMRUN)] = value
        else:
            fields[name] = value
    return replace(profile, **fields, vmrun=replace(profile.vmrun, **vmrun))


def _values(profile: Profile, change: Change) -> Mapping[str, object]:
    values = dict(change.sets)
    for name, more in change.adds.items():
        part = profile.vmrun if name.startswith(_VMRUN) else profile
        values[name] = getattr(part, name.removeprefix(_VMRUN)) | more
    return values
