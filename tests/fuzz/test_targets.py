"""Every fuzz target on its seeds, on changed ones, and on what was found once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qemu_svm.stream.ram.runs import Rows
from qemu_svm.stream.ram.scan import Found, scan_runs
from tests.fuzz import targets
from tests.fuzz.targets import TARGETS, changed

FOUND = Path(__file__).parent / "found"
CHANGED = 60


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    assert seeds
    rng = random.Random(f"{name} 1")
    for seed in rng.sample(seeds, min(len(seeds), CHANGED)):
        target.run(seed)
    for _ in range(CHANGED):
        target.run(changed(rng, seeds, target.words))


@pytest.mark.parametrize(
    "file", sorted(FOUND.glob("*/*")), ids=lambda file: file.parent.name + "/" + file.name
)
def test_found_once(file: Path) -> None:
    TARGETS[file.parent.name].run(file.read_bytes())


def test_a_contradiction_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(data: bytes, at: int, base: int, pages: tuple[int, int], rows: Rows) -> Found:
        found = scan_runs(data, at, base, pages, rows)
        rows.data[0] += 1
        return found

    monkeypatch.setattr(targets, "scan_runs", wrong)
    seed = next(iter(TARGETS["ram"].seeds()))
    with pytest.raises(AssertionError):
        TARGETS["ram"].run(seed)
