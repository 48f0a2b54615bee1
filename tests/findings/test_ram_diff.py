"""RAM of two streams by content: made ones of every kind, and real ones."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import Unsupported
from qemu_svm.findings.masks import user_masks
from qemu_svm.findings.ram_diff import BlockDiff, PageState, RamDiff, RamRange, compare_ram
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import read_stream
from qemu_svm.stream.ram.read import Ram, read_ram
from qemu_svm.stream.ram.runs import Place
from tests.conftest import STREAMS, Run
from tests.support import builders
from tests.support.builders import PAGE, counted, page, word, zero

PAGES = 12
KINDS = STREAMS / "kinds"


def ram_of(*records: bytes, blocks: dict[str, int] | None = None) -> Ram:
    data = builders.stream([], [b"".join(records)], blocks or {"pc.ram": PAGES * PAGE})
    return read_ram(read_stream(BytesSource(data)))


@contextlib.contextmanager
def real(name: str) -> Iterator[Ram]:
    with contextlib.ExitStack() as stack:
        paths = [KINDS / f"{name}.mig.zst", *sorted(KINDS.glob(f"{name}.channel?.zst"))]
        main, *others = (stack.enter_context(open_source(str(path))) for path in paths)
        yield stack.enter_context(read_ram(read_stream(main), others))


def only(found: RamDiff) -> BlockDiff:
    (block,) = found.blocks
    return block


def test_states_and_ranges() -> None:
    a = ram_of(
        page(0, b"same", "pc.ram"), page(PAGE, b"a"), page(2 * PAGE, b"a"), page(3 * PAGE, b""),
        zero(4 * PAGE), page(5 * PAGE, b"x"), zero(6 * PAGE),
    )  # fmt: skip
    b = ram_of(
        page(0, b"same", "pc.ram"), page(PAGE, b"b"), page(2 * PAGE, b"bc"), zero(3 * PAGE),
        page(4 * PAGE, b"y"), zero(5 * PAGE), zero(6 * PAGE), zero(7 * PAGE), page(8 * PAGE, b"z"),
    )  # fmt: skip
    block = only(compare_ram(a, b))
    assert (block.pages, block.same, block.different) == (PAGES, 3, 4)
    assert (block.only_a, block.only_b, block.never) == (0, 2, 3)
    found = [(one.page, one.count, one.a, one.b, one.different) for one in block.ranges]
    assert found == [
        (1, 2, PageState.DATA, PageState.DATA, 3),
        (4, 1, PageState.ZERO, PageState.DATA, 1),
        (5, 1, PageState.DATA, PageState.ZERO, 1),
        (7, 1, PageState.NEVER, PageState.ZERO, 0),
        (8, 1, PageState.NEVER, PageState.DATA, 0),
    ]
    first = block.ranges[0]
    assert first.place_a is not None
    assert a.read_at(Place(0, first.place_a), 1) == b"a"
    assert block.ranges[-1].place_a is None


def test_pages_filled_with_something() -> None:
    fill = zero(PAGE)[:-1] + b"\xaa"
    a = ram_of(zero(0, "pc.ram"), fill, fill[:-9] + zero(2 * PAGE)[:-1] + b"\xbb")
    b = ram_of(zero(0, "pc.ram"), page(PAGE, b"\xaa" * PAGE), zero(2 * PAGE))
    block = only(compare_ram(a, b))
    assert (block.same, block.different) == (2, 1)
    (one,) = block.ranges
    assert one == RamRange(2, 1, PageState.DATA, PageState.ZERO, PAGE, one.place_a, one.place_b)


def test_blocks_that_only_one_side_has_or_of_another_size() -> None:
    a = ram_of(page(0, b"x", "big"), blocks={"big": 3 * PAGE, "mine": PAGE})
    b = ram_of(page(0, b"x", "big"), zero(4 * PAGE), blocks={"big": 5 * PAGE, "yours": PAGE})
    big, mine, yours = compare_ram(a, b).blocks
    assert (big.pages, big.same, big.never, big.only_b) == (5, 1, 3, 1)
    assert (mine.size_a, mine.size_b, mine.counts) == (PAGE, None, False)
    assert (yours.size_a, yours.size_b) == (None, PAGE)


def test_masks() -> None:
    a, b = ram_of(page(0, b"x", "pc.ram")), ram_of(page(0, b"y", "pc.ram"))
    assert not compare_ram(a, b).same
    found = compare_ram(a, b, user_masks(["ram.pc.*"]))
    assert found.same
    assert only(found).mask is not None
    assert not compare_ram(a, b, user_masks(["ram.pc.rom"])).same


def test_too_many_ranges_are_counted() -> None:
    a = ram_of(*(page(n * PAGE, b"x", "pc.ram") for n in range(0, PAGES, 2)))
    block = only(compare_ram(a, ram_of(), most_ranges=4))
    assert (len(block.ranges), block.dropped, block.only_a) == (4, 2, 6)


def test_what_cannot_be_read_is_counted() -> None:
    bad = word(PAGE | 0x120) + (9).to_bytes(4, "big") + b"not zlib!"
    a = ram_of(page(0, b"x", "pc.ram"), bad)
    b = ram_of(page(0, b"x", "pc.ram"), page(PAGE, b"y"))
    found = compare_ram(a, b)
    block = only(found)
    assert (block.same, block.different, block.unreadable) == (1, 0, 1)
    ((side, problem),) = found.problems
    assert side == "a"
    assert problem.offset > 0


def test_guests_of_other_page_sizes() -> None:
    a, b = ram_of(), ram_of()
    with pytest.raises(Unsupported):
        compare_ram(a, Ram(b.entries, b.runs, 2 * PAGE, b.inputs, (), 0, ()))


def test_a_guest_is_as_large_as_what_was_sent() -> None:
    # Claims cost nothing: memory follows the pages that are there.
    size = 1 << 62
    a = ram_of(page(size - PAGE, b"last", "pc.ram"), blocks={"pc.ram": size})
    b = ram_of(zero(0, "pc.ram"), page(size - PAGE, b"LAST"), blocks={"pc.ram": size})
    block = only(compare_ram(a, b))
    assert (block.pages, block.never) == (size // PAGE, size // PAGE - 2)
    assert (block.only_b, block.different) == (1, 1)
    assert [one.page for one in block.ranges] == [0, size // PAGE - 1]


# A page's content in a few bytes, so that many of them are alike.
contents = st.sampled_from([b"", b"a", b"ab", b"\0b", b"\xaa" * PAGE])


@st.composite
def guests(draw: st.DrawFn) -> tuple[Ram, dict[int, bytes]]:
    """RAM sent in whatever way, and what must be in it."""
    held: dict[int, bytes] = {}
    out = []
    for _ in range(draw(st.integers(0, 25))):
        number = draw(st.integers(0, PAGES - 1))
        content = draw(contents).ljust(PAGE, b"\0")
        name, offset = counted("pc.ram"), number * PAGE
        way = draw(st.sampled_from(["page", "fill", "zlib", "delta"]))
        if way == "fill":
            content = content[:1] * PAGE
            out.append(word(offset | 0x02) + name + content[:1])
        elif way == "zlib":
            body = zlib.compress(content)
            out.append(word(offset | 0x100) + name + len(body).to_bytes(4, "big") + body)
        elif way == "delta":
            new = content[:2]
            content = new + held.get(number, bytes(PAGE))[2:]
            out.append(word(offset | 0x40) + name + b"\1\0\4\0\2" + new)
        else:
            out.append(page(offset, content, "pc.ram"))
        held[number] = content
    return ram_of(*out), held


@settings(max_examples=150)
@given(guests(), guests())
def test_it_says_what_reading_page_by_page_says(
    one: tuple[Ram, dict[int, bytes]], two: tuple[Ram, dict[int, bytes]]
) -> None:
    (a, in_a), (b, in_b) = one, two
    block = only(compare_ram(a, b))
    both = in_a.keys() & in_b.keys()
    different = {number for number in both if in_a[number] != in_b[number]}
    assert block.different == len(different)
    assert block.only_a == len(in_a.keys() - in_b.keys())
    assert block.only_b == len(in_b.keys() - in_a.keys())
    assert block.never == PAGES - len(in_a.keys() | in_b.keys())
    assert block.same == len(both) - len(different)
    covered = [n for one in block.ranges for n in range(one.page, one.page + one.count)]
    assert sorted(covered) == sorted(different | (in_a.keys() ^ in_b.keys()))
    assert sum(one.different for one in block.ranges) == sum(
        x != y for n in different for x, y in zip(in_a[n], in_b[n], strict=True)
    )
    for number in range(PAGES):
        assert a.read_page(0, number) == in_a.get(number, bytes(PAGE))


NAMES = sorted(path.name.removesuffix(".mig.zst") for path in KINDS.glob("*.mig.zst"))


@pytest.mark.parametrize("name", NAMES)
def test_a_real_stream_of_every_kind_against_itself(name: str) -> None:
    with real(name) as a, real(name) as b:
        found = compare_ram(a, b)
        assert found.same
        assert found.problems == ()
        for block in found.blocks:
            assert block.pages == block.same + block.never
        if "ignore-shared" not in name:
            assert sum(block.never for block in found.blocks) == 0


def pairs() -> Sequence[tuple[str, str]]:
    # The guests of one QEMU have the same firmware, whatever the way it was sent.
    ways = ("xbzrle", "mapped-ram", "mapped-ram-multifd", "multifd", "multifd-zstd", "multifd-zlib")
    ways += ("postcopy", "background-snapshot")
    return [("qemu10.0-resent", f"qemu10.0-{way}") for way in ways] + [
        ("qemu7.2-compress", "qemu7.2-multifd"), ("qemu7.2-compress", "qemu7.2-xbzrle")
    ]  # fmt: skip


@pytest.mark.parametrize(("one", "two"), pairs())
def test_the_same_firmware_sent_in_other_ways(one: str, two: str) -> None:
    with real(one) as a, real(two) as b:
        found = {block.name: block for block in compare_ram(a, b).blocks}
        assert (found["pc.bios"].same, found["pc.bios"].pages) == (64, 64)
        main = found["pc.ram"]
        assert main.pages == 4096
        # The guest counts in 64 pages, and little else changes.
        assert 4000 < main.same < 4096
        assert sum(one.count for one in main.ranges) == main.different == 4096 - main.same


def test_the_verb(command: Run) -> None:
    one, two = KINDS / "qemu10.0-multifd.mig.zst", KINDS / "qemu10.0-multifd-zlib.mig.zst"
    channels = []
    for side, path in (("a", one), ("b", two)):
        for number in (1, 0):
            channel = str(path).replace(".mig.", f".channel{number}.")
            channels += [f"--channel-{side}", channel]
    done = command("diff", one, two, "--ram", *channels)
    assert (done.returncode, done.stderr) == (1, b"")
    text = done.stdout.decode()
    start = text.index("RAM pages")
    lines = text[start : text.index("masked (", start)].splitlines()
    assert lines[1].split() == ["block", "pages", "same", "differ", "only", "A", "only", "B"]
    assert all(len(line) <= 80 for line in lines)
    document = json.loads(command("diff", one, two, "--ram", "--json", *channels).stdout)
    main = document["ram"][0]
    assert main["name"] == "pc.ram"
    assert main["pages"]["different"] == sum(one["size"] for one in main["ranges"]) // PAGE
    assert document["same"] is False


def test_the_same_ram_and_the_exit_status(command: Run) -> None:
    path = KINDS / "qemu10.0-mapped-ram.mig.zst"
    done = command("diff", path, path, "--ram", "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["same"] is True
    assert all(not block["ranges"] for block in document["ram"])
    assert json.loads(command("diff", path, path, "--json").stdout)["ram"] is None


def test_channels_that_are_missing(command: Run) -> None:
    path = KINDS / "qemu10.0-multifd.mig.zst"
    done = command("diff", path, path, "--ram")
    assert done.returncode == 3
    assert b"--channel-a" in done.stderr
    done = command("diff", path, path, "--channel-a", "x")
    assert done.returncode == 2
