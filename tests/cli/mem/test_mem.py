"""``svmstream mem``: what it prints, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.cli.mem.common import _complete_where, _complete_world
from tests.conftest import STREAMS, Run
from tests.memory.support import FOLDER, TRUTHS, opened

NPT = STREAMS / "guests" / "qemu10.0-linux6.12-nested-npt.mig.zst"
LONG = FOLDER / "pc-long-mode-7.2.mig.zst"
SHARED = STREAMS / "kinds" / "qemu10.0-ignore-shared.mig.zst"


def document(svmstream: Run, *args: str | Path, status: int = 0) -> dict[str, Any]:
    done = svmstream("mem", *args, "--json")
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lines(svmstream: Run, *args: str | Path, status: int = 0) -> list[str]:
    done = svmstream("mem", *args)
    assert done.returncode == status, done.stderr
    text: str = done.stdout.decode()
    return text.splitlines()


def test_the_first_line_says_which_memory(command: Run) -> None:
    found = lines(command, "read", NPT, "rip", "-n", "16")
    assert found[0].startswith("l2v: L2's virtual memory; vCPU 0 was running L2; 4-level, root 0x")
    assert len(found) == 2
    found = lines(command, "read", NPT, "l1p:0x1000", "-n", "16")
    assert found[0] == "l1p: L1-physical memory; vCPU 0 was running L2"


def test_formats_are_those_of_qemus_monitor(command: Run) -> None:
    line = TRUTHS["pc-long-mode-7.2"]["xp"]["0xf0000"]
    address, _, words = line.partition(":")
    found = lines(command, "read", LONG, f"l1p:0x{address}", "/4xw")
    assert found[1:] == [f"0x{address}:{words}"]
    assert lines(command, "read", LONG, "l1p:0x500000", "/2xb")[1].endswith(": 0x50 0x50")
    assert lines(command, "read", LONG, "l1p:0x500000", "/2dh")[1].endswith(": 20560 20560")
    assert lines(command, "read", LONG, "l1p:0x500000", "/s")[1].endswith(': "PPPP"')


def test_unknown_bytes_are_question_marks(command: Run) -> None:
    found = lines(command, "read", LONG, "l1p:0xfffff8", "-n", "16", status=1)
    assert found[1].endswith("  no-ram")
    assert " ?? ??" in found[1]
    found = lines(command, "read", LONG, "l1p:0x1000000", "-n", "16", status=1)
    assert found[1] == "0x0000000001000000  ?? 16 bytes: no-ram (the guest has no RAM there)"
    found = lines(command, "read", LONG, "l1v:0x802000", "/2xg", status=1)
    assert found[1] == "0x0000000000802000: ?? ??  not-present"
    found = lines(command, "read", SHARED, "l1p:0x1000", "-n", "8", status=1)
    assert "not-sent (the page was never sent)" in found[1]


def test_json_of_read(command: Run) -> None:
    found = document(command, "read", LONG, "l1p:0xfffff8", "-n", "16", status=1)
    assert found["query"] == "l1p:0xfffff8"
    assert [(run["address"], run["status"], run["hex"]) for run in found["runs"]] == [
        ("0xfffff8", "mapped", "00" * 8), ("0x1000000", "no-ram", ""),
    ]  # fmt: skip


def test_json_of_translate(command: Run) -> None:
    found = document(command, "translate", NPT, "l2v:0x1003cf")
    assert (found["query"], found["world"]) == ("l2v:0x1003cf", "l2v")
    result = found["result"]
    assert result["status"] == "mapped"
    assert (result["address"], result["l2_physical"]) == ("0x5003cf", "0x1003cf")
    assert isinstance(result["size"], int)
    assert isinstance(result["flags"], list)
    stages = [step["stage"] for step in found["walk"]]
    assert stages[0] == "guest"
    assert stages[1] == stages[-1] == "nested"
    for step in found["walk"]:
        assert set(step) == {"stage", "level", "table", "index", "entry", "flags"}
        assert step["table"].startswith("0x")
        assert step["entry"].startswith("0x")
        assert isinstance(step["level"], int)
    for where, status in (
        ("l1v:0x802000", "not-present"), ("l1v:0xff00000000000000", "not-canonical"),
        ("l1p:0x1000000", "no-ram"),
    ):  # fmt: skip
        found = document(command, "translate", LONG, where, status=1)
        assert found["result"]["status"] == status
        assert "l2_physical" not in found["result"]


def test_permissions_are_asked_about(command: Run) -> None:
    found = document(command, "translate", LONG, "l1v:0x400000", "--access", "u", status=1)
    assert found["result"]["status"] == "permission"
    assert document(command, "translate", LONG, "l1v:0x0", "--access", "ru")
    assert command("mem", "translate", LONG, "0", "--access", "q").returncode == 2


def test_map_says_why(command: Run) -> None:
    found = document(command, "map", LONG, "l1p")
    assert [(one["start"], one["reason"]) for one in found["ranges"]] == [
        ("0x0", "CMOS"), ("0xfffc0000", "firmware ends at 4 GiB"), ("0x100000000", "CMOS"),
    ]  # fmt: skip
    assert "[CMOS]" in lines(command, "map", LONG, "l1p")[1]
    ranges = document(command, "map", LONG, "l1v")
    assert ranges["complete"]
    assert ranges["ranges"][0]["target"] is None
    leaves = document(command, "map", LONG, "l1v", "--leaves")
    assert len(leaves["ranges"]) > len(ranges["ranges"])
    assert leaves["ranges"][0]["target"] == "0x0"
    assert len(lines(command, "map", NPT)) == 2


def test_search(command: Run) -> None:
    with opened(NPT) as memory:
        code = memory.world("l2v").read(memory.l2_registers(0).next_instruction, 8)
    found = document(command, "search", NPT, "l2v", "--hex", code.hex())
    assert found["hits"]
    assert found["hits"][0]["l1_physical"].startswith("0x5")
    assert found["hits"][0]["l2_physical"]
    none = document(command, "search", NPT, "--string", "nothing like this", status=1)
    assert (none["hits"], none["complete"]) == ([], True)
    few = document(command, "search", NPT, "--hex", "00", "--most", "3")
    assert (len(few["hits"]), few["complete"]) == (3, False)
    wrong: list[tuple[str, ...]] = [
        (), ("--hex", "0g"), ("--u64", "x"), ("--string", ""), ("--u64", "1", "--hex", "1"),
    ]  # fmt: skip
    for args in wrong:
        assert command("mem", "search", NPT, *args).returncode == 2


def test_read_into_a_file(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "out"
    done = command("mem", "read", LONG, "l1p:0xfff000", "-n", "8K", "-o", path)
    assert done.returncode == 1
    assert b"4096 bytes are zeros" in done.stderr
    with opened(LONG) as memory:
        assert path.read_bytes() == memory.read(0xFFF000, 4096) + bytes(4096)
    assert command("mem", "read", LONG, "0", "-o", path).returncode != 0
    assert command("mem", "read", LONG, "0", "-n", "4K", "-o", path, "-f").returncode == 0
    piped = command("mem", "read", LONG, "0", "-n", "4K", "-o", "-")
    assert piped.stdout == path.read_bytes()


def test_core(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "l2 core"
    found = document(command, "core", NPT, "-o", path, "--of", "l2")
    assert found["of"] == "l2"
    assert found["commands"][0] == f"crash -s vmlinux '{path}'"
    assert any("VMCOREINFO" in words for words in found["missing"])
    assert path.stat().st_size == found["size"]
    again = command("mem", "core", NPT, "-o", path)
    assert again.returncode != 0
    assert b"exists" in again.stderr
    said = lines(command, "core", NPT, "-o", path, "-f", "--for", "gdb")
    assert "core of L1 for gdb" in said[0]
    assert said[-1].startswith("  open with   gdb -ex 'file vmlinux' -c '")
    assert command("mem", "core", LONG, "-o", tmp_path / "x", "--of", "l2").returncode == 2
    assert [one.name for one in tmp_path.iterdir()] == ["l2 core"]


def test_a_note_of_the_users_own(command: Run, tmp_path: Path) -> None:
    note = tmp_path / "note"
    note.write_text("OSRELEASE=6.1.0-test\nKERNELOFFSET=1c000000\n")
    found = document(command, "core", NPT, "-o", tmp_path / "c", "--vmcoreinfo", note)
    assert found["vmcoreinfo"]["release"] == "6.1.0-test"
    assert found["vmcoreinfo"]["kaslr_offset"] == "0x1c000000"
    none = document(command, "core", NPT, "-o", tmp_path / "d", "--vmcoreinfo", "none")
    assert none["vmcoreinfo"] is None
    note.write_text("nothing")
    assert command("mem", "core", NPT, "-o", tmp_path / "e", "--vmcoreinfo", note).returncode == 2


@pytest.mark.parametrize(
    "args",
    [
        ("read", LONG, "l2v:0"), ("read", LONG, "l9p:0"), ("read", LONG, "zz"),
        ("read", LONG, "0", "/16q"), ("read", LONG, "0", "/4x", "-n", "4"),
        ("read", LONG, "0", "-n", "many"), ("read", LONG, "0x1ffffffffffffffff"),
        ("map", LONG, "l7"), ("read", LONG, "0", "--vcpu", "7"), ("read", LONG, "rip-0x900000000"),
    ],
)  # fmt: skip
def test_mistakes_of_the_user(command: Run, args: tuple[str | Path, ...]) -> None:
    done = command("mem", *args)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr


def test_damage_is_status_3(command: Run, tmp_path: Path, sample: bytes) -> None:
    path = tmp_path / "cut"
    path.write_bytes(sample[: len(sample) // 3])
    done = command("mem", "read", path, "l1p:0", "-n", "16")
    assert done.returncode == 3
    assert b"offset" in done.stderr
    assert command("mem", "core", path, "-o", tmp_path / "core").returncode == 3


def test_disassembly(command: Run) -> None:
    pytest.importorskip("capstone")
    found = document(command, "disasm", NPT, "l1v:rip-3", "-n", "2")
    assert found["instructions"][0]["text"].startswith("vmrun")
    text = lines(command, "disasm", NPT, "-n", "3")
    assert text[1].startswith("=> 0x")
    assert lines(command, "read", NPT, "rip", "/3i") == text


def test_a_missing_package_is_status_4(
    svmstream: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "capstone.py").write_text("raise ImportError")
    (tmp_path / "drgn.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for verb in ("disasm", "drgn"):
        done = svmstream("mem", verb, NPT)
        assert done.returncode == 4
        assert b"pip install" in done.stderr


def test_drgn_needs_a_linux(command: Run) -> None:
    pytest.importorskip("drgn")
    done = command("mem", "drgn", NPT, "-e", "pass")
    assert done.returncode == 2
    assert b"no VMCOREINFO of l1" in done.stderr


def test_worlds_are_completed() -> None:
    found = _complete_where(None, None, "l2")  # type: ignore[arg-type]
    assert [one.value for one in found] == ["l2p:", "l2v:"]
    found = _complete_world(None, None, "")  # type: ignore[arg-type]
    assert [one.value for one in found] == ["l1p", "l1v", "l2p", "l2v"]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from qemu_svm.cli import cli\n"
        "try: cli(['mem', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'construct', 'rich', 'numpy', 'drgn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
