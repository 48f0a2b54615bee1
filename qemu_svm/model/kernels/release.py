"""A kernel's release, read from ``uname -r`` and what else names it.

Most kernels state their stable update (``6.12.118``, ``6.8.12-4-pve``). Some
distributions hide it: Debian's ``6.1.0-50-amd64`` is 6.1.176, which ``uname -v``
and the table of ABI numbers in :mod:`~qemu_svm.model.kernels.abi` say; Ubuntu's
``5.15.0-91-generic`` is 5.15.131, which ``/proc/version_signature`` says.  The
kernels of Red Hat and SUSE carry a number and much that came after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from qemu_svm.errors import PathError
from qemu_svm.model.kernels import abi


class ReleaseError(PathError):
    """A text that is not the release of a kernel.

    :param near: releases that resemble it.
    """

    rule = "release"


class Distribution(StrEnum):
    """Who built a kernel."""

    MAINLINE = "mainline"
    DEBIAN = "Debian"
    UBUNTU = "Ubuntu"
    PROXMOX = "Proxmox"
    RHEL = "RHEL"
    AMAZON = "Amazon"
    ORACLE = "Oracle UEK"
    SUSE = "SUSE"
    FEDORA = "Fedora"
    ARCH = "Arch"
    LIQUORIX = "Liquorix"
    ELREPO = "ELRepo"
    OPENEULER = "openEuler"
    OTHER = "another distribution"


class Known(StrEnum):
    """How the stable update is known."""

    STATED = "stated"
    """The text names it."""
    MAPPED = "mapped"
    """A table of the distribution's numbers names it."""
    AT_LEAST = "at least"
    """It is this one or a later one."""
    CANDIDATE = "release candidate"
    """It precedes the mainline release and is taken for it."""
    NEWEST = "newest known"
    """Only the series was given; this is the newest update in the table."""


@dataclass(frozen=True, slots=True)
class Release:
    """A kernel.

    :param update: number of the stable update; 0 is the mainline release.
    :param known: how ``update`` is known.
    :param text: the words that were read.
    :param vendor_tree: the number says where the tree began, not what it contains now
        (Red Hat, SUSE Linux Enterprise, openEuler).
    """

    major: int
    minor: int
    update: int
    distribution: Distribution = Distribution.MAINLINE
    known: Known = Known.STATED
    text: str = ""
    vendor_tree: bool = False

    def __str__(self) -> str:
        if self.known is Known.CANDIDATE:
            return f"a release candidate of {self.series}"
        unknown = self.known is Known.AT_LEAST and not self.update
        return self.series if unknown else self.version

    @property
    def series(self) -> str:
        """The series, such as ``6.12``."""
        return f"{self.major}.{self.minor}"

    @property
    def numbers(self) -> tuple[int, int, int]:
        """For comparison."""
        return self.major, self.minor, self.update

    @property
    def version(self) -> str:
        """All three numbers, such as ``6.1.0``."""
        return f"{self.series}.{self.update}"


_BASE = re.compile(
    r"v?(\d{1,2})\.(\d{1,3})(?!\d)(?:\.(\d{1,4})(?!\d)|(?!\.\d))((?![A-Za-z0-9])[^\x00-\x1f\x7f-\x9f]*)",
    re.ASCII | re.S,
)
_RC = re.compile(r"(?<![a-z])rc\d+", re.ASCII)
_PREFIX = re.compile(
    r"(?:linux(?:-image)?(?:-unsigned)?|kernel(?:-core|-uek|-default|-rt)?|vmlinu[xz])[-_ ]",
    re.ASCII | re.IGNORECASE,
)
_UNAME_ALL = re.compile(r"Linux (?:version|\S{1,253}) (\d\S*)(?: (.*))?", re.ASCII | re.S)
_MAINLINE_BUILD = re.compile(
    r"-0(\d)(\d\d)(\d\d)(?:rc\d+)?(?:daily\w*)?-(?:generic|lowlatency)$", re.A
)
"""Ubuntu's builds of mainline kernels: 6.12.58-061258-generic."""


