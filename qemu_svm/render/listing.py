"""The records of a stream as rows for people: of many in a row the first and the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qemu_svm.stream import Kind, Record

_ALL = 12  # so many in a row are all listed; of more, the first and the last
_FIRST = 4
_WORDS = {Kind.PART: "parts", Kind.COMMAND: "commands"}


@dataclass(frozen=True, slots=True)
class Left:
    """Records that have no rows of their own.

    :param size: bytes from the first to the end of the last.
    :param words: how many, and of what kind.
    """

    offset: int
    size: int
    words: str


def listed(records: Sequence[Record], most: int) -> Iterator[Record | Left]:
    """Yield the records that are listed, and what stands for the others.

    :param most: rows, or a few more; the last row then stands for the rest.
    """
    at = shown = 0
    while at < len(records) and shown < most:
        kind, end = _kind(records[at]), at + 1
        while kind is not None and end < len(records) and _kind(records[end]) is kind:
            end += 1
        rows: list[Record | Left] = [*records[at:end]]
        if kind is not None and len(rows) > _ALL:
            rows[_FIRST:-1] = [_left(records[at + _FIRST : end - 1], f"more {_WORDS[kind]}")]
        yield from rows
        at, shown = end, shown + len(rows)
    if at < len(records):
        yield _left(records[at:], "more")


def counted(record: Record) -> str:
    """What a ``SKIPPED`` record stands for; empty if it was not read."""
    kind = _kind(record) if record.kind is Kind.SKIPPED and record.count else None
    return "" if kind is None else f"{record.count} {_WORDS[kind]}"


def _kind(record: Record) -> Kind | None:
    # The kind of those that are put together; a command belongs to no section.
    if record.kind is Kind.SKIPPED:
        return Kind.COMMAND if record.section_id is None and record.count else Kind.PART
    return record.kind if record.kind in _WORDS else None


def _left(records: Sequence[Record], words: str) -> Left:
    number = sum(max(record.count, 1) for record in records)
    first = records[0].offset
    return Left(first, records[-1].end - first, f"{number} {words}")
