"""Postcopy: commands, the package, pages that come over a second connection."""

from __future__ import annotations

import json

import pytest

from qemu_svm.errors import Malformed, StreamError, Truncated
from qemu_svm.machine import read_machine
from qemu_svm.machine.paths import find
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import Kind, Stream, read_stream
from qemu_svm.stream.commands import command_values, discarded
from qemu_svm.stream.ram.problems import all_problems, is_complete
from qemu_svm.stream.ram.read import Ram, read_ram
from qemu_svm.stream.recognise import seen_elsewhere
from tests.conftest import STREAMS, Run
from tests.support import builders
from tests.support.builders import PAGE, counted, page, word, zero

PREEMPT = STREAMS / "kinds" / "qemu7.2-postcopy-preempt.mig.zst"
ASKED = STREAMS / "kinds" / "qemu7.2-postcopy-preempt.channel0.zst"
PAGES = 8


def discard(*ranges: tuple[int, int], block: str = "pc.ram") -> bytes:
    body = b"\0" + counted(block) + b"\0"
    body += b"".join(word(first * PAGE) + word(count * PAGE) for first, count in ranges)
    return builders.command(6, body)


def main_stream(before: bytes, discards: bytes, after: bytes) -> Stream:
    data = builders.stream([], [before, after], {"pc.ram": PAGES * PAGE}, describe=False)
    at = data.index(builders.referring(2, 2, after + builders.EOS))
    return read_stream(BytesSource(data[:at] + discards + data[at:]))


def ram_with(stream: Stream, *others: bytes) -> Ram:
    return read_ram(stream, [BytesSource(data) for data in others])


STALE = page(0, b"old", "pc.ram") + page(PAGE, b"old") + page(2 * PAGE, b"old")


def test_pages_that_were_asked_for() -> None:
    stream = main_stream(STALE, discard((0, 2), (5, 1)), page(0, b"new", "pc.ram"))
    (problem,) = ram_with(stream).problems
    assert isinstance(problem, Truncated)
    assert problem.what.startswith("2 pages")
    assert "--channel" in str(problem)
    for end in (b"", builders.EOS):
        ram = ram_with(stream, page(PAGE, b"asked", "pc.ram") + zero(5 * PAGE, "pc.ram") + end)
        assert ram.problems == ()
        assert is_complete(stream, ram)
        (extra,) = ram.extras
        assert (extra.kind, extra.pages) == ("preempt", 2)
        assert [ram.read_page(0, n)[:5] for n in (0, 1, 2, 5)] == [
            b"new\0\0", b"asked", b"old\0\0", bytes(5)
        ]  # fmt: skip


def test_an_empty_second_connection() -> None:
    ram = ram_with(main_stream(STALE, discard(), zero(3 * PAGE)), b"")
    assert ram.problems == ()
    assert ram.extras[0].pages == 0
    with pytest.raises(Malformed, match="is empty"):
        ram_with(main_stream(STALE, b"", zero(3 * PAGE)), b"")


def test_discards_of_another_block_or_nonsense() -> None:
    odd = discard((0, 1), block="other") + discard((100, 5)) + discard() + builders.command(6, b"")
    assert ram_with(main_stream(STALE, odd, zero(3 * PAGE))).problems == ()


@pytest.mark.parametrize("cut", [3, 9, 20, 4000, 15 + PAGE - 8, 15 + PAGE - 1])
def test_a_second_connection_that_is_cut(cut: int) -> None:
    stream = main_stream(STALE, b"", zero(3 * PAGE))
    ram = ram_with(stream, page(PAGE, b"asked", "pc.ram")[:cut])
    (problem,) = ram.problems
    assert isinstance(problem, Truncated)
    assert problem.section == "connection 1 (preempt)"
    assert problem.offset == cut


