"""What the lab's cache has, which boxes are up, and which kernels can be had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qemu_svm.lab.box.named import BoxRecord, running
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import cache, kernels
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.suites.catalogue import SUITES, Suite
from qemu_svm.lab.suites.kernels import Kernel
from qemu_svm.results import Result


@dataclass(frozen=True, slots=True, repr=False)
class Inventory(Result):
    """Suites, kernels and named boxes.

    :param folder: the cache directory.
    :param suites: every suite of the catalogue, with None if it is not built.
    :param kernels: those that were fetched by their version, oldest first.
    :param boxes: the boxes that are up, by name.
    """

    verb: ClassVar[str] = "lab_list"
    folder: Path
    suites: tuple[tuple[Suite, Built | None], ...]
    kernels: tuple[Built, ...]
    boxes: tuple[BoxRecord, ...]


def inventory() -> Inventory:
    """Return what the cache has and the boxes that are up; files of dead boxes are removed.

    :raises LabError: there is no home directory for the cache.
    """
    suites = tuple((suite, cache.find(suite)) for suite in SUITES)
    exact = sorted(cache.kernels(), key=lambda built: kernels.sorting(built.manifest.kernel))
    return Inventory(cache.folder(), suites, tuple(exact), tuple(running()))


@dataclass(frozen=True, slots=True, repr=False)
class Offer(Result):
    """The kernels that a mirror lists.

    :param mirror: URL.
    :param kernels: oldest first.
    :param cached: versions of packages that are in the cache, alone or as a suite's.
    """

    verb: ClassVar[str] = "lab_list_available"
    mirror: str
    kernels: tuple[Kernel, ...]
    cached: frozenset[str]


def offer(*, mirror: str | None = None, progress: Progress = SILENT) -> Offer:
    """Return the kernels that a mirror lists.

    :param mirror: URL; None for the host's.
    :raises LabError: it cannot be reached, has no suites, or has a wrong signature.
    """
    found = kernels.available(mirror=mirror, progress=progress)
    where = kernels.main_mirror(mirror)
    if not found:
        raise kernels.no_kernels(where)
    suites = (cache.find(suite) for suite in SUITES)
    there = [built for built in (*suites, *cache.kernels()) if built is not None]
    return Offer(where, found, frozenset(built.manifest.kernel for built in there))
