"""The report of ``mem read``: a hexdump, values or strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qemu_svm.memory.formats import Format, shown
from qemu_svm.memory.formats import values as values_of
from qemu_svm.memory.reports import MemoryRead
from qemu_svm.memory.results import WORDS, Piece, Status

_LONGEST = 4096  # characters of a string
_ROW = 16
_UNKNOWN = "??"


def render(result: MemoryRead) -> Iterator[str]:
    """Return a hexdump, values or strings; unknown bytes are ``??``."""
    yield result.place.heading
    form = result.form
    if form is None:
        yield from _hexdump(result.pieces())
    elif form.letter == "s":
        yield from _strings(result, form.count)
    else:
        yield from _values(result.pieces(), form)


def _hexdump(pieces: Iterable[Piece]) -> Iterator[str]:
    # Rows of 16 bytes with their characters; missing memory is one line with the reason.
    row = _Row(0)
    for piece in pieces:
        at, end = piece.address, piece.address + piece.size
        mapped = piece.status is Status.MAPPED
        while at < end:
            if not row.data:
                row = _Row(at)
                if not mapped:
                    yield _missing(at, end - at, piece.status)
                    break
            many = min(_ROW - len(row.data), end - at)
            part = piece.data[at - piece.address :][:many] if mapped else bytes(many)
            row.data += part
            row.known += bytes((mapped,)) * many
            row.reason = row.reason if mapped else piece.status.value
            at += many
            if len(row.data) == _ROW:
                yield row.text()
                row = _Row(at)
    if row.data:
        yield row.text()


@dataclass
class _Row:
    address: int
    data: bytearray = field(default_factory=bytearray)
    known: bytearray = field(default_factory=bytearray)
    reason: str = ""

    def text(self) -> str:
        both = list(zip(self.data, self.known, strict=True))
        cells = [f"{byte:02x}" if here else _UNKNOWN for byte, here in both]
        cells += ["  "] * (_ROW - len(cells))
        text = "".join(
            "?" if not here else chr(byte) if 32 <= byte < 127 else "." for byte, here in both
        )
        line = f"{self.address:#018x}  {' '.join(cells[:8])}  {' '.join(cells[8:])}  |{text}|"
        return f"{line}  {self.reason}" if self.reason else line


def _missing(address: int, size: int, status: Status) -> str:
    return f"{address:#018x}  ?? {size} bytes: {status} ({WORDS[status]})"


def _values(pieces: Iterable[Piece], form: Format) -> Iterator[str]:
    # As gdb's ``x`` prints them: an address, a colon, the values of a line.
    per_line = {1: 8, 2: 8, 4: 4, 8: 2}[form.size] if form.letter != "t" else 1
    line: list[str] = []
    start, bad = 0, Status.MAPPED
    for address, value, status in values_of(pieces, form.size):
        if not line:
            start, bad = address, Status.MAPPED
        bad = status if bad is Status.MAPPED else bad
        line.append(shown(value, form))
        if len(line) == per_line:
            yield _line(start, line, bad)
            line = []
    if line:
        yield _line(start, line, bad)


def _line(address: int, cells: list[str], status: Status) -> str:
    note = "" if status is Status.MAPPED else f"  {status}"
    return f"{address:#018x}: {' '.join(cells)}{note}"


def _strings(result: MemoryRead, count: int) -> Iterator[str]:
    # Strings that end with a zero byte, one after the other.
    address = result.place.address
    for _ in range(count):
        text, status = bytearray(), Status.MAPPED
        ended = False
        for piece in result.place.space.pieces(address, _LONGEST):
            status = piece.status
            if status is not Status.MAPPED:
                break
            head, zero, _ = piece.data.partition(b"\0")
            text += head
            if zero:
                ended = True
                break
        result.statuses.add(Status.MAPPED if ended else status)
        shown_text = "".join(
            chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}"
            for byte in text
        )
        end = '"' if ended else '"...' if status is Status.MAPPED else f'" ?? {status}'
        yield f'{address:#018x}: "{shown_text}{end}'
        if not ended:
            return
        address += len(text) + 1
