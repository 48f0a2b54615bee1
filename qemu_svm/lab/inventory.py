"""The suites in the lab's cache, and the named boxes that are up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qemu_svm.lab.box.named import BoxRecord, running
from qemu_svm.lab.suites import cache
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.suites.catalogue import SUITES, Suite
from qemu_svm.results import Result


@dataclass(frozen=True, slots=True, repr=False)
class Inventory(Result):
    """Suites and named boxes.

    :param folder: the cache directory.
    :param suites: every suite of the catalogue, with None if it is not built.
    :param boxes: the boxes that are up, by name.
    """

    verb: ClassVar[str] = "lab_list"
    folder: Path
    suites: tuple[tuple[Suite, Built | None], ...]
    boxes: tuple[BoxRecord, ...]


def inventory() -> Inventory:
    """Return the suites and the boxes that are up; files of dead boxes are removed.

    :raises LabError: there is no home directory for the cache.
    """
    suites = tuple((suite, cache.find(suite)) for suite in SUITES)
    return Inventory(cache.folder(), suites, tuple(running()))