def test_a_second_connection_that_is_damaged() -> None:
    stream = main_stream(STALE, b"", zero(3 * PAGE))
    good = page(PAGE, b"asked", "pc.ram")
    ram = ram_with(stream, good + page(2 * PAGE, b"x", "nowhere"))
    (problem,) = ram.problems
    assert isinstance(problem, Malformed)
    assert problem.offset == len(good) + 8
    assert ram.read_page(0, 1)[:5] == b"asked"


def test_a_resumed_connection() -> None:
    whole = builders.stream([], [STALE, page(PAGE, b"lost")], {"pc.ram": PAGES * PAGE})
    first = whole[: whole.index(b"lost")]
    commands = builders.command(10, counted("pc.ram")) + builders.command(9)
    second = (
        commands
        + builders.referring(2, 2, page(PAGE, b"again", "pc.ram") + builders.EOS)
        + builders.referring(3, 2, builders.EOS)
        + b"\0"
    )
    stream = read_stream(BytesSource(first))
    assert not stream.complete
    ram = ram_with(stream, second)
    assert is_complete(stream, ram)
    assert all_problems(stream, ram) == ()
    assert (ram.extras[0].kind, ram.extras[0].ended) == ("resumed", True)
    assert [ram.read_page(0, n)[:5] for n in (0, 1, 2)] == [b"old\0\0", b"again", b"old\0\0"]
    for cut in (len(second) - 1, len(commands) + 30):
        ram = ram_with(stream, second[:cut])
        assert not is_complete(stream, ram)
        assert ram.problems[-1].offset == cut


def test_a_connection_that_broke_off_too() -> None:
    whole = builders.stream([], [STALE, page(PAGE, b"lost")], {"pc.ram": PAGES * PAGE})
    stream = read_stream(BytesSource(whole[: whole.index(b"lost")]))
    commands = builders.command(10, counted("pc.ram")) + builders.command(9)
    again = commands + builders.referring(2, 2, page(PAGE, b"again", "pc.ram"))
    again = again[: again.index(b"again") + 9]
    asked = page(2 * PAGE, b"asked", "pc.ram")[:-1]
    third = (
        commands
        + builders.referring(2, 2, page(PAGE, b"third", "pc.ram") + builders.EOS)
        + builders.referring(3, 2, builders.EOS)
        + b"\0"
    )
    ram = ram_with(stream, asked, again, third)
    assert all_problems(stream, ram) == ()
    assert is_complete(stream, ram)
    assert ram.read_page(0, 1)[:5] == b"third"
    # The last one, and what is damaged, is told, in the connection's own offsets.
    ram = ram_with(stream, asked, again, third[:-1])
    last = ram.problems[-1]
    assert (last.section, last.offset) == ("connection 3 (resumed)", len(third) - 1)
    ram = ram_with(stream, again)
    problem = ram.problems[-1]
    assert problem.section == "connection 1 (resumed)"
    assert "0x1000000" not in str(problem)
    assert f"at {problem.offset - 9:#x}" in str(problem)
    ram = ram_with(stream, page(PAGE, b"asked", "nowhere"), third)
    assert isinstance(all_problems(stream, ram)[-1], Malformed)


RETURN_PATH = {
    "pong": b"\0\2\0\4\0\0\0\1",
    "shut": b"\0\1\0\4\0\0\0\0",
    "pages": b"\0\3\0\x13" + bytes(12) + b"\6pc.ram",
    "more pages": b"\0\4\0\x0c" + bytes(12),
    "bitmap": b"\0\5\0\7\6pc.ram",
    "resumed": b"\0\6\0\4\0\0\0\1",
    "switchover": b"\0\7\0\0",
}


