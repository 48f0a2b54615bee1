"""What the lab has at hand: suites in the cache, boxes that are up."""

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
    """Suites and boxes.

    :param folder: the cache.
    :param suites: every suite of the catalogue; None beside those not built.
    :param boxes: that are up, by name.
    """

    verb: ClassVar[str] = "lab_list"
    folder: Path
    suites: tuple[tuple[Suite, Built | None], ...]
    boxes: tuple[BoxRecord, ...]


def inventory() -> Inventory:
    """Return what is in the cache and which boxes are up; files of dead boxes are removed."""
    suites = tuple((suite, cache.find(suite)) for suite in SUITES)
    return Inventory(cache.folder(), suites, tuple(running()))
