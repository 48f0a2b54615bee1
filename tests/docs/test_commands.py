"""Commands in the documentation work and print the output quoted after them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Run

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
_COMMAND = re.compile(r" {4,}\$ svmstream (.*)")
_CAPTURE = "streams/qemu10.0-linux6.12-nested-npt.mig.zst"


def examples(page: str) -> list[tuple[str, list[str]]]:
    """Every ``$ svmstream …`` with the lines of output quoted after it."""
    found: list[tuple[str, list[str]]] = []
    margin = "    "
    text = (ROOT / page).read_text().replace("$ make inspect", f"$ svmstream inspect {_CAPTURE}")
    for line in text.splitlines():
        if command := _COMMAND.fullmatch(line):
            found.append((command[1], []))
            margin = line[: line.index("$")]
        elif line.startswith(margin) and found:
            if line.strip() != "...":
                found[-1][1].append(line.strip())
        elif line.strip():
            found.append(("", []))
    return [(command, lines) for command, lines in found if command]


CASES = [
    (page, *example)
    for page in PAGES
    for example in examples(page)
    if not example[0].startswith("lab ")  # in the box: tests/cli/lab
]


@pytest.mark.parametrize(("page", "words", "lines"), CASES, ids=range(len(CASES)))
def test_example(page: str, words: str, lines: list[str], command: Run) -> None:
    done = command(*shlex.split(words), cwd=ROOT, env={"COLUMNS": "200", "PATH": "/usr/bin"})
    printed = [" ".join(line.split()) for line in done.stdout.decode().splitlines()]
    assert b"Traceback" not in done.stderr
    for line in lines:
        assert any(" ".join(line.split()) in found for found in printed), line
    assert lines or done.returncode in (0, 1)


def test_the_script_of_the_automation_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "automate.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "automate.md", "exec"), names)
    missing = str(tmp_path / "vm.sock")
    assert names["judge"](missing).startswith(f"{missing}: ")


def test_every_verb_is_on_the_page(command: Run) -> None:
    page = (ROOT / "docs" / "verbs.md").read_text()
    shown = [b"", *(f"{name}".encode() for name in ("lab", "mem"))]
    for group in shown:
        words = [group.decode()] if group else []
        text = command("help", *words).stdout.decode()
        verbs = re.sub(r"(?s)^.*?(?=^\S[^\n]*:\n)", "", text.split("Options:")[0], flags=re.M)
        for name, about in re.findall(r"^  ([a-z]+) +(\S.*)$", verbs, re.M):
            cell = " ".join((*words, name))
            assert re.search(rf"^\| \[?`{cell}`[^|]*\| {re.escape(about)} \|$", page, re.M), cell


def test_pages_have_examples() -> None:
    assert len(CASES) >= 14
    for page in Path(ROOT / "docs").glob("*.md"):
        assert page.read_text().startswith("# ")


def test_the_matrix_quotes_rules_as_they_are(command: Run) -> None:
    rules = {
        one["id"]: f"{one['fails_when']}: {one['means']}; {one['do']}"
        for one in json.loads(command("check", "--rules", "--json").stdout)["rules"]
    }
    page = (ROOT / "docs" / "support-matrix.md").read_text()
    quoted = re.findall(r"^ {9}([A-Z]+-\d+): (.*(?:\n {9}(?![A-Z]+-\d+:).*)*)", page, re.MULTILINE)
    assert len(quoted) >= 10
    for rule, text in quoted:
        assert " ".join(text.split()) == rules[rule]
