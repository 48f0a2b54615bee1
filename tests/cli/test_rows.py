"""Schemas of the documents; their rows as lines and as fields; errors as documents."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from qemu_svm import cli
from qemu_svm.cli.verbs import Verbs
from qemu_svm.render.documents import DOCUMENTS, ROWS, document_shape, lists
from tests.conftest import CAPTURES, ROOT, STREAMS, Run
from tests.support.documents import problems

FILE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
OTHER = STREAMS / "qemu7.2-linux6.1-nested-npt.mig.zst"
LINE = "Failed to put registers after init: Invalid argument"
RENDERERS = {
    path.stem
    for path in (ROOT / "qemu_svm/render/json").glob("*.py")
    if "\ndef render(" in path.read_text()
}


def with_json(group: click.Group, above: str = "") -> set[str]:
    found = set()
    for name in group.list_commands(click.Context(group)):
        one = group.get_command(click.Context(group), name)
        if isinstance(one, Verbs):
            found |= with_json(one, f"{above}{name} ")
        elif one is not None and any("--json" in param.opts for param in one.params):
            found.add(f"{above}{name}")
    return found


def test_every_verb_and_every_document_has_a_schema() -> None:
    assert set(DOCUMENTS) == with_json(cli.cli)
    named = {name for names in DOCUMENTS.values() for name in names}
    assert named | {"failure"} == RENDERERS
    for name, rows in ROWS.items():
        assert rows.path in lists(document_shape(name)), name


def test_documents_of_all_captures_conform(command: Run) -> None:
    for entry in CAPTURES:
        document = json.loads(command("inspect", STREAMS / entry["file"], "--json").stdout)
        assert problems(document, "inspect") == []


def test_rows(command: Run) -> None:
    document = json.loads(command("inspect", FILE, "--json").stdout)
    lines = command("inspect", FILE, "--jsonl").stdout.splitlines()
    assert [json.loads(one) for one in lines] == [
        {"schema_version": 1, **one} for one in document["sections"]
    ]
    text = command("inspect", FILE, "--fields", "name,instance_id,opaque").stdout.decode()
    first = document["sections"][1]
    assert text.splitlines()[1] == f"{first['name']}\t{first['instance_id']}\tfalse"
    made = command("inspect", FILE, "--jsonl", "--rows", "vcpus", "--fields", "index,registers.rip")
    rip = document["vcpus"][0]["registers"]["rip"]
    assert json.loads(made.stdout) == {"index": 0, "registers.rip": rip}


def test_wrong_fields_are_said_before_anything_is_read(command: Run) -> None:
    for words in (("survey", "none"), ("inspect", "none"), ("watch", "--qmp", "none")):
        done = command(*words, "--fields", "nme")
        assert done.returncode == 2
        assert b"no field 'nme'" in done.stderr
    # Another document of the verb has it.
    assert command("check", "none", "--fields", "fails_when").returncode == 3


def test_rows_have_labels(command: Run) -> None:
    made = command("check", FILE, "none", OTHER, "--jsonl").stdout.splitlines()
    rows = [json.loads(one) for one in made]
    assert any("error" in one for one in rows)
    assert {one["file"] for one in rows if "rule" in one} <= {str(FILE), str(OTHER)}
    steps = command("simulate", FILE, "--kernel", "6.1", "--fields", "kernel,number").stdout
    assert steps.decode().splitlines()[0].split("\t")[1] == "1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--fields", "nme"), b"Did you mean name?"),
        (("--rows", "vcpu", "--jsonl"), b"no list 'vcpu'"),
        (("--rows", "vcpus"), b"--rows is for"),
        (("--json", "--fields", "name"), b"--json is the whole document"),
        (("--fields", "name,"), b"empty name"),
    ],
)
def test_wrong_rows(words: tuple[str, ...], said: bytes, command: Run) -> None:
    done = command("inspect", FILE, *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_errors_are_documents(command: Run, svmstream: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"QEVM\0\0\0\x09" + bytes(100))
    for words, status, rule in (
        (("inspect", tmp_path / "none"), 3, "source"),
        (("inspect", bad), 3, None),
        (("show", FILE, "vcpu7"), 2, "path"),
        (("inspect",), 2, "usage"),
        (("diff", FILE), 2, "usage"),
    ):
        done = svmstream(*words, "--json")
        document = json.loads(done.stdout)
        assert problems(document, str(words[0])) == []
        assert done.returncode == document["error"]["exit_status"] == status
        assert rule in (None, document["error"]["rule"])
        assert done.stderr
        assert svmstream(*words, "--json", "-q").stdout == b""
        assert svmstream(*words).stdout == b""
