"""A kernel's release, and the profile that fits it.

Distributions hide the stable update: Debian's ``uname -r`` is ``6.1.0-50-amd64``
for 6.1.176, and ``uname -v`` tells; Ubuntu's is ``5.15.0-91-generic`` for
5.15.131, and ``/proc/version_signature`` tells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qemu_svm.model.profiles import PROFILES, Profile

_FIRST: tuple[tuple[tuple[int, ...], str], ...] = (
    ((5, 8), "5.8"),
    ((5, 10), "5.10"),
    ((5, 10, 262), "5.10.262"),
    ((5, 11), "5.11"),
    ((5, 13), "5.13"),
    ((5, 14), "5.15"),
    ((5, 17), "5.17"),
    ((6, 1), "6.1"),
    ((6, 2), "6.6"),
    ((6, 7), "6.12"),
    ((6, 12, 117), "6.12.117"),
    ((6, 13), "6.12"),
    ((7, 0), "7.2"),
)
"""From which release on a profile is the best there is (``docs/kernels.md``)."""


@dataclass(frozen=True, slots=True)
class Release:
    """A kernel's version.

    :param update: number of the stable update; None if it is not told.
    """

    major: int
    minor: int
    update: int | None = None

    def __str__(self) -> str:
        line = f"{self.major}.{self.minor}"
        return line if self.update is None else f"{line}.{self.update}"

    @property
    def numbers(self) -> tuple[int, int, int]:
        """For comparison; an update that is not told counts as the first."""
        return self.major, self.minor, self.update or 0

    def measured(self, kernel: Profile) -> bool:
        """Whether a kernel of this release line was measured for that profile."""
        line = f"{self.major}.{self.minor}."
        return any(one.startswith(line) for one in kernel.measured)


def release(name: str, version: str = "", signature: str = "") -> Release | None:
    """Read a kernel's version; None if there is none in the texts.

    :param name: ``uname -r``.
    :param version: ``uname -v``.
    :param signature: ``/proc/version_signature``.
    """
    base = re.match(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,4}))?", name, re.ASCII)
    if base is None:
        return None
    line = rf"(?<![\d.]){base[1]}\.{base[2]}\.(\d{{1,4}})(?![\d.])"
    for text in (signature.rpartition(" ")[2], version):
        better = re.search(line, text, re.ASCII)
        if better is not None:
            return Release(int(base[1]), int(base[2]), int(better[1]))
    # 0 stands for whatever update it is.
    return Release(int(base[1]), int(base[2]), int(base[3] or 0) or None)


def profile(found: Release) -> Profile | None:
    """The profile that fits a release best; None before Linux 5.8."""
    name = None
    for first, candidate in _FIRST:
        if found.numbers >= first:
            name = candidate
    return None if name is None else PROFILES[name]
