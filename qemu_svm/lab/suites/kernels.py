"""Kernels by their exact version: which Debian archives have them, and in which packages.

Debian's suites keep the packages of several stable updates, because each has a package
name of its own: ``linux-image-6.12.105+deb13-amd64``.  From Linux 6.19 on a kernel is in
three packages, of which ``linux-image-…`` is the empty one that depends on the others.
"""

from __future__ import annotations

import functools
import mmap
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu_svm.errors import LabError, PlanError
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import apt
from qemu_svm.lab.suites.cache import Manifest
from qemu_svm.lab.suites.catalogue import KERNELS, SUITES, Suite, of_kernel
from qemu_svm.model.kernels.release import Known, ReleaseError, parse
from qemu_svm.model.profiles import AUTO, parse_auto

Order = tuple[int, int, int, int]
"""A version for comparison: three numbers, and that of a release candidate."""

_FINAL = 1 << 16  # a release comes after all its candidates
_UPSTREAM = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:[~-]rc(\d+))?", re.ASCII)
_CANDIDATE = re.compile(r"v?(\d+\.\d+)[~-](rc\d+)", re.ASCII)
_PACKAGE_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?(?:~rc\d+)?-\d[\d.]*(?:[~+][\w.+~]+)?", re.ASCII)

# An entry of a list of packages: a kernel's parts, in their plain flavour.
_ENTRY = re.compile(rb"^Package: linux-(image|binary|modules|base)-(\d\S*-amd64)\n(?:.+\n)*", re.M)
_FIELD = re.compile(r"^(Version|Size|Depends): (.*)$", re.M)
_OTHER_FLAVOUR = re.compile(r"(?:^|-)(?:cloud|rt)-|-dbg")
_PART = r"linux-(?:binary|modules|base)-{}(?![\w.+-])"
_BASE = "linux-base-"  # configuration and symbols, which a box does not need
_ANOTHER_IMAGE = re.compile(r"(?:^|, )linux-image-\d")


@dataclass(frozen=True, slots=True)
class Archive:
    """A suite of a mirror that has kernels.

    :param name: Debian's name of the suite.
    :param first: the oldest series that it can have.
    :param last: the newest one; None if it moves on.
    :param security: it is beside the others, in ``debian-security``.
    """

    name: str
    first: tuple[int, int]
    last: tuple[int, int] | None
    security: bool = False

    def can_have(self, order: Order) -> bool:
        """Whether a kernel of that version can be there."""
        return self.first <= order[:2] and (self.last is None or order[:2] <= self.last)


ARCHIVES = (
    Archive("trixie-security", (6, 12), None, security=True),
    Archive("trixie", (6, 12), (6, 12)),
    Archive("bookworm-security", (6, 1), (6, 12), security=True),
    Archive("bookworm", (6, 1), (6, 1)),
    Archive("bullseye-security", (5, 10), (6, 1), security=True),
    Archive("bullseye", (5, 10), (5, 10)),
    Archive("trixie-backports", (6, 16), None),
    Archive("bookworm-backports", (6, 4), (6, 12)),
    Archive("bullseye-backports", (5, 14), (6, 1)),
    Archive("forky", (6, 16), None),
    Archive("sid", (6, 16), None),
    Archive("experimental", (6, 16), None),
)
"""In the order in which a kernel is looked for: a release's own before backports."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that an archive lists.

    :param version: of its package, ``6.12.105-1``.
    :param release: what its ``uname -r`` says, ``6.12.105+deb13-amd64``.
    :param suite: Debian's name of the suite.
    :param mirror: URL of the mirror.
    :param packages: those that it consists of.
    :param missing: those of them that the archive does not have any more.
    :param size: bytes to download.
    """

    version: str
    release: str
    suite: str
    mirror: str
    packages: tuple[str, ...]
    missing: tuple[str, ...] = ()
    size: int = 0

    @property
    def name(self) -> str:
        """Its name in the cache."""
        return f"linux-{self.version}"

    @property
    def upstream(self) -> str:
        """The stable update that it is made from: ``6.12.105``, ``7.3~rc7``."""
        return upstream_of(self.version)

    @property
    def order(self) -> Order:
        """Its version for comparison, without Debian's revision."""
        return order_of(self.version)

    @property
    def name_for_option(self) -> str:
        """What ``--kernel`` takes for this update: ``6.12.105``, ``7.3-rc7``."""
        return version_of(self.order)

    @property
    def complete(self) -> bool:
        """Whether it can be had."""
        return not self.missing


@dataclass(frozen=True, slots=True)
class Wanted:
    """A kernel that somebody names.

    :param text: as given.
    :param order: the version for comparison.
    :param exactly: version of the package or ``uname -r``, if the text is one of these.
    :param whole_series: any update of the series will do; the newest is taken.
    """

    text: str
    order: Order
    exactly: bool = False
    whole_series: bool = False

    def is_met_by(self, version: str, release: str) -> bool:
        """Whether that kernel is the one.

        :param version: of its package.
        """
        if self.exactly:
            return self.text in (version, release)
        found = order_of(version)
        return found[:2] == self.order[:2] if self.whole_series else found == self.order

    @property
    def words(self) -> str:
        """The name for messages."""
        if self.exactly:
            return self.text
        return "{}.{}".format(*self.order) if self.whole_series else version_of(self.order)


