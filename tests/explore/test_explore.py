"""The explorer: what it shows, its keys, and a real terminal of 80 columns and 24 rows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from textual.widgets import Input

from qemu_svm import api
from qemu_svm.errors import PathError, SvmStreamError
from qemu_svm.explore.app import ExploreApp
from qemu_svm.explore.items import Explorer
from tests.conftest import STREAMS, Run

ONE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
TWO = STREAMS / "qemu10.0-linux6.12-nested-npt.resaved.mig.zst"
ASID = "vcpu0.nested.control.asid"


@pytest.fixture(scope="module")
def explorer() -> Iterator[Explorer]:
    with api.open(ONE) as dump:
        yield Explorer(dump)


@pytest.fixture(scope="module")
def both() -> Iterator[Explorer]:
    with api.open(ONE) as a, api.open(TWO) as b:
        yield Explorer(a, b)


def screen(app: ExploreApp) -> str:
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(part.text for part in strip) for strip in strips)


def screens(explorer: Explorer, *steps: str, size: tuple[int, int] = (80, 24)) -> list[str]:
    """What the screen shows at first, and after each step: keys, ``'abc`` for a typed text."""

    async def run() -> list[str]:
        app = ExploreApp(explorer)
        async with app.run_test(size=size, notifications=True) as pilot:
            await pilot.pause()
            found = [screen(app)]
            for step in steps:
                for key in step.split():
                    if key.startswith("'"):
                        app.screen.query_one(Input).value = key[1:]
                    else:
                        await pilot.press(key)
                    await pilot.pause()
                found.append(screen(app))
            return found

    return asyncio.run(run())


def test_every_item_of_the_tree_opens(explorer: Explorer) -> None:
    seen, others = 0, set()
    todo = explorer.roots()
    while todo:
        item = todo.pop()
        todo += explorer.children(item)
        rows = explorer.rows(item.path)
        seen += len(rows)
        for row in rows[::7]:  # each is decoded from the section's start
            shown = explorer.value(row.path)
            assert shown is not None
            if (shown.offset, shown.size) != (row.offset, row.size):
                others.add(row.path)
    assert seen > 500
    # QEMU has a field of this very name beside the array.
    assert others <= {"section:i8254.channels[0].next_transition_time"}


def test_bytes_are_those_of_the_stream(explorer: Explorer) -> None:
    value = explorer.dump[ASID]
    found = explorer.bytes_around(value.offset, value.size, 5)
    assert found is not None
    at = found.at - found.start
    assert found.data[at : at + found.size] == bytes([1, 0, 0, 0])
    assert explorer.bytes_around(0, 0, 5) is None


def test_search_by_name_text_and_number_goes_round(explorer: Explorer) -> None:
    assert list(explorer.search("nested.control.asid")) == [ASID]
    assert next(explorer.search("pc-i440fx-10.0")) == "configuration.machine"
    numbers = list(explorer.search("0x108000"))
    assert "vcpu0.nested.vmcb_pa" in numbers
    after = list(explorer.search("0x108000", numbers[0]))
    assert after == numbers[1:]  # the one where it stands comes last, and is left out
    assert not list(explorer.search("no such thing"))


def test_paths_and_offsets_that_people_type(explorer: Explorer) -> None:
    value = explorer.value(ASID)
    assert value is not None
    for text in (ASID, f"{value.offset:#x}", f"@{value.offset}", f" {value.offset} "):
        assert explorer.canonical(text) == ASID
    assert explorer.canonical("vcpu0.cr3") == "vcpu0.registers.cr3"
    for wrong in ("", "vcpu9", "0xffffffffffff", "@x"):
        with pytest.raises(PathError):
            explorer.canonical(wrong)


@given(st.text(max_size=30))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_path_or_our_error(explorer: Explorer, text: str) -> None:
    with contextlib.suppress(SvmStreamError):
        explorer.rows(explorer.canonical(text))
    next(explorer.search(text), None)


def test_addresses_are_followed_into_the_memory_that_they_are_meant_for(
    explorer: Explorer,
) -> None:
    assert explorer.worlds("vcpu0.nested.vmcb_pa")[0] == "l1p"
    assert explorer.worlds("vcpu0.registers.rip")[0] == "l2v"
    assert explorer.worlds("vcpu0.registers.cr3")[0] == "l2p"
    assert explorer.worlds("vcpu0.nested.l1_save.rip")[0] == "l1v"
    value = explorer.value("vcpu0.registers.rip")
    assert value is not None
    assert isinstance(value.value, int)
    (line, *_) = explorer.memory("l2v", value.value & ~15, 16, "vcpu0.registers.rip")
    wanted = explorer.dump.memory.world("l2v").read(value.value & ~15, 16)
    assert wanted.hex(" ") in line.plain
    (hole,) = explorer.memory("l1p", 1 << 45, 16)
    assert "no-ram" in hole.plain


