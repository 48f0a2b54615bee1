"""The command as a user has it: a process with pipes and an exit status."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CAPTURES, STREAMS, Run

FILE = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"


@pytest.mark.parametrize("entry", CAPTURES, ids=lambda entry: entry["file"])
def test_inspect_every_capture(entry: dict[str, Any], svmstream: Run) -> None:
    done = svmstream("inspect", "--json", STREAMS / entry["file"])
    assert (done.returncode, done.stderr) == (0, b"")
    made = json.loads(done.stdout)
    assert made["stream"]["complete"] is True
    assert made["vcpus"][0]["nested"]["offset"] == entry["facts"]["nested_offset"]


def test_inspect_as_text(svmstream: Run) -> None:
    done = svmstream("inspect", FILE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"in L2 (guest mode)" in done.stdout
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize("compressed", [True, False])
def test_inspect_from_a_pipe(compressed: bool, sample: bytes, svmstream: Run) -> None:
    data = FILE.read_bytes() if compressed else sample
    made = json.loads(svmstream("inspect", "--json", "-", input=data).stdout)
    assert made["source"]["path"] == "-"
    assert made["source"]["compression"] == ("zstd" if compressed else "none")
    assert made["vcpus"][0]["guest_mode"] is True


def test_inspect_from_a_redirected_file(sample_file: Path, svmstream: Run) -> None:
    with sample_file.open("rb") as stdin:
        done = svmstream("inspect", "--json", "-", stdin=stdin)
    assert json.loads(done.stdout)["stream"]["complete"] is True


@pytest.mark.parametrize("as_json", [True, False])
def test_a_cut_file(as_json: bool, sample: bytes, tmp_path: Path, svmstream: Run) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(sample[:0x98D00])
    done = svmstream("inspect", *(["--json"] if as_json else []), path)
    assert done.returncode == 3
    if as_json:
        (problem,) = json.loads(done.stdout)["problems"]
        assert (problem["offset"], problem["severity"]) == (0x98D00, "error")
        assert done.stderr.count(b"0x98d00") == 1
    else:
        assert done.stdout.count(b"error at 0x98d00") == 1
        assert b"NOT COMPLETE" in done.stdout
        assert b"cpu_common" in done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ("show", "-", "vcpu0.rip"),
        ("simulate", "-"),
        ("replay", "-"),
        ("ram", "-", "--block", "pc.bios"),
    ],
)
def test_what_a_cut_stream_lacks(args: Sequence[str], sample: bytes, svmstream: Run) -> None:
    done = svmstream(*args, input=sample[:60])
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"offset 0x3c" in done.stderr
    assert b"as far as the stream can be read" in done.stderr


@pytest.mark.parametrize("args", [("check",), ("simulate",), ("show", "vcpu0.rip")])
def test_damage_elsewhere_is_reported(
    args: Sequence[str], sample: bytes, tmp_path: Path, svmstream: Run
) -> None:
    cut, flipped = tmp_path / "cut", tmp_path / "flipped"
    cut.write_bytes(sample[:0xA0000])
    at = sample.index(b"pc.bios") + 4  # in the block list; more records follow
    flipped.write_bytes(sample[:at] + b"\xff" * 32 + sample[at + 32 :])
    for path in (cut, flipped):
        done = svmstream(args[0], path, *args[1:])
        assert done.returncode == 3
        assert done.stderr.count(b"offset 0x") >= 1


def test_the_hint_of_a_source_is_printed(tmp_path: Path, svmstream: Run) -> None:
    path = tmp_path / "no.bin"
    path.write_bytes(b"something else\n" * 9)
    done = svmstream("inspect", f"{path}#daily")
    assert done.returncode == 3
    assert b"FILE#@OFFSET opens a stream at an offset" in done.stderr


def test_a_borrowed_description(sample: bytes, sample_file: Path, svmstream: Run) -> None:
    args = ["show", "-", "section:apic.lvt", "--description", sample_file]
    done = svmstream(*args, input=sample[:0x9C8AA])
    assert done.returncode == 3  # it is truncated, which is reported
    assert b"uint32[6]" in done.stdout
    refused = svmstream("inspect", sample_file, "--description", "/etc/passwd")
    assert refused.returncode == 3
    assert b"--description '/etc/passwd': offset 0x0" in refused.stderr


@pytest.mark.qemu
def test_a_dump_instead_of_a_description(tmp_path: Path, svmstream: Run) -> None:
    path = tmp_path / "vmstate.json"
    subprocess.run(["qemu-system-x86_64", "-M", "pc", "-dump-vmstate", path], check=True)
    stream = STREAMS / "kinds" / "qemu10.0-no-description.mig.zst"
    text = svmstream("inspect", stream, "--description", path).stdout
    assert b"description guessed from a dump" in text
    assert b"mc146818rtc (fits the dump)" in text
    assert b"apic (not described)" in text
    shown = svmstream("show", stream, "section:mc146818rtc.cmos_data", "--description", path)
    assert shown.returncode == 0
    made = json.loads(svmstream("inspect", stream, "--json", "--description", path).stdout)
    assert made["stream"]["description"] == "dump"
    assert "dump" in {section["described"] for section in made["sections"]}


def test_findings_give_status_one(sample: bytes, tmp_path: Path, svmstream: Run) -> None:
    made = json.loads(svmstream("show", "--json", "-", "vcpu0.hflags2", input=sample).stdout)
    at = made["offset"]
    path = tmp_path / "gif.bin"
    path.write_bytes(sample[:at] + bytes(4) + sample[at + 4 :])
    done = svmstream("inspect", path)
    assert done.returncode == 1
    assert b"X-02" in done.stdout


def test_show(svmstream: Run) -> None:
    done = svmstream("show", FILE, "vcpu0.nested.control.asid")
    assert done.returncode == 0
    assert b"0x1" in done.stdout
    raw = svmstream("show", "--raw", FILE, "vcpu0.nested.control")
    assert len(raw.stdout) == 1024
    assert raw.stdout[0x58:0x5C] == b"\1\0\0\0"
    made = json.loads(svmstream("show", "--json", FILE, "vcpu0.nested").stdout)
    assert made["children"][0]["names"] == ["guest_mode", "gif_set"]


@pytest.mark.parametrize("path", ["@-1", "@", "@x"])
def test_show_of_an_invalid_offset(path: str, svmstream: Run) -> None:
    done = svmstream("show", FILE, path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"is not an offset such as @0x98d7c" in done.stderr


def test_show_of_a_wrong_path(svmstream: Run) -> None:
    done = svmstream("show", FILE, "vcpu0.cr33")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"vcpu0.cr3" in done.stderr


def test_show_of_a_cut_file_still_shows(sample: bytes, svmstream: Run) -> None:
    done = svmstream("show", "-", "configuration", input=sample[:5000])
    assert done.returncode == 3
    assert b"pc-i440fx-10.0" in done.stdout
    assert b"0x1388" in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["inspect"], 2, b"Missing argument"),
        (["inspect", "--nope", "x"], 2, b"--nope"),
        (["nope"], 2, b"nope"),
        (["inspect", "/no/such/file"], 3, b"No such file"),
        (["inspect", "/"], 3, b"directory"),
        (["inspect", "/etc/passwd"], 3, b"not a QEMU migration stream"),
        (["show", "/etc/passwd", "x"], 3, b"not a QEMU migration stream"),
    ],
)
def test_wrong_arguments(args: list[str], status: int, words: bytes, svmstream: Run) -> None:
    done = svmstream(*args)
    assert (done.returncode, done.stdout) == (status, b"")
    assert words in done.stderr
    assert b"Traceback" not in done.stderr


def test_help_names_every_verb(svmstream: Run) -> None:
    done = svmstream("--help")
    assert done.returncode == 0
    for verb in (b"inspect", b"show", b"check", b"simulate", b"trace", b"diff", b"compat", b"ram"):
        assert verb in done.stdout
        assert svmstream(verb.decode(), "--help").returncode == 0
    assert svmstream("-h").stdout == done.stdout
    version = svmstream("--version")
    assert b"construct" in version.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from qemu_svm.cli import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'construct', 'rich', 'zstandard', 'numpy', 'qemu'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away() -> None:
    program = Path(sys.executable).with_name("svmstream")
    shell = f"{program} show -v {FILE} vcpu0 | head -n1; echo ${{PIPESTATUS[0]}}"
    for _ in range(5):
        done = subprocess.run(["bash", "-c", shell], capture_output=True, check=False)
        assert done.stderr == b""
        assert done.stdout.splitlines()[-1] in (b"0", b"141")


@pytest.mark.parametrize("args", [("inspect", FILE), ("ram", "--json", FILE)])
def test_output_that_cannot_be_written(args: tuple[str, ...]) -> None:
    program = Path(sys.executable).with_name("svmstream")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([program, *args], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 4
    assert done.stderr == b"svmstream: cannot write the output: No space left on device\n"


@pytest.mark.parametrize(
    ("line", "status", "errors"),
    [
        ('"$0" inspect - <&-', 3, b"svmstream: standard input is closed\n"),
        ('"$0" inspect "$1" >&-', 0, b""),
        ('"$0" show --raw "$1" vcpu0 >&-', 0, b""),
        ('"$0" inspect nothing 2>&-', 3, b""),
        ('"$0" inspect "$1" <&- >&- 2>&-', 0, b""),
    ],
)
def test_standard_streams_that_are_closed(line: str, status: int, errors: bytes) -> None:
    program = Path(sys.executable).with_name("svmstream")
    done = subprocess.run(
        ["sh", "-c", line, program, FILE], stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (status, errors)


def test_interrupt() -> None:
    program = Path(sys.executable).with_name("svmstream")
    read, write = os.pipe()
    with subprocess.Popen(
        [program, "inspect", "-"], stdin=read, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        os.close(read)
        os.write(write, b"QEVM")
        while struct.unpack("i", fcntl.ioctl(write, termios.FIONREAD, bytes(4)))[0]:
            time.sleep(0.01)  # until it reads
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        os.close(write)
    assert process.returncode == 130
    assert errors.strip() == b"svmstream: interrupted"


def test_as_a_module() -> None:
    words = [sys.executable, "-m", "qemu_svm", "--version"]
    assert subprocess.run(words, capture_output=True, check=True).stdout.startswith(b"svmstream ")


def test_interrupted_before_there_is_anything() -> None:
    program = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from qemu_svm.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("no_color", [True, False])
def test_on_a_terminal(columns: int, no_color: bool) -> None:
    program = Path(sys.executable).with_name("svmstream")
    master, slave = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    env |= {"NO_COLOR": "1"} if no_color else {}
    with subprocess.Popen([program, "inspect", FILE], stdout=slave, env=env) as process:
        os.close(slave)
        out = b""
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:
                break
            out += chunk
            if not chunk:
                break
    os.close(master)
    assert process.returncode == 0
    assert (b"\x1b[36m" in out) is not no_color
    assert b"No problems found." in out
