"""Every option and argument with values that nobody would give: usage errors, nothing else."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from qemu_svm import cli
from qemu_svm.snapshots.open import BESIDE
from qemu_svm.work import cluster
from tests.conftest import STREAMS, Run
from tests.fuzz.inputs import vcpu_payload, vcpu_stream
from tests.fuzz.test_targets import FOUND

NAME = "qemu10.0-linux6.12-nested-npt"
ODD = (
    "-1",
    "0",
    "9" * 400,
    "9" * 5000,
    "",
    "nan",
    "inf",
    "-",
    "/",
    "{}",
    "%s",
    "\x1b[31m",
    "-5:3",
    "0:" + "9" * 400,
    "\udcff",
    "x=1",
)
LIMITS = (
    "window_bytes=3G",
    "window_bytes=0",
    "window_bytes=99999999T",
    "description_bytes=9999999T",
    "description_depth=999999",
    "section_bytes=99999T",
    "records=0",
    "vcpus=0",
    "spool_bytes=0",
    "section_values=0",
    "trace_line_bytes=0",
    "trace_line_bytes=9999T",
    "core_loads=0",
    "window_bytes=" + "9" * 400,
)
LOGS = {"trace": f"{NAME}.restore-ioctls.log.zst", "vmruns": f"{NAME}.restore.svmtrace.zst"}
ARGUMENTS = {
    "show": ("vcpu0.nested",),
    "mem read": ("0x1000",),
    "mem translate": ("0x1000",),
    "mem search": ("text",),
    "mem core": ("-o", "core"),
    "diff": ("FILE",),
    "compat": ("--qemu", "absent"),
    "restore": ("--qmp", "absent"),
    "capture": ("--qmp", "absent"),
    "watch": ("--qmp", "absent"),
    "roundtrip": ("--qemu", "absent"),
    "replay": ("--kvm", "/absent"),
    "record": ("--pid", "1999999999"),
    "inside": ("--pid", "1999999999"),
    "lab run": ("true",),
    "why": ("--error", "error"),
    "lab patch": ("FILE",),
}
VERBS = (
    "inspect",
    "show",
    "ram",
    "diff",
    "check",
    "simulate",
    "compat",
    "trace",
    "vmruns",
    "restore",
    "roundtrip",
    "mem read",
    "mem translate",
    "mem map",
    "mem search",
    "mem disasm",
    "mem core",
    "mem drgn",
    "explore",
    "replay",
    "lab restore",
    "lab witness",
    "lab bisect",
    "lab conform",
    "lab patch",
)
NO_INPUT = (
    "capture",
    "watch",
    "record",
    "inside",
    "doctor",
    "help",
    "why",
    *("lab run", "lab shell", "lab up", "lab down", "lab capture"),
    *("lab matrix", "lab build", "lab list", "lab clean"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small stream, in a directory of its own, since options may name files to be written."""
    place = tmp_path_factory.mktemp("options")
    small = place / "small.bin"
    small.write_bytes(vcpu_stream(vcpu_payload()))
    before = os.getcwd()
    os.chdir(place)
    yield small
    os.chdir(before)


def outcome(arguments: list[str], patch: pytest.MonkeyPatch) -> tuple[int, str]:
    shown = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with patch.context() as inside:
        inside.setattr(sys, "argv", ["svmstream", *arguments])
        inside.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        inside.setattr(sys, "stdout", shown)
        inside.setattr(sys, "stderr", shown)
        found = cli._run()
        shown.flush()
        return found, shown.buffer.getvalue().decode()  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS + NO_INPUT)
def test_odd_values(verb: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no program to be started, no cache, and no box: nothing begins to run.
    monkeypatch.setenv("PATH", str(folder.parent))
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.2)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(folder.parent))
    words = verb.split()
    command: click.Command = cli.cli
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    first = str(STREAMS / LOGS[verb]) if verb in LOGS else str(folder)
    base = [] if verb in NO_INPUT else [first]
    base += [str(folder) if word == "FILE" else word for word in ARGUMENTS.get(verb, ())]
    cases = [base[:at] + [odd] + base[at + 1 :] for at in range(len(base)) for odd in ODD]
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_flag and not option.count:
            if option.opts[-1].removeprefix("--") in BESIDE and verb != "inspect":
                continue  # the same in every verb
            values = LIMITS if option.name is None or "--limit" in option.opts else ODD
            cases += [[*base, option.opts[-1], odd] for odd in values]
    for arguments in cases:
        number, shown = outcome([*words, *arguments], monkeypatch)
        assert number in range(6), arguments
        assert all(char.isprintable() or char in "\n\t" for char in shown), arguments


@pytest.mark.parametrize("verb", ["inspect", "inspect --json", "ram", "check", "show"])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_that_no_encoding_has(verb: str, locale: str, svmstream: Run, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xc3\xa9.bin")
    path.write_bytes((FOUND / "stream" / "lone-surrogate").read_bytes())
    environment = {**os.environ, "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0"}
    if locale == "C":
        environment |= {"PYTHONUTF8": "0"}
    arguments = [*verb.split(), path, *(["section:x"] if verb == "show" else [])]
    done = svmstream(*arguments, env=environment)
    assert done.returncode in (0, 1, 2, 3), done.stderr
    encoding = "ascii" if locale == "C" and "json" in verb else "utf-8"
    for text in (done.stdout.decode(encoding), done.stderr.decode()):
        assert all(char.isprintable() or char == "\n" for char in text)