def upstream_of(version: str) -> str:
    """Return the upstream part of a package's version: ``6.12.105``, ``7.3~rc7``."""
    return version.rpartition("-")[0] or version


def order_of(version: str) -> Order:
    """Return a version for comparison: that of a package, or of a release.

    :raises LabError: it does not begin with numbers.
    """
    found = _UPSTREAM.match(version)
    if found is None:
        raise LabError(f"'{version[:80]}' is not the version of a kernel")
    major, minor, update, candidate = (None if one is None else int(one) for one in found.groups())
    assert major is not None
    assert minor is not None
    return major, minor, update or 0, _FINAL if candidate is None else candidate


def version_of(order: Order) -> str:
    """Return a version as it is written: ``6.12.105``, ``7.3-rc7``."""
    major, minor, update, candidate = order
    return f"{major}.{minor}-rc{candidate}" if candidate != _FINAL else f"{major}.{minor}.{update}"


def wanted(text: str) -> Suite | Wanted:
    """Read the name of a kernel: of a suite's line (``6.12``), or of one kernel.

    One kernel is a stable update (``6.12.105``), ``uname -r``, the version of a package
    (``6.12.90-2``), a release candidate (``7.3-rc7``), or a series that no suite
    of the catalogue has (``6.18``: its newest update there is).

    :raises PlanError: it is none of these.
    """
    if text in KERNELS:
        return of_kernel(text)
    if _PACKAGE_VERSION.fullmatch(text):
        return Wanted(text, order_of(text), exactly=True)
    candidate = _CANDIDATE.fullmatch(text)
    if candidate:
        return Wanted(text, order_of(f"{candidate[1]}-{candidate[2]}"))
    try:
        release = parse_auto() if text == AUTO else parse(text)
    except ReleaseError as error:
        near = (*error.near, *(one for one in KERNELS if one not in error.near))
        raise PlanError(f"unknown kernel '{text[:80]}': {error.what}", near=near) from None
    return Wanted(
        release.text, (*release.numbers, _FINAL), exactly=release.text.endswith("amd64"),
        whole_series=release.known is Known.NEWEST,
    )  # fmt: skip


def user_land(kernel: Suite | Wanted) -> Suite:
    """Return the suite whose QEMU and user land go with a kernel by default.

    That of the newest catalogued kernel that is not newer than this one.
    """
    if isinstance(kernel, Suite):
        return kernel
    older = [one for one in SUITES if order_of(one.kernel)[:2] <= kernel.order[:2]]
    return older[-1] if older else SUITES[0]


def find(kernel: Wanted, *, mirror: str | None = None, progress: Progress = SILENT) -> Kernel:
    """Return the kernel that is meant, as the first archive that has it lists it.

    :raises LabError: no archive has it; the hint names the nearest that can be had.
    """
    main = main_mirror(mirror)
    # In the past, a suite had other series.
    dated = apt.is_snapshot(main)
    likely = [one for one in ARCHIVES if dated or one.can_have(kernel.order)]
    seen: list[Kernel] = []
    best: list[Kernel] = []
    for found in _listed(likely, mirror, progress):
        seen += found
        met = [one for one in found if kernel.is_met_by(one.version, one.release)]
        best += [one for one in met if one.complete]
        if best and not kernel.whole_series:
            break
    if best:
        return max(best, key=_sorting)
    for found in _listed([one for one in ARCHIVES if one not in likely], mirror, progress):
        seen += found
    if not seen:
        raise no_kernels(main)
    raise _not_to_be_had(kernel, seen, main)


def available(*, mirror: str | None = None, progress: Progress = SILENT) -> tuple[Kernel, ...]:
    """Return all kernels that the archives list, oldest first, each once.

    :raises LabError: the mirror cannot be reached, or a signature is wrong.
    """
    found: dict[str, Kernel] = {}
    for kernels in _listed(ARCHIVES, mirror, progress):
        for one in kernels:
            if one.version not in found or (one.complete and not found[one.version].complete):
                found[one.version] = one
    return tuple(sorted(found.values(), key=_sorting))


def no_kernels(mirror: str) -> LabError:
    """Return the error for a mirror that has no suite with kernels."""
    return apt.Gone(
        f"{mirror} has no suite with kernels",
        hint="a Debian mirror has dists/bookworm/InRelease; see --mirror",
    )


def main_mirror(mirror: str | None) -> str:
    """Return the URL of a mirror without a slash at its end; that of the host for None."""
    return mirror.rstrip("/") if mirror else apt.host_mirror()


