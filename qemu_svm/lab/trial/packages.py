"""The packages that a module is built from: headers and compiler, and source of the same update."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    headers = f"linux-headers-{manifest.release}"
    built_here = {number for _, number in _listed(where, _HEADERS)}
    listed = (headers, version) in _listed(where, _HEADERS)
    name, wanted = f"linux-source-{series}", kernels.upstream_of(version)
    seen: dict[str, str] = {}
    for place in _with_source(manifest, where, folder / "source", progress):
        found = {number for package, number in _listed(place, _SOURCE) if package == name}
        same = sorted(one for one in found if kernels.upstream_of(one) == wanted)
        if same and listed:
            archives = where.download((f"{headers}={version}", *tools), progress)
            best = version if version in same else same[-1]
            source = place.download_only([name], best, progress)[name]
            return Fetched(list(archives.values()), source, f"{name} {best} of {place.suite}")
        seen |= {kernels.upstream_of(one): place.suite for one in found}
    raise _not_to_be_had(manifest, built_here, seen, listed=listed)


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


def _not_to_be_had(
    manifest: Manifest, headers: Iterable[str], sources: Mapping[str, str], *, listed: bool
) -> LabError:
    # Of what can be built: the updates below and above, with the suite that has the source.
    order, wanted = kernels.order_of(manifest.kernel), kernels.upstream_of(manifest.kernel)
    both = {kernels.upstream_of(one) for one in headers} & sources.keys()
    ordered = sorted(both, key=kernels.order_of)
    below = [one for one in ordered if kernels.order_of(one) < order][-1:]
    above = [one for one in ordered if kernels.order_of(one) > order][:1]
    near = " and ".join(f"{one} (source in {sources[one]})" for one in (*below, *above))
    why = f"no suite has the source of Linux {wanted}"
    if not listed:
        why = f"{manifest.suite} no longer has the headers of Linux {manifest.kernel}"
    return LabError(
        why, hint=(f"nearest with headers and source: {near}" if near else "no other update of "
                   "this series has both: --module takes modules of your own")
    )  # fmt: skip
