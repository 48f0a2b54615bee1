"""Which release the kernels of Red Hat and SUSE are judged as.

Their numbers say where the tree began.  Their KVM is brought up to that of a later
release now and then; which one follows from the build number, as far as that is known.
None of this was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from qemu_svm.model.kernels.release import Distribution, Release

_Bounds = tuple[tuple[int, tuple[int, int, int], str], ...]

_RHEL: Mapping[str, _Bounds] = {
    "8": (
        (240, (5, 8, 0), "nested state came with RHEL 8.3"),
        (348, (5, 15, 0), "RHEL 8.5 has vmcb01 and vmcb02 and loads L2's CR3 before the switch"),
        (372, (5, 17, 0), "RHEL 8.6 and later have the fixes of 5.17"),
    ),
    "9": (
        (0, (5, 15, 25), "RHEL 9.0 has the fixes of 5.15's stable updates"),
        (162, (5, 19, 0), "the KVM of RHEL 9.1 is about that of 5.19"),
        (284, (6, 1, 76), "the KVM of RHEL 9.2 and 9.3 is about that of 6.1"),
        (427, (6, 6, 14), "the KVM of RHEL 9.4 is about that of 6.6"),
        (503, (6, 10, 0), "the KVM of RHEL 9.5 is about that of 6.10"),
        (570, (6, 12, 0), "the KVM of RHEL 9.6 and later is about that of 6.12"),
    ),
    "10": ((0, (6, 12, 0), "RHEL 10 began with 6.12"),),
}
"""By release: from which build on, judged as, why."""

_SUSE: Mapping[str, tuple[tuple[int, int, int], str]] = {
    "5.14": ((5, 15, 25), "SUSE's 5.14.21 has the fixes of 5.15's stable updates"),
    "6.4": ((6, 6, 14), "SUSE's 6.4 has fixes of later stable updates"),
}


def judged_as(release: Release) -> tuple[Release, str]:
    """The release whose behaviour is taken, and why; the same and "" if it says its own."""
    if not release.vendor_tree:
        return release, ""
    numbers, why = release.numbers, "nothing is known of what was added to it"
    if release.distribution is Distribution.RHEL:
        named = re.search(r"-(\d+)[\w.]*\.el(\d+)", release.text, re.ASCII)
        bounds = _RHEL.get(named[2], ()) if named is not None else ()
        for build, judged, because in bounds:
            if named is not None and int(named[1]) >= build:
                numbers, why = judged, because
    elif release.series in _SUSE:
        numbers, why = _SUSE[release.series]
    major, minor, update = numbers
    return replace(release, major=major, minor=minor, update=update), why