def between(
    first: Order, last: Order, *, mirror: str | None = None, progress: Progress = SILENT
) -> tuple[Kernel, ...]:
    """Return the kernels between two versions that can be had, one of each update.

    :raises LabError: the mirror cannot be reached, or a signature is wrong.
    """
    dated = apt.is_snapshot(main_mirror(mirror))
    archives = [
        one for one in ARCHIVES
        if dated or (one.first <= last[:2] and (one.last is None or first[:2] <= one.last))
    ]  # fmt: skip
    found: dict[Order, Kernel] = {}
    for kernels in _listed(archives, mirror, progress):
        for one in kernels:
            if one.complete and first < one.order < last:
                known = found.get(one.order)
                if known is None or sorting(known.version) < sorting(one.version):
                    found[one.order] = one
    return tuple(found[order] for order in sorted(found))


def of_manifest(manifest: Manifest) -> Kernel:
    """Return the kernel of something in the cache."""
    image = f"linux-image-{manifest.release}"
    return Kernel(manifest.kernel, manifest.release, manifest.suite, manifest.mirror, (image,))


def _listed(
    archives: Sequence[Archive], mirror: str | None, progress: Progress
) -> Iterator[list[Kernel]]:
    # The kernels of each archive that the mirror has.
    main = main_mirror(mirror)
    for archive in archives:
        url = apt.security_mirror(mirror) if archive.security else main
        with host_faults("make a directory for lists of packages"):
            made = tempfile.TemporaryDirectory(prefix="svmstream-apt-")
        with made as folder:
            private = Path(folder) / "apt"
            try:
                source, _remarks = apt.updated(archive.name, url, private, progress, archive=None)
            except apt.Gone:
                continue
            found = read_list(source)
        yield found


def read_list(source: apt.Apt) -> list[Kernel]:
    """Return the kernels in a suite's list of packages, oldest first.

    :raises LabError: the list cannot be read.
    """
    with host_faults(f"read the list of packages of {source.suite}"):
        entries = list(_entries(source.lists()))
    parts = {(package, version): size for package, _, version, size, _ in entries}
    found = []
    for package, release, version, size, depends in entries:
        if not package.startswith("linux-image-") or _ANOTHER_IMAGE.search(depends):
            continue
        others = sorted(set(re.findall(_PART.format(re.escape(release)), depends)))
        there = [one for one in others if (one, version) in parts]
        missing = [one for one in others if one not in there and not one.startswith(_BASE)]
        total = size + sum(parts[one, version] for one in there)
        names = (package, *there)
        found.append(
            Kernel(version, release, source.suite, source.mirror, names, tuple(missing), total)
        )
    return sorted(found, key=_sorting)


def _entries(lists: Iterable[Path]) -> Iterator[tuple[str, str, str, int, str]]:
    # Package, release of its kernel, version, size, dependencies.
    for path in lists:
        if not path.stat().st_size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as text:
            for entry in _ENTRY.finditer(text):
                part, release = entry[1].decode(), entry[2].decode()
                if _OTHER_FLAVOUR.search(release):
                    continue
                fields = dict(_FIELD.findall(entry[0].decode(errors="replace")))
                version = fields.get("Version", "")
                if not _PACKAGE_VERSION.fullmatch(version):
                    continue
                yield (
                    f"linux-{part}-{release}", release, version, int(fields.get("Size", "0")),
                    fields.get("Depends", ""),
                )  # fmt: skip


def _not_to_be_had(kernel: Wanted, seen: list[Kernel], where: str) -> LabError:
    listed = next((one for one in seen if kernel.is_met_by(one.version, one.release)), None)
    if listed is not None:
        why = f"{listed.suite} lists it, but has no package {listed.missing[0]} any more"
    else:
        why = f"no suite on {where} has it"
    usable = sorted((one for one in seen if one.complete), key=_sorting)
    below = [one for one in usable if one.order <= kernel.order][-1:]
    above = [one for one in usable if one.order > kernel.order][:1]
    near = " and ".join(f"{version_of(one.order)} ({one.suite})" for one in (*below, *above))
    return LabError(
        f"Linux {kernel.words} cannot be had: {why}",
        hint=(f"nearest: {near}; " if near else "")
        + "all: svmstream lab list --available; older ones: --mirror " + apt.SNAPSHOT,
    )  # fmt: skip


@functools.cmp_to_key
def sorting(one: str, other: str) -> int:
    """Order versions of packages: by the kernel's, then by Debian's rules for the rest.

    :raises LabError: dpkg is not installed.
    """
    first, second = order_of(one), order_of(other)
    if first != second:
        return -1 if first < second else 1
    if one == other:
        return 0
    with host_faults("run dpkg"):
        done = subprocess.run(["dpkg", "--compare-versions", one, "lt", other], check=False)
    return -1 if done.returncode == 0 else 1


def _sorting(kernel: Kernel) -> Any:
    return sorting(kernel.version)