def parse(text: str, version: str = "", signature: str = "") -> Release:
    """Read a kernel's release.

    :param text: ``uname -r``, a version such as ``6.12.118`` or ``6.1``, ``uname -a``, or the
        name of a package or image (``linux-image-6.1.0-44-amd64``).
    :param version: ``uname -v``, if there is one: Debian's names the stable update.
    :param signature: ``/proc/version_signature`` of Ubuntu.
    :raises ReleaseError: if the text does not begin with a kernel's version.
    """
    text = text.strip()
    whole = _UNAME_ALL.fullmatch(text)
    if whole is not None:
        text, version = whole[1], version or whole[2] or ""
    text = text[(prefix.end() if (prefix := _PREFIX.match(text)) is not None else 0) :]
    base = _BASE.fullmatch(text)
    if base is None:
        raise ReleaseError(
            f"'{text[:80]}' is not the release of a kernel (such as 6.12.118 or uname -r)",
            near=_near(text),
        )
    major, minor, rest = int(base[1]), int(base[2]), base[4]
    update = None if base[3] is None else int(base[3])
    found = _named(major, minor, update, rest, text)
    if not update and re.search(rf"(?<![\d.]){major}\.{minor}(?:\.0)?~rc\d", version, re.ASCII):
        return replace(found, update=0, known=Known.CANDIDATE)
    better = _update_in(major, minor, (signature.rpartition(" ")[2], version))
    if better is not None:
        return Release(
            major, minor, better, found.distribution, Known.STATED, text, found.vendor_tree
        )
    return found


def parse_if_any(text: str, version: str = "", signature: str = "") -> Release | None:
    """Like :func:`parse`; None if there is no version in the text."""
    try:
        return parse(text, version, signature)
    except ReleaseError:
        return None


def _near(text: str) -> tuple[str, ...]:
    inside = re.search(r"\d{1,2}\.\d{1,3}", text, re.ASCII)
    if inside is not None and inside.group() in abi.NEWEST:
        return (inside.group(),)
    digits = re.sub(r"[^\d.]", "", text).strip(".")[:1]
    return tuple(one for one in abi.NEWEST if one.startswith(digits))[-3:] or _LATEST


_LATEST = tuple(abi.NEWEST)[-3:]


def _update_in(major: int, minor: int, texts: tuple[str, str]) -> int | None:
    pattern = rf"(?<![\d.]){major}\.{minor}\.(\d{{1,4}})(?![\d.])"
    for text in texts:
        found = re.search(pattern, text, re.ASCII)
        if found is not None:
            return int(found[1])
    return None


def _named(major: int, minor: int, update: int | None, rest: str, text: str) -> Release:
    candidate = not update and _RC.search(rest) is not None
    for distribution, pattern, number in _DISTRIBUTIONS:
        found = pattern.search(rest)
        if found is None:
            continue
        if distribution is Distribution.RHEL and (major, minor, update) not in _OF_RHEL:
            break  # a package of somebody else for Red Hat's distributions
        vendor = distribution in (Distribution.RHEL, Distribution.OPENEULER) or (
            distribution is Distribution.SUSE and found.group() != found["plain"]
        )
        known, value = Known.STATED if update else Known.AT_LEAST, update or 0
        if candidate:
            known = Known.CANDIDATE
        elif number is not None and not update:
            known, value = number(f"{major}.{minor}", found)
        return Release(major, minor, value, distribution, known, text, vendor)
    if candidate:
        return Release(major, minor, 0, known=Known.CANDIDATE, text=text)
    if update is None and not rest.strip(" -+.y"):
        newest = abi.NEWEST.get(f"{major}.{minor}")
        known = Known.AT_LEAST if newest is None else Known.NEWEST
        return Release(major, minor, newest or 0, known=known, text=text)
    if update is not None and not rest:
        return Release(major, minor, update, text=text)
    # "6.8.0-something": most distributions put 0 for whatever update it is.
    known = Known.STATED if update else Known.AT_LEAST
    return Release(major, minor, update or 0, Distribution.OTHER, known, text)


