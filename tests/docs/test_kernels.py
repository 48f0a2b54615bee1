"""The page about kernels has the rows that there are."""

from __future__ import annotations

from pathlib import Path

from qemu_svm.model.profiles import PROFILES, RELEASED

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"


def test_every_row_is_on_the_page() -> None:
    lines = PAGE.read_text().splitlines()
    for name in RELEASED:
        row = PROFILES[name]
        measured, read = ", ".join(row.measured), ", ".join(row.read)
        assert f"| {name} | {row.about} | {measured} | {read} |" in lines