@pytest.mark.parametrize("name", RETURN_PATH)
def test_the_return_path_is_refused(name: str, command: Run) -> None:
    data = RETURN_PATH[name] + RETURN_PATH["pong"]
    with pytest.raises(StreamError, match="return path"):
        read_stream(BytesSource(data))
    with pytest.raises(StreamError, match="return path"):
        ram_with(main_stream(STALE, b"", zero(3 * PAGE)), data)
    done = command("inspect", "-", input=data)
    assert done.returncode == 3
    assert b"the destination's replies" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (builders.command(10, counted("pc.ram")), "resumed"),
        (page(0, b"x", "pc.ram"), "postcopy-preempt"),
        (builders.EOS, "postcopy-preempt"),
        (b"QEVM\0\0\0\3" + bytes(8), None),
        (b"nonsense that is not known", None),
        (b"", None),
    ],
)
def test_what_may_be_at_hand_instead(data: bytes, words: str | None) -> None:
    found = seen_elsewhere(data)
    assert (found is None) is (words is None)
    assert words is None or words in str(found)


def test_a_main_stream_is_no_channel() -> None:
    stream = main_stream(STALE, b"", zero(3 * PAGE))
    with pytest.raises(Malformed, match="a separate stream"):
        ram_with(stream, builders.stream())


# Commands.


def test_values_of_commands() -> None:
    ping = command_values("PING", b"\0\0\0\x42", 100)
    assert [(v.name, v.offset, v.size, v.value) for v in ping.children] == [("value", 100, 4, 0x42)]
    advise = command_values("POSTCOPY_ADVISE", word(0x1000) + word(0x1000), 0)
    assert advise.number("target_page_size") == 0x1000
    assert command_values("POSTCOPY_ADVISE", b"", 0).children == ()
    assert command_values("command 77", b"abc", 9).value == b"abc"
    body = discard((1, 2), (4, 1))[5:]
    assert discarded(body) == ("pc.ram", ((PAGE, 2 * PAGE), (4 * PAGE, PAGE)))
    for cut in range(len(body)):
        discarded(body[:cut])
    named = command_values("RECV_BITMAP", counted("pc.ram"), 0)
    assert named.children[0].value == "pc.ram"


def test_real_commands_are_shown(command: Run) -> None:
    with open_source(str(PREEMPT)) as source:
        machine = read_machine(read_stream(source))
        records = [r for r in machine.stream.records if r.kind is Kind.COMMAND]
        shown = {str(r.name): find(machine, f"@{r.payload}") for r in records if r.payload_size}
    assert shown["PING"].path == "command PING.value"
    assert shown["POSTCOPY_ADVISE"].value.value == 0x1000
    assert shown["PACKAGED"].path == "command PACKAGED.bytes"
    at = next(r for r in records if r.name == "POSTCOPY_RAM_DISCARD").payload + 1
    one = json.loads(command("show", PREEMPT, f"@{at}", "--json").stdout)
    assert (one["path"], one["value"]) == ("command POSTCOPY_RAM_DISCARD.block", "pc.ram")


# A real capture of both connections.


def test_a_real_second_connection() -> None:
    with open_source(str(PREEMPT)) as main, open_source(str(ASKED)) as other:
        stream = read_stream(main)
        (problem,) = read_ram(stream).problems
        ram = read_ram(stream, [other])
        assert is_complete(stream, ram)
        (extra,) = ram.extras
        # Every page that was discarded came once, over one of the connections.
        assert problem.what.startswith(f"{extra.pages} pages")
        # The guest counts in 64 pages: what it touched first was asked for.
        counters = [ram.read(0, at, 4) for at in range(0x20000, 0x60000, 0x1000)]
        values = {int.from_bytes(counter, "little") for counter in counters}
        assert max(values) - min(values) <= 1
        assert min(values) > 1000


def test_the_verb_says_what_is_missing(command: Run) -> None:
    done = command("ram", PREEMPT)
    assert done.returncode == 3
    assert b"were not sent again" in done.stderr
    done = command("ram", PREEMPT, "--channel", ASKED, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    document = json.loads(done.stdout)
    assert document["complete"] is True
    assert document["connections"][0]["kind"] == "preempt"
    assert document["connections"][0]["pages"] > 10
