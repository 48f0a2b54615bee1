"""The packages that a module is built from: headers and compiler, and source of the same update."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.progress import Progress
from qemu_svm.lab.suites import apt, kernels
from qemu_svm.lab.suites.cache import Manifest
from qemu_svm.lab.suites.catalogue import SUITES

_POCKETS = ("-security", "-backports")
_ROLLING = ("sid", "experimental")  # their compiler is testing's
_ENTRY = r"^Package: (linux-%s)\n(?:.+\n)*?Version: (\d\S+)\n"
_SOURCE = re.compile((_ENTRY % r"source-\d[\d.]*").encode(), re.M)
_HEADERS = re.compile((_ENTRY % r"headers-\d\S*-amd64").encode(), re.M)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Archives of packages.

    :param tools: headers, compiler and programs, with all that they depend on.
    :param source: of the kernel.
    :param origin: version of the source's package, and the suite that it is from.
    """

    tools: list[Path]
    source: Path
    origin: str


def fetched(manifest: Manifest, tools: Sequence[str], folder: Path, progress: Progress) -> Fetched:
    """Download what is needed to build modules of a kernel.

    :param folder: a directory for it, which is emptied.
    :raises LabError: no suite has the headers or the source; or no network.
    """
    version, series = manifest.kernel, "{}.{}".format(*kernels.order_of(manifest.kernel))
    base = base_suite(manifest.suite)
    main, beside = manifest.mirror, []
    if base != manifest.suite:
        main = kernels.main_mirror(None) if "-security" in manifest.suite else manifest.mirror
        beside = [(manifest.suite, manifest.mirror)]
    where, _remarks = apt.updated(
        base, main, folder / "tools", progress, archive=apt.ARCHIVE, beside=beside
    )
    listed = dict(_listed(where, _HEADERS))
    if listed.get(f"linux-headers-{manifest.release}") != version:
        raise LabError(
            f"{manifest.suite} no longer has the headers of Linux {version}",
            hint="nearest: " + _nearest(version, dict.fromkeys(listed.values(), "")),
        )
    headers = f"linux-headers-{manifest.release}={version}"
    archives = where.download((headers, *tools), progress)
    name = f"linux-source-{series}"
    wanted = kernels.upstream_of(version)
    seen: dict[str, str] = {}
    for place in _with_source(manifest, where, folder / "source", progress):
        found = {number for package, number in _listed(place, _SOURCE) if package == name}
        same = sorted(one for one in found if kernels.upstream_of(one) == wanted)
        if same:
            best = version if version in same else same[-1]
            source = place.download_only([name], best, progress)[name]
            return Fetched(list(archives.values()), source, f"{name} {best} of {place.suite}")
        seen |= {one: place.suite for one in found if one not in seen}
    raise _no_source(version, seen)


def base_suite(suite: str) -> str:
    """Return the suite whose compiler goes with the kernels of a suite."""
    if suite in _ROLLING:
        return SUITES[-1].name
    for pocket in _POCKETS:
        suite = suite.removesuffix(pocket)
    return suite


def _with_source(
    manifest: Manifest, first: apt.Apt, folder: Path, progress: Progress
) -> Iterator[apt.Apt]:
    # Suites that may have the source of a kernel, that of the kernel itself first.
    yield first
    order = kernels.order_of(manifest.kernel)
    done = {manifest.suite, base_suite(manifest.suite)}
    for archive in kernels.ARCHIVES:
        if archive.name in done or not archive.can_have(order):
            continue
        url = apt.security_mirror() if archive.security else kernels.main_mirror(None)
        try:
            place, _remarks = apt.updated(archive.name, url, folder, progress, archive=None)
        except apt.Gone:
            continue
        yield place


def _listed(place: apt.Apt, entry: re.Pattern[bytes]) -> Iterator[tuple[str, str]]:
    # Packages and versions in the lists of suites.
    for path in place.lists():
        if path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as text:
                for found in entry.finditer(text):
                    yield found[1].decode(), found[2].decode()


def _nearest(version: str, known: Mapping[str, str]) -> str:
    # The versions below and above, with the suites that have them.
    order = kernels.order_of(version)
    ordered = sorted(known, key=kernels.order_of)
    below = [one for one in ordered if kernels.order_of(one) < order][-1:]
    above = [one for one in ordered if kernels.order_of(one) > order][:1]
    return " and ".join(
        kernels.upstream_of(one) + (f" ({known[one]})" if known[one] else "")
        for one in (*below, *above)
    )


def _no_source(version: str, seen: Mapping[str, str]) -> LabError:
    near = _nearest(version, seen)
    return LabError(
        f"no suite has the source of Linux {kernels.upstream_of(version)}",
        hint=f"nearest with source: {near}" if near else "--source takes a tree of your own",
    )
