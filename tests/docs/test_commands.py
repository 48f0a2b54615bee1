"""Commands in the documentation work, and print what stands under them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, Run

PAGES = ["docs/save-cache.md", "docs/witness.md"]


def examples(page: str) -> list[tuple[str, list[str]]]:
    """Every ``$ svmstream …`` with the lines of output quoted under it."""
    found: list[tuple[str, list[str]]] = []
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith("    $ svmstream "):
            found.append((line.removeprefix("    $ svmstream "), []))
        elif line.startswith("    ") and found and line.strip() != "...":
            found[-1][1].append(line.strip())
        elif line.strip():
            found.append(("", []))
    return [(command, lines) for command, lines in found if command]


CASES = [(page, *example) for page in PAGES for example in examples(page)]


@pytest.mark.parametrize(("page", "command", "lines"), CASES, ids=range(len(CASES)))
def test_example(page: str, command: str, lines: list[str], svmstream: Run) -> None:
    done = svmstream(*shlex.split(command), cwd=ROOT, env={"COLUMNS": "200", "PATH": "/usr/bin"})
    printed = [" ".join(line.split()) for line in done.stdout.decode().splitlines()]
    assert b"Traceback" not in done.stderr
    for line in lines:
        assert any(" ".join(line.split()) in found for found in printed), line
    assert lines


def test_pages_have_examples() -> None:
    assert len(CASES) >= 9
    for page in Path(ROOT / "docs").glob("*.md"):
        assert page.read_text().startswith("# ")