_Number = Callable[[str, "re.Match[str]"], tuple[Known, int]]


def _debian(series: str, found: re.Match[str]) -> tuple[Known, int]:
    first, last = abi.debian(series, int(found["abi"]))
    return (Known.MAPPED if first == last else Known.AT_LEAST), first


def _ubuntu(series: str, found: re.Match[str]) -> tuple[Known, int]:
    exact, update = abi.ubuntu(series, int(found["abi"]))
    return (Known.MAPPED if exact else Known.AT_LEAST), update


def _mainline_build(_series: str, found: re.Match[str]) -> tuple[Known, int]:
    return Known.STATED, int(found[3])


def _liquorix(_series: str, found: re.Match[str]) -> tuple[Known, int]:
    return Known.MAPPED, int(found["stable"])


def _oracle(_series: str, found: re.Match[str]) -> tuple[Known, int]:
    # 5.15.0-206.153.7: the second number is the stable update that was merged last.
    return Known.MAPPED, int(found["stable"])


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.ASCII | re.X)


_OF_RHEL = frozenset({(2, 6, 32), (3, 10, 0), (4, 18, 0), (5, 14, 0), (6, 12, 0)})
"""Versions with which Red Hat's releases 6 to 10 began."""

_DISTRIBUTIONS: tuple[tuple[Distribution, re.Pattern[str], _Number | None], ...] = (
    (Distribution.PROXMOX, _pattern(r"-pve(?![a-z])"), None),
    (Distribution.ORACLE, _pattern(r"-\d+\.(?P<stable>\d{1,3})\.\d[\d.]*\.el\d+uek"), _oracle),
    (Distribution.ORACLE, _pattern(r"\.el\d+uek"), None),
    (Distribution.ELREPO, _pattern(r"\.elrepo"), None),
    (Distribution.RHEL, _pattern(r"\.el\d+(?:[_.]|$)"), None),
    (Distribution.OPENEULER, _pattern(r"\.(?:oe|ky|hce|uelc)\d"), None),
    (Distribution.LIQUORIX, _pattern(r"^-(?P<stable>\d{1,3})\.\d+-liquorix"), _liquorix),
    (Distribution.LIQUORIX, _pattern(r"-liquorix"), None),
    (Distribution.AMAZON, _pattern(r"\.amzn\d+"), None),
    (Distribution.FEDORA, _pattern(r"\.fc\d+"), None),
    (Distribution.SUSE, _pattern(r"(?P<plain>^-\d{1,5}(?:\.g[0-9a-f]+)?-default$)"), None),
    (Distribution.SUSE, _pattern(r"-1[56]\d{4}\.[\d.]+-[a-z0-9]+(?P<plain>$)"), None),
    (Distribution.ARCH, _pattern(r"-(?:arch|zen)\d|^-\d+-(?:lts|hardened)$"), None),
    (
        Distribution.DEBIAN,
        _pattern(r"^-(?:0\.(?:deb\d+|bpo)\.)?(?P<abi>\d+)(?:-cloud|-rt)?-(?:amd64|686(?:-pae)?|arm64)(?:-unsigned)?$"),
        _debian,
    ),
    (Distribution.DEBIAN, _pattern(r"^\+(?:deb|bpo|kali)\d|^-(?:cloud-|rt-)?amd64$"), None),
    (Distribution.UBUNTU, _MAINLINE_BUILD, _mainline_build),
    (
        Distribution.UBUNTU,
        _pattern(r"""^-(?P<abi>\d+)-(?:generic|lowlatency|virtual|kvm|aws|azure|gcp|gke|gkeop|ibm
                     |oem|oracle|intel|nvidia|raspi|realtime|hwe|lts)"""),
        _ubuntu,
    ),
)  # fmt: skip
"""How ``uname -r`` continues after the version, and how the update is found if that is 0."""
