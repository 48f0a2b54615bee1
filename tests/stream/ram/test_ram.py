"""RAM: every kind of record, the quick index against the slow one, content."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import Malformed, PathError, StreamError, Truncated
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import LayoutOrigin, Walk, read_stream
from qemu_svm.stream.constants import RecordType
from qemu_svm.stream.ram.coverage import coverage
from qemu_svm.stream.ram.gallop import gallop
from qemu_svm.stream.ram.mapped import MappedBlock, MappedPages
from qemu_svm.stream.ram.problems import all_problems, is_complete
from qemu_svm.stream.ram.read import Ram, read_ram
from qemu_svm.stream.ram.runs import PageKind, RamRuns
from qemu_svm.stream.ram.scan import Scanner, scan, scan_records
from qemu_svm.stream.vmstate.lend import description_of
from tests.conftest import STREAMS
from tests.support import builders
from tests.support.builders import PAGE, counted, page, word, zero

BLOCKS = {"pc.ram": 64 * PAGE, "vga": 16 * PAGE}


def ram_of(data: bytes, scan: Scanner = scan) -> Ram:
    return read_ram(read_stream(BytesSource(data)), scan=scan)


def ram_part(*records: bytes, blocks: dict[str, int] | None = None) -> bytes:
    return builders.stream([], [b"".join(records)], blocks or BLOCKS)


def delta(offset: int, body: bytes, block: str | None = None) -> bytes:
    name = counted(block) if block else b""
    head = word(offset | 0x40 | (0 if block else 0x20)) + name
    return head + b"\1" + len(body).to_bytes(2, "big") + body


def compressed(offset: int, content: bytes, block: str | None = None) -> bytes:
    name = counted(block) if block else b""
    body = zlib.compress(content.ljust(PAGE, b"\0"))
    return (
        word(offset | 0x100 | (0 if block else 0x20)) + name + len(body).to_bytes(4, "big") + body
    )


def test_every_kind_is_read() -> None:
    data = ram_part(
        page(0, b"first", "pc.ram"),
        zero(PAGE),
        word(0x80),
        word(0x200),
        compressed(2 * PAGE, b"squeezed"),
        delta(0, b"\2\2XY"),
        page(0, b"picture", "vga"),
        delta(2 * PAGE, b"\0\1S", "pc.ram"),
    )
    for walk in Walk:
        stream = read_stream(BytesSource(data), walk=walk)
        assert stream.problems == ()
        pages = stream.pages
        assert pages is not None
        assert (pages.normal, pages.zero, pages.xbzrle, pages.compressed) == (2, 1, 2, 1)
    ram = ram_of(data)
    (problem,) = ram.problems  # of the flush
    assert "sent over multifd channels" in str(problem)
    assert ram.flushes == 1
    assert ram.counts() == pages
    assert ram.read_page(0, 0) == b"fiXYt".ljust(PAGE, b"\0")
    assert ram.read_page(0, 1) == bytes(PAGE)
    assert ram.read_page(0, 2) == b"Squeezed".ljust(PAGE, b"\0")
    assert ram.read_page(0, 3) == bytes(PAGE)  # never sent
    assert ram.read(ram.block("vga"), 4, 3) == b"ure"
    assert ram.read(0, 2 * PAGE - 1, 2) == b"\0S"
    assert ram.read(0, BLOCKS["pc.ram"] - 1, 99) == b"\0"
    with pytest.raises(PathError) as error:
        ram.block("pc.rom")
    assert "pc.ram" in error.value.near


def test_the_last_copy_wins() -> None:
    data = ram_part(
        page(0, b"one", "pc.ram"),
        page(PAGE, b"two"),
        zero(0),
        page(PAGE, b"three"),
        page(PAGE, b"four"),
    )
    ram = ram_of(data)
    assert ram.read_page(0, 0) == bytes(PAGE)
    assert ram.read_page(0, 1)[:4] == b"four"
    first, second = coverage(ram)
    assert (first.sent, first.again, first.repeated, first.most) == (5, 3, 2, 3)
    assert (first.data, first.zero, first.never) == (1, 1, 62)
    assert second.never == second.pages == 16


def test_a_second_list_of_blocks() -> None:
    same = word(2 * PAGE | 4) + entry("m", 2 * PAGE)
    longer = word(4 * PAGE | 4) + entry("m", 4 * PAGE)
    for again, problems in ((same, 0), (word(4), 1), (longer, 1)):
        records = zero(PAGE, "m") + again + zero(PAGE, "m")
        ram = ram_of(builders.stream([], [records], {"m": 2 * PAGE}))
        assert len(ram.problems) == problems
        assert (ram.runs.records, len(coverage(ram))) == (2 - problems, 1)


def test_damage_that_stream_and_ram_meet_is_reported_once() -> None:
    # A device section before the end of RAM, as in postcopy, with a borrowed layout.
    device = builders.Section("timer", bytes(7), [{"name": "n", "type": "uint32", "size": 7}])
    lent = description_of(BytesSource(builders.stream([device], [], {"m": PAGE})))
    blocks = builders.block_list({"m": PAGE}) + builders.EOS
    data = builders.header() + builders.configuration()
    data += builders.named(RecordType.START, 1, "ram", 0, 4, blocks)
    data += builders.named(RecordType.FULL, 2, "timer", 0, 1, bytes(7))[:-7]
    stream = read_stream(BytesSource(data), borrowed=lent)
    assert stream.description_source is LayoutOrigin.BORROWED
    assert len(stream.problems) == 1
    with read_ram(stream) as ram:
        assert all_problems(stream, ram) == stream.problems
        assert not is_complete(stream, ram)


def test_the_block_survives_sections() -> None:
    parts = [page(0, b"x", "pc.ram"), zero(PAGE)]
    ram = ram_of(builders.stream([], parts, BLOCKS))
    assert [(run.block, run.page, run.kind) for run in ram.runs] == [
        (0, 0, PageKind.PAGE),
        (0, 1, PageKind.ZERO),
    ]


def test_zero_pages_of_old_senders() -> None:
    old = zero(PAGE)[:-1] + b"\xaa"
    ram = ram_of(ram_part(zero(0, "pc.ram"), old, zero(2 * PAGE)))
    assert ram.read_page(0, 1) == b"\xaa" * PAGE
    assert ram.read_page(0, 2) == bytes(PAGE)


@pytest.mark.parametrize(
    "flags", [0x001, 0x003, 0x00C, 0x000, 0x030, 0x400, 0x01A, 0x0A0, 0x060 | 8]
)
def test_impossible_flags(flags: int) -> None:
    data = ram_part(zero(0, "pc.ram"), word(flags | PAGE), bytes(40))
    ram = ram_of(data)
    assert isinstance(ram.problems[0], Malformed)
    assert data[ram.problems[0].offset :].startswith(word(flags | PAGE))
    assert ram.counts().zero == 1


@pytest.mark.parametrize(
    "record",
    [
        page(0, b"no block before"),
        page(64 * PAGE, b"", "pc.ram"),
        zero(16 * PAGE, "vga"),
        zero(0, "pc.rom"),
        delta(0, b"", "pc.ram").replace(b"\1\0\0", b"\2\0\0"),
        delta(0, bytes(PAGE + 1), "pc.ram"),
        word(0x100) + counted("pc.ram") + word(1 << 63),
    ],
)
def test_impossible_pages(record: bytes) -> None:
    ram = ram_of(ram_part(record))
    assert isinstance(ram.problems[0], StreamError)
    assert ram.problems[0].offset > 0


def test_a_run_out_of_its_block_is_found_at_its_first_page() -> None:
    records = [zero(0, "vga"), *(zero(number * PAGE) for number in range(1, 40))]
    data = ram_part(*records)
    ram = ram_of(data)
    assert data[ram.problems[0].offset :].startswith(word(16 * PAGE | 0x22))


@pytest.mark.parametrize("body", [b"\0\0", b"\5", b"\xff\xff\xff", b"\0\1a\0\1b", b"\xff\x7f\1x"])
def test_damaged_deltas(body: bytes) -> None:
    ram = ram_of(ram_part(page(0, b"", "pc.ram"), delta(0, body)))
    assert ram.problems == ()
    with pytest.raises(Malformed):
        ram.read_page(0, 0)


def test_damaged_compressed_pages() -> None:
    good = compressed(0, b"x", "pc.ram")
    for bad in (good[:-4] + b"oops", compressed(0, b"x" * PAGE + b"more", "pc.ram")):
        ram = ram_of(ram_part(bad))
        with pytest.raises(Malformed):
            ram.read_page(0, 0)


def test_a_cut_stream_keeps_whole_pages() -> None:
    data = ram_part(*(page(n * PAGE, b"x", None if n else "pc.ram") for n in range(8)))
    start = data.index(word(5 * PAGE | 0x28))
    for cut in (start, start + 3, start + 8, start + 4000, start + 8 + PAGE - 1):
        ram = ram_of(data[:cut])
        assert isinstance(ram.problems[0], Truncated)
        assert ram.problems[0].offset == cut
        assert ram.counts().normal == 5
        assert ram.read_page(0, 4)[:1] == b"x"


def test_a_guest_of_any_size_is_examined() -> None:
    size = 1 << 60
    ram = ram_of(ram_part(zero(0, "m"), page(size - PAGE, b"last"), blocks={"m": size}))
    assert ram.read_page(0, 5) == bytes(PAGE)
    assert ram.read_page(0, size // PAGE - 1)[:4] == b"last"
    (found,) = coverage(ram)
    assert (found.pages, found.never) == (size // PAGE, size // PAGE - 2)


@pytest.mark.parametrize("kinds", ["p", "z", "pz", "d", "pzd", "<z", "<p"])
def test_what_is_read_grows_with_the_input_and_no_faster(kinds: str) -> None:
    # "<": pages come from the last to the first.
    make = {"p": lambda at: page(at, b"x"), "z": zero, "d": lambda at: delta(at, b"\0\1x")}
    order = -1 if kinds[0] == "<" else 1
    kinds = kinds.lstrip("<")
    for pages in (1000, 2000):
        body = [make[kinds[n % len(kinds)]](n * PAGE) for n in range(pages)][::order]
        data = ram_part(zero(0, "m"), *body, blocks={"m": pages * PAGE})
        source = builders.Counting(data)
        stream = read_stream(source)
        source.calls = source.bytes = 0
        ram = read_ram(stream)
        assert ram.runs.records == pages + 1
        assert source.bytes <= len(data) + (512 << 10)  # one look further at each end
        assert source.calls <= 8 + len(data) // (1 << 20)


def test_very_many_empty_parts() -> None:
    data = builders.stream([], [b""] * 3000 + [page(0, b"x", "pc.ram")] + [b""] * 3000, BLOCKS)
    ram = ram_of(data)
    assert ram.problems == ()
    assert ram.counts().normal == 1


# The quick index and its scalar twin.

PATTERNS = st.lists(
    st.tuples(
        st.sampled_from(["page", "zero", "fill", "delta", "zlib"]),
        st.integers(0, 300),  # first page
        st.integers(1, 400),  # how many
        st.integers(1, 3),  # from one to the next
        st.booleans(),  # named
    ),
    min_size=1,
    max_size=6,
)


def records(patterns: Sequence[tuple[str, int, int, int, bool]]) -> bytes:
    out = [page(1999 * PAGE, b"last", "m")]
    for kind, first, count, step, named in patterns:
        name = "m" if named else None
        for number in range(first, first + count * step, step):
            at = number * PAGE
            out.append(
                {
                    "page": lambda at, name: page(at, b"content", name),
                    "zero": zero,
                    "fill": lambda at, name: zero(at, name)[:-1] + b"\1",
                    "delta": lambda at, name: delta(at, b"\0\1x", name),
                    "zlib": lambda at, name: compressed(at, b"x", name),
                }[kind](at, name)
            )
            name = None
    return b"".join(out)


@settings(max_examples=60)
@given(PATTERNS)
def test_both_ways_to_read_agree(patterns: list[tuple[str, int, int, int, bool]]) -> None:
    data = builders.stream([], [records(patterns)], {"m": 2000 * PAGE})
    quick, slow = ram_of(data), ram_of(data, scan=scan_records)
    assert quick.problems == slow.problems == ()
    assert list(quick.runs) == list(slow.runs)
    assert quick.runs.records == slow.runs.records == 1 + sum(p[2] for p in patterns)
    for run in quick.runs:
        before = data[run.place.offset - 8 : run.place.offset]
        assert before.endswith((word(run.page * PAGE | flags(run.kind)), b"\1m"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ram") / "stream"


@settings(max_examples=100)
@given(PATTERNS, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3),
       st.sampled_from([1.0, 1.0, 0.99, 0.6, 0.3]) | st.floats(0, 1))  # fmt: skip
def test_a_file_is_read_as_its_bytes_are(
    path: Path,
    patterns: list[tuple[str, int, int, int, bool]],
    spoilt: list[tuple[float, int]],
    part: float,
) -> None:
    # Long runs are read from the file without Python; cut and spoilt ones too.
    data = bytearray(builders.stream([], [records(patterns * 2)], {"m": 2000 * PAGE}))
    for place, byte in spoilt:
        data[40 + int(place * (len(data) - 41))] = byte
    data = data[: 40 + int(part * (len(data) - 40))]
    path.write_bytes(data)
    with open_source(str(path)) as source:
        quick = read_ram(read_stream(source))
        slow = read_ram(read_stream(source), scan=scan_records)
    assert list(quick.runs) == list(slow.runs)
    assert quick.runs.sums == slow.runs.sums
    assert [str(one) for one in quick.problems] == [str(one) for one in slow.problems]


@pytest.mark.parametrize("bits", [10, 12, 16, 17, 20, 24])
def test_pages_of_any_size_in_a_file(path: Path, bits: int) -> None:
    count, size = 40_000, 1 << bits
    zeros = [zero(0, "m")] + [zero(number * size) for number in range(1, count)]
    config = builders.configuration(
        "pc", builders.subsection("configuration/target-page-bits", 1, bits.to_bytes(4, "big"))
    )
    path.write_bytes(
        builders.stream([], [b"".join(zeros)], {"m": count * size}, config=config, describe=False)
    )
    with open_source(str(path)) as source:
        ram = read_ram(read_stream(source))
    assert (ram.problems, ram.page_size, len(ram.runs)) == ((), size, 1)
    assert ram.counts().zero == count


def flags(kind: PageKind) -> int:
    names = {PageKind.PAGE: 8, PageKind.ZERO: 2, PageKind.XBZRLE: 0x40, PageKind.COMPRESSED: 0x100,
             PageKind.FILLED: 2}  # fmt: skip
    return names[kind] | 0x20


@pytest.mark.parametrize("kinds", ["pz", "ppz", "p", "z", "p" * 20 + "z" * 20])
def test_across_windows(kinds: str) -> None:
    # Several MiB: every window ends somewhere inside a record.
    made = [
        (page if kinds[n % len(kinds)] == "p" else zero)(
            *((n * PAGE, b"x") if kinds[n % len(kinds)] == "p" else (n * PAGE,)),
            **({} if n else {"block": "m"}),
        )
        for n in range(1500)
    ]
    data = builders.stream([], [b"".join(made)], {"m": 1500 * PAGE})
    quick, slow = ram_of(data), ram_of(data, scan=scan_records)
    assert list(quick.runs) == list(slow.runs)
    assert quick.runs.records == 1500
    if len(set(kinds)) == 1:
        assert len(quick.runs) == 1  # also over the borders of windows
    place = 0
    for run in quick.runs:
        assert run.page == place
        place += run.count
        for number in (0, run.count - 1):
            at = run.place.offset + number * run.stride
            first = run.page + number == 0
            assert first or data[at - 8 : at] == word((run.page + number) * PAGE | flags(run.kind))


@given(st.integers(0, 5000), st.integers(0, 9000), st.integers(0, 5000), st.binary(max_size=9))
def test_gallop_counts(first: int, count: int, spoil: int, junk: bytes) -> None:
    made = bytearray(b"".join(zero((first + n) * PAGE) for n in range(count)) + junk)
    expected = count
    if count and spoil < count and junk:
        made[spoil * 9 + len(junk) % 9] ^= 0x80
        expected = spoil
    found = gallop(bytes(made), 0, first * PAGE | 0x22, 9, PAGE)
    assert found == expected or (found == expected + 1 and junk == zero((first + count) * PAGE))


# What capabilities add to the block list.


def start(*blocks: bytes, total: int, config: bytes | None = None, tail: bytes = b"") -> bytes:
    payload = word(total | 4) + b"".join(blocks) + tail + builders.EOS
    return (
        builders.header()
        + (builders.configuration() if config is None else config)
        + builders.named(RecordType.START, 1, "ram", 0, 4, payload)
        + builders.referring(RecordType.END, 1, builders.EOS)
        + b"\0"
    )


def capabilities(*names: str) -> bytes:
    body = len(names).to_bytes(4, "big") + b"".join(map(counted, names))
    return builders.configuration("pc", builders.subsection("configuration/capabilities", 1, body))


def entry(name: str, size: int, *extra: int) -> bytes:
    return counted(name) + word(size) + b"".join(map(word, extra))


def test_page_sizes_of_postcopy() -> None:
    huge = 1 << 21
    data = start(entry("a", huge, huge), entry("b", PAGE), entry("c", huge, huge),
                 total=2 * huge + PAGE)  # fmt: skip
    ram = ram_of(data)
    assert ram.problems == ()
    assert [one.page_size for one in ram.entries] == [huge, None, huge]
    data = start(entry("a", PAGE), total=PAGE, tail=word(0x200))
    assert ram_of(data).entries[0].page_size is None


def test_addresses_of_ignored_blocks() -> None:
    config = capabilities("x-ignore-shared")
    data = start(entry("m0", PAGE, 0), entry("bios", PAGE, 0xFFFC0000), total=2 * PAGE,
                 config=config)  # fmt: skip
    ram = ram_of(data)
    assert ram.problems == ()
    assert [(one.address, one.page_size) for one in ram.entries] == [(0, None), (0xFFFC0000, None)]
    data = start(entry("m0", PAGE, 1 << 21, 0x1000), total=PAGE, config=config)
    one = ram_of(data).entries[0]
    assert (one.address, one.page_size) == (0x1000, 1 << 21)


def mapped(base: int, bitmap: int, name: str = "m", pages: int = 100) -> bytes:
    """A stream of one mapped block at ``base`` of its file; page n holds byte n."""
    config = capabilities("mapped-ram")
    head = start(b"", total=pages * PAGE, config=config)
    at = head.index(word(pages * PAGE | 4)) + 8
    begin = head[:at] + entry(name, pages * PAGE)
    bits = bitmap.to_bytes((pages + 63) // 64 * 8, "little")
    where = base + len(begin) + 28
    place = -(-(where + len(bits)) // PAGE) * PAGE
    header = (1).to_bytes(4, "big") + word(PAGE) + word(where) + word(place)
    body = b"".join(bytes((number + 1,)) * PAGE for number in range(pages))
    gap = bytes(place - where - len(bits))
    return begin + header + bits + gap + body + head[at:]


@pytest.mark.parametrize("base", [0, 0x10000, 77])
def test_mapped_ram(base: int) -> None:
    bitmap = 0b1011 | 1 << 99 | 1 << 64
    data = mapped(base, bitmap)
    stream = read_stream(BytesSource(data))
    assert stream.problems == ()
    assert stream.pages is not None
    assert (stream.pages.normal, stream.pages.zero) == (5, 95)
    ram = ram_of(data)
    for number in range(100):
        expected = number + 1 if bitmap >> number & 1 else 0
        assert ram.read_page(0, number) == bytes((expected,)) * PAGE


def test_mapped_blocks_that_are_not_saved() -> None:
    config = capabilities("x-ignore-shared", "mapped-ram")
    header = (1).to_bytes(4, "big") + word(PAGE) + word(0) + word(0)
    data = start(entry("a", PAGE, 0), header, entry("b", PAGE, 0), header, total=2 * PAGE,
                 config=config)  # fmt: skip
    ram = ram_of(data)
    assert ram.problems == ()
    assert [one.mapped for one in ram.entries] == [None, None]
    assert coverage(ram)[0].never == 1


@pytest.mark.parametrize("size", [512, 1024, 8192, 65536])
def test_the_page_size_of_a_mapped_header_must_be_the_guests(size: int) -> None:
    good = mapped(0, (1 << 99) - 1)
    bad = good.replace((1).to_bytes(4, "big") + word(PAGE), (1).to_bytes(4, "big") + word(size))
    (problem,) = ram_of(bad).problems
    assert (problem.expected, problem.found) == (f"{PAGE}", f"{size}")


def test_bitmaps_in_any_pattern() -> None:
    pages = 40_000  # several pieces
    for bitmap in (0, (1 << pages) - 1, int("01" * (pages // 2), 2), int("0011" * 10_000, 2) ^ 1):
        source = BytesSource(bitmap.to_bytes(pages // 8, "little"))
        mapped_pages = MappedPages(source, 0, MappedBlock(0, 1 << 20, pages, PAGE))
        runs = RamRuns(PAGE)
        runs.map_block(0, mapped_pages)
        bits = [bitmap >> page & 1 for page in range(pages)]
        starts = [at for at in range(pages) if not at or bits[at] != bits[at - 1]]
        assert len(runs) == len(starts)
        assert runs.sums[PageKind.PLACED] == sum(bits)
        assert runs.sums[PageKind.ABSENT] == pages - sum(bits)
        found = [
            (run.page + at, run.place.offset + at * run.stride)
            for run in runs if run.kind is PageKind.PLACED for at in range(run.count)
        ]  # fmt: skip
        assert found == [(page, (1 << 20) + page * PAGE) for page in range(pages) if bits[page]]
        for first, end in ((0, 1), (77, 16_400), (39_999, pages)):
            assert mapped_pages.tally(first, end).data == sum(bits[first:end])
            inside = list(mapped_pages.within(first, end))
            assert sum(one[1] for one in inside) == end - first
            assert inside[0][0] == first


def test_what_a_stream_of_mapped_ram_does_not_have() -> None:
    good = mapped(0, 1)
    at = good.index(word(0x10), good.index(entry("m", 100 * PAGE)))
    for record, words in (
        (page(0, b"x", "m"), "page record"), (zero(0, "m"), "page record"),
        (word(100 * PAGE | 4) + entry("m", 100 * PAGE) + bytes((0, 0, 0, 1)) + bytes(24),
         "second list"),
    ):  # fmt: skip
        (problem,) = ram_of(good[:at] + record + good[at:]).problems
        assert words in problem.what


def test_damaged_mapped_headers() -> None:
    good = mapped(0, 1)
    at = good.index((1).to_bytes(4, "big") + word(PAGE))
    far = [(place, word(1 << bits)) for place in (12, 20) for bits in (55, 56, 60, 62, 63)]
    for place, value in ((0, b"\0\0\0\2"), (4, word(3)), (12, word(8)), (20, word(8)), *far):
        bad = good[: at + place] + value + good[at + place + len(value) :]
        ram = ram_of(bad)
        assert ram.problems
        assert all(isinstance(problem, StreamError) for problem in ram.problems)
        assert all(run.place.offset < 1 << 56 for run in ram.runs)
    assert isinstance(ram_of(good[: at + 30]).problems[0], Truncated)


@settings(max_examples=80)
@given(st.data())
def test_damage_gives_only_our_errors(data: st.DataObject) -> None:
    good = ram_part(
        page(0, b"first", "pc.ram"), zero(PAGE), compressed(2 * PAGE, b"q"), delta(0, b"\2\2XY"),
        page(0, b"picture", "vga"), word(0x200), *(zero(n * PAGE) for n in range(1, 16)),
    )  # fmt: skip
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(8, len(bad) - 1))] = data.draw(st.integers(0, 255))
    ram = ram_of(bytes(bad[: data.draw(st.integers(40, len(bad)))]))
    for block in range(min(2, len(ram.entries))):
        for number in range(4):
            with contextlib.suppress(StreamError):
                ram.read_page(block, number)


def test_a_file_read_the_usual_way(sample_file: Path) -> None:
    ram = ram_of(sample_file.read_bytes())
    assert ram.problems == ()
    assert list(ram.runs) == list(ram_of(sample_file.read_bytes(), scan=scan_records).runs)
    assert sum(one.never for one in coverage(ram)) == 0


_OTHER_FIRMWARE = (
    "no-description",  # a machine without ACPI
    *("block", "dirty-bitmap", "slirp"),  # made without firmware
    *("htab", "s390x"),
)


@pytest.mark.parametrize("release", ["qemu10.0", "qemu7.2"])
def test_every_kind_brings_the_same_firmware(release: str) -> None:
    kinds = STREAMS / "kinds"
    found: dict[str, set[bytes]] = {}
    for path in sorted(kinds.glob(f"{release}-*.mig.zst")):
        if any(kind in path.name for kind in _OTHER_FIRMWARE):
            continue
        channels = sorted(kinds.glob(path.name.replace(".mig.", ".channel?.")))
        with contextlib.ExitStack() as stack:
            main, *others = (
                stack.enter_context(open_source(str(name))) for name in [path, *channels]
            )
            ram = stack.enter_context(read_ram(read_stream(main), others))
            assert ram.problems == ()
            for number, block in enumerate(ram.blocks):
                if block.name != "pc.ram":
                    content = ram.read(number, 0, block.used_length)
                    found.setdefault(block.name, set()).add(content)
    assert {name: len(contents) for name, contents in found.items()} == dict.fromkeys(found, 1)
    (bios,) = found["pc.bios"]
    assert bios[-16] == 0xEA  # the reset vector's far jump
