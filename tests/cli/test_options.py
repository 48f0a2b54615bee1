"""Options that mean one thing are the same in every verb; output on terminals and elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from rich.console import Console
from rich.text import Text

from qemu_svm.cli.verbs import Verb
from qemu_svm.render.text.base import hanging
from tests.cli.test_help import ALL, command_of
from tests.conftest import STREAMS, Run

FILE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
MULTIFD = STREAMS / "kinds" / "qemu10.0-multifd.mig.zst"
VERBS = {words: found for words in ALL if isinstance(found := command_of(words), Verb)}
READERS = [
    words
    for words, found in VERBS.items()
    if {"file", "files"} & {one.name for one in found.params if isinstance(one, click.Argument)}
]
MANY = {("lab", "conform"), ("lab", "patch"), ("why",)}  # of several streams, or of anything


def names(command: click.Command) -> set[str]:
    return {name for one in command.params for name in one.opts}


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_every_verb_that_reads_a_stream(words: tuple[str, ...]) -> None:
    wanted = {"--limit"} | (set() if words in MANY else {"--channel", "--description"})
    assert wanted <= names(VERBS[words])


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_with_a_document(words: tuple[str, ...]) -> None:
    found = names(VERBS[words])
    if "--json" in found:
        assert {"--quiet", "-q", "--color"} <= found


@pytest.mark.parametrize(
    "option", ["--npt", "--channel", "--description", "--limit", "--fail-on", "--json", "--color"]
)
def test_one_option_is_one_type(option: str) -> None:
    forms = {
        (type(one.type).__name__, one.multiple, one.is_flag, str(getattr(one.type, "choices", "")))
        for found in VERBS.values()
        for one in found.params
        if isinstance(one, click.Option) and option in one.opts
    }
    assert len(forms) == 1


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("check", FILE), 0),
        (("check", FILE, "--fail-on", "warning", "--kernel", "5.10.100"), 1),
        (("check", FILE, "--fail-on", "never"), 0),
        (("simulate", FILE, "--plan", "cpuid,nested"), 1),
        (("simulate", FILE, "--plan", "cpuid,nested", "--fail-on", "never"), 0),
        (("diff", FILE, MULTIFD), 1),
        (("diff", FILE, MULTIFD, "--fail-on", "never"), 0),
        (("inspect", STREAMS / "kinds" / "qemu10.0-postcopy.mig.zst"), 0),
        (("inspect", STREAMS / "kinds" / "qemu10.0-postcopy.mig.zst", "--fail-on", "info"), 1),
    ],
)
def test_fail_on(args: tuple[str, ...], status: int, command: Run) -> None:
    assert command(*args).returncode == status
    silent = command(*args, "-q")
    assert (silent.returncode, silent.stdout) == (status, b"")
    if args[0] != "diff":
        assert command(*args, "-q", "--json").stdout == b""


def test_quiet_is_not_silent_about_errors(command: Run) -> None:
    done = command("inspect", "-q", "/etc/passwd")
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"/etc/passwd" in done.stderr


def test_color(command: Run) -> None:
    plain = command("check", FILE)
    always = command("check", FILE, "--color", "always")
    assert b"\x1b" not in plain.stdout
    assert b"\x1b[" in always.stdout
    assert re.sub(rb"\x1b\[[0-9;]*m", b"", always.stdout) == plain.stdout
    assert command("check", FILE, "--color", "never").stdout == plain.stdout


@pytest.mark.parametrize(
    "words", [("inspect", FILE, "--limit", "x\x07=1"), ("ins\x07",), ("ram", FILE, "--\x07")]
)
def test_wrong_arguments_are_escaped(words: tuple[str, ...], command: Run) -> None:
    done = command(*words)
    assert done.returncode == 2
    assert b"\\x07" in done.stderr
    assert b"\x07" not in done.stderr


def test_channels_count_in_inspect(command: Run) -> None:
    stem = str(MULTIFD).removesuffix(".mig.zst")
    channels = [word for one in "01" for word in ("--channel", f"{stem}.channel{one}.zst")]
    alone = command("inspect", "--ram", MULTIFD).stdout
    whole = command("inspect", "--ram", MULTIFD, *channels).stdout
    assert b"page records    0 normal\n" in alone.replace(b"  0", b"    0") or b"0 normal" in alone
    assert b"244 normal, 4046 zero" in whole


def test_verbose_check_lists_every_kernel(command: Run) -> None:
    lines = command("check", FILE, "-v").stdout.decode().splitlines()
    assert sum(" right " in line for line in lines) > 20


def test_verbose_ram_has_a_character_for_each_page(command: Run) -> None:
    done = command("ram", FILE, "-v", "--block", "pc.ram")
    assert b"a character is 4 KiB" in done.stdout
    assert b"a character is 4 KiB" not in command("ram", FILE, "--block", "pc.ram").stdout


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_long_lines_hang(width: int) -> None:
    out = Console(width=width)
    words = " ".join(f"word{number}" for number in range(60))
    for head in ("  error at 0x10: ", "  key           ", "", "          deep "):
        line = Text(head + words)
        rows = [row.plain for row in hanging(out, line)]
        assert max(map(len, rows)) <= width + 1
        assert " ".join(" ".join(rows).split()) == " ".join(line.plain.split())
        indents = {len(row) - len(row.lstrip()) for row in rows[1:]}
        assert len(indents) <= 1
        assert not indents or indents.pop() >= 4


def on_a_terminal(*args: str | Path, pager: str) -> tuple[int, bytes]:
    """Run the command with a terminal of 80 columns and 24 lines for everything."""
    master, slave = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PAGER": pager}
    program = Path(sys.executable).with_name("svmstream")
    words = [str(program), *map(str, args)]
    out = b""
    with subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:
                break
            out += chunk
            if not chunk:
                break
    os.close(master)
    return process.returncode, out


def test_what_does_not_fit_the_screen_is_paged(tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\nsed s/^/PAGED:/\n")
    pager.chmod(0o755)
    status, out = on_a_terminal("simulate", FILE, pager=str(pager))
    assert status == 0
    assert out.count(b"PAGED:") > 24
    assert b"verdict: " in out.replace(b"\x1b[1m", b"").split(b"PAGED:")[4]
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", out)
    assert max(len(line) for line in plain.replace(b"PAGED:", b"").split(b"\r\n")) <= 81
    status, out = on_a_terminal("check", FILE, pager=str(pager))
    assert status == 0
    assert b"PAGED:" not in out
    assert b"O-28" in out


def test_a_pager_that_is_left_early(tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\nhead -n 1\n")
    pager.chmod(0o755)
    status, out = on_a_terminal("simulate", "-v", FILE, pager=str(pager))
    assert status in (0, 141)
    assert b"Traceback" not in out
