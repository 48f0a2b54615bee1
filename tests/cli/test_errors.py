"""Errors of every verb with ``--json``: a document on standard output, and the text beside it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.render.documents import DOCUMENTS
from tests.conftest import STREAMS, Run, capture_bytes

FILE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
PROGRAM = Path(sys.executable).with_name("svmstream")
NONE = "/nonexistent/none"
_L1 = (NONE, "l1p:0")

# Words with which a verb cannot do its work, and its status then.
WORDS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "capture": (4, ("--qmp", NONE, "-o", NONE)),
    "check": (3, (NONE,)),
    "compat": (4, (FILE, "--qemu", NONE)),
    "diff": (3, (NONE, FILE)),
    "doctor": (3, ("--host", NONE)),
    "inside": (4, ("--pid", "999999999")),
    "inspect": (3, (NONE,)),
    "lab bisect": (3, (NONE, "--good", "6.1", "--bad", "6.12")),
    "lab capture": (2, ("--guest", "none", "-o", NONE)),
    "lab conform": (3, (NONE,)),
    "lab list": (4, ("--available", "--mirror", "http://127.0.0.1:1")),
    "lab matrix": (2, ("--kernel", "none")),
    "lab patch": (2, (NONE, FILE)),
    "lab restore": (3, (NONE,)),
    "lab up": (2, ("--kernel", "none")),
    "lab witness": (3, (NONE,)),
    "mem core": (3, (NONE, "-o", NONE)),
    "mem disasm": (3, _L1),
    "mem map": (3, (NONE,)),
    "mem read": (3, _L1),
    "mem search": (3, (NONE, "--hex", "00")),
    "mem translate": (3, _L1),
    "ram": (3, (NONE,)),
    "record": (4, ("--pid", "999999999", "-o", NONE)),
    "replay": (3, (NONE,)),
    "report": (4, (NONE, "-o", NONE)),
    "restore": (3, (NONE, "--qemu", "none")),
    "roundtrip": (3, (NONE, "--qemu", "none")),
    "show": (3, (NONE, "vcpu0")),
    "simulate": (3, (NONE,)),
    "survey": (2, (FILE, "--to", "none")),
    "trace": (3, (NONE,)),
    "vmruns": (3, (NONE,)),
    "watch": (4, ("--qmp", NONE)),
    "why": (3, (NONE,)),
}


def error_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """The only document of a command that failed; the fixture holds it against its schema."""
    document = json.loads(done.stdout)
    assert done.stderr
    assert document["error"]["exit_status"] == done.returncode
    found: dict[str, Any] = document["error"]
    return found


@pytest.mark.parametrize("verb", DOCUMENTS)
def test_wrong_words(verb: str, command: Run) -> None:
    found = error_of(command(*verb.split(), "--json", "--nonsense"))
    assert (found["rule"], found["exit_status"]) == ("usage", 2)


@pytest.mark.parametrize("verb", DOCUMENTS)
def test_what_is_not_there(verb: str, command: Run) -> None:
    status, words = WORDS[verb]
    assert error_of(command(*verb.split(), *words, "--json"))["exit_status"] == status


@pytest.mark.parametrize("verb", [one for one, (_, words) in WORDS.items() if NONE in words[:1]])
def test_a_cut_file(verb: str, command: Run, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(capture_bytes(FILE.name)[:700])
    words = (tmp_path / "new" if word == NONE else word for word in WORDS[verb][1][1:])
    done = command(*verb.split(), cut, *words, "--json")
    assert done.returncode
    document = json.loads(done.stdout)
    if "rule" in document.get("error", ()):
        assert error_of(done)["message"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("capstone", ("mem", "disasm", FILE, "l1p:0x100252")),
        ("jinja2", ("report", FILE, "-o", "report.html")),
    ],
)
def test_a_missing_extra(
    name: str, words: tuple[Any, ...], command: Run, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for one in [one for one in sys.modules if one.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, one)
    monkeypatch.setitem(sys.modules, name, None)
    found = error_of(command(*words, "--json"))
    assert found["exit_status"] == 4
    assert "pip install" in f"{found['message']} {found['hint']}"


def test_an_interruption() -> None:
    with subprocess.Popen(
        [PROGRAM, "inspect", "-", "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(bytes(1 << 20))  # more than a pipe holds: it reads
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    found = error_of(subprocess.CompletedProcess([], process.returncode, out, errors))
    assert (found["rule"], found["exit_status"]) == ("interrupted", 130)