def test_differences_are_those_of_diff(both: Explorer) -> None:
    report = api.diff(ONE, TWO)
    assert {one.path for one in both.compared} == {
        one.path for one in report.comparison.differences
    }
    rows = {row.name: row for row in both.rows("vcpu0.registers")}
    assert rows["rcx"].differs
    assert not rows["cr3"].differs


def test_first_screen_fits_80_by_24(explorer: Explorer) -> None:
    (shown,) = screens(explorer)
    lines = shown.splitlines()
    assert len(lines) == 24
    assert lines[0].startswith(str(ONE)[:40])
    for word in ("vcpu0", "registers", "nested", "sections", "findings", "Search", "Quit"):
        assert word in shown


def test_the_keys(explorer: Explorer) -> None:
    _, found, went, register, back, vmcb, memory, world, findings, wrong, copied, words = screens(
        explorer,
        "slash 'control.asid enter",
        "g '0x98e02 enter",
        "g 'vcpu0.cr3 enter",
        "b",
        "g 'vcpu0.nested.vmcb_pa enter",
        "m",
        "w pagedown",
        "escape f",
        "g 'zzz enter",
        "g 'vcpu0.nested.control.asid enter c",
        "question_mark",
    )
    assert "L2's ASID" in found
    assert f"{ASID}: 4 bytes at 0x98e02" in found
    assert f"{ASID}: 4 bytes" in went
    assert "vcpu0.registers.cr3: 8 bytes" in register
    assert f"{ASID}: 4 bytes" in back
    assert "vcpu0.nested.vmcb_pa: 8 bytes" in vmcb
    assert "l1p:0x108000" in memory
    assert "l1v:0x108100" in world
    assert "O-28" in findings
    assert "unknown path 'zzz'" in wrong
    assert "copied: vcpu0.nested" in copied
    assert "guest memory at the chosen value" in words


def test_two_files_side_by_side(both: Explorer) -> None:
    shown = screens(both, "d d enter", size=(120, 30))[-1]
    assert "A: " in shown.splitlines()[0]
    assert "B: " in shown.splitlines()[0]
    assert "!=" in shown


def test_hostile_names_are_not_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "[red]a\x1b[31m.mig"
    path.write_bytes(ONE.read_bytes())
    with api.open(path) as dump:
        (shown,) = screens(Explorer(dump), size=(160, 24))
    assert "\x1b" not in shown
    assert "[red]a\\x1b[31m.mi" in shown


def test_a_cut_stream_is_walked_too(tmp_path: Path) -> None:
    with api.open(ONE) as dump:
        data = dump.machine.stream.source.read_at(0, 0x98E10)
    path = tmp_path / "cut.mig"
    path.write_bytes(data)
    with api.open(path) as dump:
        explorer = Explorer(dump)
        assert "(NOT COMPLETE)" in screens(explorer, size=(160, 24))[0].splitlines()[0]
        assert any("error" in item.label for item in explorer.children(explorer.roots()[-1]))


def test_not_a_terminal(svmstream: Run) -> None:
    done = svmstream("explore", ONE)
    assert done.returncode == 2
    assert b"needs a terminal" in done.stderr


@pytest.mark.qemu
@pytest.mark.parametrize("end", ["q", "C-c"])
def test_in_tmux_without_colour(tmp_path: Path, end: str) -> None:
    socket = str(tmp_path / "tmux")
    command = f"{sys.executable} -m qemu_svm explore {ONE} {TWO}; echo STATUS=$?; sleep 60"

    def tmux(*words: str) -> str:
        return subprocess.run(
            ["tmux", "-S", socket, *words], check=True, capture_output=True, text=True,
            env=os.environ | {"NO_COLOR": "1", "TERM": "vt100"},
        ).stdout  # fmt: skip

    def seen(met: Callable[[str], bool]) -> str:
        for _ in range(150):
            shown = tmux("capture-pane", "-p")
            if met(shown):
                return shown
            time.sleep(0.1)
        raise AssertionError(shown)

    tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", command)
    try:
        first = seen(lambda shown: "registers" in shown and "Search" in shown)
        assert len(first.splitlines()) <= 24
        tmux("send-keys", "g")
        seen(lambda shown: "Path, or offset" in shown)
        tmux("send-keys", ASID, "Enter")
        seen(lambda shown: f"{ASID}: 4 bytes" in shown)
        tmux("send-keys", end)
        assert "STATUS=0" in seen(lambda shown: "STATUS=" in shown)
    finally:
        tmux("kill-server")
