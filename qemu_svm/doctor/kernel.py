"""A kernel's release, and the profile of :mod:`qemu_svm.restore.kernels` for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qemu_svm.restore.kernels import KERNELS, Kernel
from qemu_svm.restore.rules import RULES, Rule

Version = tuple[int, int, int]

_LINES: tuple[tuple[tuple[int, int], str], ...] = (
    ((5, 8), "5.8"),
    ((5, 10), "5.10"),
    ((5, 11), "5.11"),
    ((5, 13), "5.13"),
    ((5, 14), "5.15"),
    ((5, 17), "5.17"),
    ((6, 1), "6.1"),
    ((6, 2), "6.6"),
    ((6, 7), "6.12"),
    ((7, 0), "7.2"),
)
"""First release line that a profile stands for (``docs/kernels.md``)."""

_UPDATES: tuple[tuple[Version, str], ...] = (
    ((5, 10, 262), "5.10.262"),
    ((6, 12, 117), "6.12.117"),
)
"""Stable updates that changed behaviour inside a line."""

_MEASURED_LINES = frozenset({(5, 10), (6, 1), (6, 12), (7, 2)})


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile that fits a release best.

    :param version: the release as numbers; the last is None if it is not told.
    :param measured: a kernel of this line was measured.
    """

    kernel: Kernel
    version: tuple[int, int, int | None]
    measured: bool


def version_of(
    release: str, version: str = "", signature: str | None = None
) -> tuple[int, int, int | None] | None:
    """Read a kernel's version.

    :param release: ``uname -r``; Debian's and Ubuntu's has no stable update.
    :param version: ``uname -v``, where Debian writes it.
    :param signature: ``/proc/version_signature``, where Ubuntu writes it.
    :returns: None if there is no version in the text.
    """
    base = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if base is None:
        return None
    major, minor = int(base[1]), int(base[2])
    for text in ((signature or "").rpartition(" ")[2], version):
        better = re.search(rf"(?<![\d.]){major}\.{minor}\.(\d+)(?![\d.])", text)
        if better is not None:
            return major, minor, int(better[1])
    # A third number of 0 is what a distribution leaves of "6.1.0-50-amd64".
    update = int(base[3]) if base[3] else None
    return major, minor, update or None


def profile_of(version: tuple[int, int, int | None]) -> Profile | None:
    """The profile for a version; None for kernels before 5.8."""
    major, minor, update = version
    name = None
    for first, candidate in _LINES:
        if (major, minor) >= first:
            name = candidate
    for (a, b, c), candidate in _UPDATES:
        if (a, b) == (major, minor) and update is not None and update >= c:
            name = candidate
    if name is None:
        return None
    return Profile(KERNELS[name], version, (major, minor) in _MEASURED_LINES)


def known_bugs(kernel: Kernel) -> list[Rule]:
    """Rules that single out this kernel and not all of them: its known bugs."""
    return [
        rule
        for rule in RULES.values()
        if rule.kind in ("advisory", "order") and kernel.name in rule.kernels
    ]
