"""The report of ``diff``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.text import Text

from qemu_svm.findings.diff import Change, Comparison, Difference
from qemu_svm.findings.puts import PutComparison, PutDifference
from qemu_svm.findings.results import DiffReport
from qemu_svm.findings.weights import Weight, ranked
from qemu_svm.render.escape import printable
from qemu_svm.render.text import diff_ram
from qemu_svm.render.text.base import FAINT, HEADING, KEY, columns, stream_heading
from qemu_svm.render.text.values import brief
from qemu_svm.render.words import bit_names, meaning
from qemu_svm.stream import Value

_MOST_FIRST = 8
_MOST_PUT = 24
_MEANING = {
    Weight.DESTINATION: "the destination must be made for it",
    Weight.NESTED: "checked by KVM, or L1 or L2 runs differently",
    Weight.MODE: "how the vCPU works",
    Weight.DEVICE: "device state",
    Weight.PROGRESS: "how far the guest was",
}
_PATHS = 4
"""Fields that are listed after a mask."""


def render(result: DiffReport, *, all_differences: bool) -> Iterable[Text]:
    """Return the number of differences, then these by group, RAM, and what was masked.

    :param all_differences: also those that are masked.
    """
    found, pages = result.comparison, result.pages
    yield stream_heading(result.a, "A: ")
    yield stream_heading(result.b, "B: ")
    counting = len(found.counting)
    masked = len(found.differences) - counting
    where = " in fields" if result.puts else ""
    yield Text(
        f"{_count(counting, 'difference')}{where}{f', {masked} more masked' if masked else ''}"
    )
    for put in result.puts:
        yield from _put(put)
    for side, error in found.problems:
        yield Text(f"  not compared field by field: {side.upper()}: {printable(str(error))}")
    yield from _first(found)
    shown = found.differences if all_differences else found.counting
    for group, members in _groups(shown):
        yield Text()
        yield Text(group, HEADING)
        yield from columns([_row(one) for one in members], ("field", "A", "B", ""))
    if pages is not None:
        yield Text()
        yield from diff_ram.render(pages, all_differences=all_differences)
    if masked and not all_differences:
        yield Text()
        yield Text("masked (--all shows them)", HEADING)
        for members in found.masked().values():
            yield from _masked(members)
    if found.renamed:
        yield Text()
        yield Text("renamed (names are not on the wire; compared)", HEADING)
        for path, name in found.renamed:
            yield Text(f"  {printable(path)} is {printable(name)} in B")


def _put(one: PutComparison) -> Iterable[Text]:
    yield Text()
    yield Text(f"Put of vCPU {one.index}", HEADING)
    yield Text(f"  A: {printable(one.a)}")
    yield Text(f"  B: {printable(one.b)}")
    if one.order is not None:
        yield Text(f"  the order differs from {printable(one.order)} on")
    if not one.differences:
        yield Text(f"  no differences in {one.compared} values")
        return
    more = len(one.differences) - 1
    yield Text("  first difference: ").append_text(Text(_put_words(one.differences[0]), HEADING))
    shown = one.differences[1:_MOST_PUT]
    rows = [
        [
            _record(row),
            row.ioctl,
            row.name or f"only in {row.only.upper()}",
            _value(row.a),
            _value(row.b),
        ]
        for row in shown
    ]
    if rows:
        yield from columns(rows, ("record", "ioctl", "value", "A", "B"))
    if more > len(shown):
        yield Text(f"  and {more - len(shown)} more (--json lists them)")
    yield Text()


def _record(row: PutDifference) -> str:
    known = [one for one in (row.record_a, row.record_b) if one is not None]
    return "/".join(map(str, known))


def _put_words(row: PutDifference) -> str:
    if row.only:
        side, record = ("B", row.record_b) if row.only == "a" else ("A", row.record_a)
        if row.why:
            return f"{row.ioctl} of {side} at record {record} {row.why}"
        return f"{side} does not put {row.ioctl}"
    where = f"record {_record(row)}, " if _record(row) else ""
    return f"{where}{row.ioctl} {row.name}: {_value(row.a)}, in B {_value(row.b)}"


def _value(value: int | str | None) -> str:
    return "" if value is None else hex(value) if isinstance(value, int) else value[:32]


def _first(found: Comparison) -> Iterable[Text]:
    # What a restore may depend on, before the whole list; not where that is as short.
    order = [pair for pair in ranked(found) if pair[0] is not Weight.PROGRESS]
    if len(order) < 2 or len(found.counting) <= _MOST_FIRST:
        return
    yield Text()
    yield Text("What matters most", HEADING)
    rows = [[*_row(one)[:3], Text(_MEANING[weight], FAINT)] for weight, one in order[:_MOST_FIRST]]
    yield from columns(rows, ("field", "A", "B", ""))
    if len(order) > _MOST_FIRST:
        yield Text(f"  and {len(order) - _MOST_FIRST} more of this kind, below", FAINT)


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _groups(found: Sequence[Difference]) -> Iterable[tuple[str, list[Difference]]]:
    # A group's members may be scattered; it is shown once, where it first appears.
    order = {one.group: index for index, one in reversed(list(enumerate(found)))}
    ordered = sorted(found, key=lambda one: order[one.group])
    for group, members in groupby(ordered, key=lambda one: one.group):
        yield group, list(members)


def _masked(members: list[Difference]) -> Iterable[Text]:
    mask = members[0].mask
    assert mask is not None
    names = list(dict.fromkeys(one.path for one in members))
    text = ", ".join(names[:_PATHS])
    if len(names) > _PATHS:
        text += f" and {len(names) - _PATHS} more"
    line = Text(f"  {mask.id}", KEY).append(f": {len(members)}, ", "default")
    line.append(printable(f"{mask.reason}"), "default")
    yield line.append(f" ({printable(text)})", FAINT)


def _row(one: Difference) -> list[str | Text]:
    what = Text(_words(one))
    if one.mask is not None:
        what.append(f" masked: {one.mask.id}" if what else f"masked: {one.mask.id}", FAINT)
    return [Text(printable(one.path), KEY), _side(one, one.a), _side(one, one.b), what]


def _side(one: Difference, value: Value | None) -> Text:
    if value is None:
        return Text("missing")
    decimal = value.type == "ram block" or value.name == "version"
    text = brief(value, decimal=decimal)
    if one.change is Change.SIZE:
        text += f", {value.size} bytes"
    return Text(text).append(f" at {value.offset:#x}", FAINT)


def _words(one: Difference) -> str:
    if one.a is None or one.b is None:
        return ""
    ours, theirs = bit_names(one.path, one.a), bit_names(one.path, one.b)
    if ours is not None and theirs is not None:
        gone = [f"-{name}" for name in ours if name not in theirs]
        return " ".join(gone + [f"+{name}" for name in theirs if name not in ours])
    words = [meaning(one.path, value) for value in (one.a, one.b)]
    return f"{words[0]} / {words[1]}" if all(words) else ""
