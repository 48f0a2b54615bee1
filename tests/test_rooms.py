"""Imports between the rooms of the package go one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.conftest import ROOT

ORDER = [
    *("errors", "optional", "limits", "fields", "results", "work", "rules", "x86", "kvm"),
    *("recorder", "source", "stream", "nested", "machine", "memory"),
    *("recording", "snapshots", "model", "trace", "vmruns", "findings"),
    *("diagnosis", "inside", "replay", "qmp", "lab", "doctor", "survey", "render", "api"),
    *("explore", "cli"),
]
"""Rooms and top-level modules; each imports only what comes before it."""

PACKAGE = ROOT / "qemu_svm"
ROOMS = sorted(
    path.stem
    for path in PACKAGE.iterdir()
    if (path.is_dir() and any(path.glob("*.py"))) or path.suffix == ".py"
    if not path.stem.startswith("_")
)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every module of the package that a file imports, wherever."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            module = node.module or ""
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def files(room: str) -> list[Path]:
    single = PACKAGE / f"{room}.py"
    return [single] if single.exists() else sorted((PACKAGE / room).rglob("*.py"))


def wrong(room: str, allowed: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files(room)
        for line, name in imports(path)
        for parts in [name.split(".")]
        if parts[0] == "qemu_svm" and len(parts) > 1 and parts[1] in ROOMS
        if parts[1] not in allowed
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_lies_before_it(room: str) -> None:
    assert room in ORDER, f"{room} has no place in the order"
    assert wrong(room, set(ORDER[: ORDER.index(room) + 1])) == []


def test_what_runs_beside_a_kvm_needs_the_standard_library_alone() -> None:
    assert wrong("kvm", {"kvm", "errors"}) == []
    assert wrong("recorder", {"recorder", "kvm", "errors", "results"}) == []


def test_no_renderer_knows_both_text_and_json() -> None:
    for path in files("render"):
        names = {name for _, name in imports(path)}
        kinds = {name.split(".")[2] for name in names if name.startswith("qemu_svm.render.")}
        kinds |= {path.relative_to(PACKAGE / "render").parts[0]}
        assert not {"text", "json"} <= kinds, path


def test_no_verb_imports_a_verb() -> None:
    from qemu_svm.cli import cli
    from qemu_svm.cli.lab import command as lab

    modules = {f"qemu_svm.cli.{verb}" for verb in cli.list_commands(click.Context(cli))}
    modules |= {f"qemu_svm.cli.lab.{verb}" for verb in lab.list_commands(click.Context(lab))}
    for module in modules:
        path = ROOT / f"{module.replace('.', '/')}.py"
        if path.exists():
            assert not {name for _, name in imports(path)} & modules, path


@pytest.mark.parametrize("room", ROOMS)
def test_the_map_names_every_room(room: str) -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    name = f"{room}.py" if (PACKAGE / f"{room}.py").exists() else f"{room}/"
    assert re.search(rf"^ +{re.escape(name)} ", page, re.MULTILINE), name
