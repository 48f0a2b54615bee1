"""What the text reports of all verbs have in common: lines of styled text.

Everything is made of :class:`rich.text.Text`, never of markup, so no string
from a stream is ever interpreted.  Colour repeats what the words say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.text import Text

from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words
from qemu_svm.snapshots.forms import WORDS
from qemu_svm.stream.ram.page_size import CONFIGURED, DESCRIBED
from qemu_svm.x86.segments import TABLES, Segment, attrib_words

if TYPE_CHECKING:
    from rich.console import Console

    from qemu_svm.machine import Machine
    from qemu_svm.rules import Finding
    from qemu_svm.stream import Stream

KEY = "cyan"
HEADING = "bold"
FAINT = "dim"
STYLES = {"error": "bold red", "warning": "yellow", "info": "blue"}
"""By :class:`~qemu_svm.rules.Severity`."""

VERDICTS = {
    "right": "bold green",
    "wrong": "bold red",
    "refused": "yellow",
    "broken": "bold red",
    "open": "blue",
}
"""By :class:`~qemu_svm.findings.verdict.Verdict`."""

KEY_WIDTH = 14
_HANGING = 4
_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
"""Between two columns of a line."""


def console(color: str = "auto") -> Console:
    """Return standard output as a console that interprets no markup.

    :param color: ``auto`` is on a terminal; ``always`` also elsewhere; ``never``.
    """
    from rich.console import Console  # a report into a pipe needs none

    class Output(Console):
        def on_broken_pipe(self) -> None:
            # rich would exit with status 1; the caller decides instead.
            raise BrokenPipeError

    forced: dict[str, Any] = {}
    if color == "always":
        forced = {"force_terminal": True, "color_system": "standard", "no_color": False}
    elif color == "never":
        forced = {"color_system": None}
    return Output(highlight=False, markup=False, emoji=False, **forced)


def hanging(out: Console, line: Text) -> Iterable[Text]:
    """Return a line in rows of the console's width, those after the first indented.

    They are in line with the last column if there is one in the left half, else four
    columns to the right of the first.
    """
    if line.cell_len <= out.width:
        return (line,)
    text = line.plain
    start = len(text) - len(text.lstrip())
    indent = start + _HANGING
    for gap in _GAP.finditer(text, start, out.width // 2):
        indent = gap.end()
    if indent >= out.width // 2 + _HANGING:
        indent = _HANGING
    first = line.wrap(out, out.width)[0]
    rest = line[len(first) :]
    rest = rest[len(rest.plain) - len(rest.plain.lstrip()) :]
    wrapped = rest.wrap(out, out.width - indent)
    return [first, *(Text(" " * indent).append_text(row) for row in wrapped)]


def entry(key: str, value: str | Text, indent: int = 2) -> Text:
    """Return one ``key  value`` line."""
    line = Text(" " * indent)
    line.append(key.ljust(KEY_WIDTH - indent) + " ", KEY)
    return line.append_text(value if isinstance(value, Text) else Text(printable(value)))


def stream_heading(machine: Machine, prefix: str = "") -> Text:
    """Return the heading of a report about a stream: path, machine, whether it is complete."""
    stream = machine.stream
    state = "" if stream.complete else " (NOT COMPLETE)"
    name = printable(machine.name or "unknown machine")
    if machine.form is not None:
        name = WORDS[machine.form]
    return Text(f"{prefix}{printable(stream.source.path)}: {name}{state}", HEADING)


def register(value: int | Segment, name: str = "") -> str:
    """Return a register's value in a few words.

    :param name: of the register; a descriptor table has only base and limit.
    """
    if isinstance(value, Segment):
        if name in TABLES:
            return f"base {value.base:#x} limit {value.limit:#x}"
        words = attrib_words(value.attrib) if value.attrib else f"limit {value.limit:#x}"
        return f"{value.selector:#x} base {value.base:#x} {words}"
    return f"{value:#x}"


def named_bits(value: str, names: Sequence[str] | None) -> Text:
    """Return ``0x1500 [LME LMA SVME]``: a value and the names of its bits."""
    text = Text(value)
    if names:
        text.append(f" [{' '.join(names)}]", FAINT)
    return text


def page_size_words(stream: Stream) -> str:
    """Return the page size, and what says so unless the stream states it."""
    text, reason = size_words(stream.page_size), stream.page_size_from
    return text if reason in (DESCRIBED, CONFIGURED) else f"{text} ({reason})"


def columns(rows: Sequence[Sequence[str | Text]], header: Sequence[str] = ()) -> Iterable[Text]:
    """Return rows as lines, each column as wide as its widest cell."""
    head = [Text(name, HEADING) for name in header]
    widths: list[int] = [len(name) for name in header]
    for row in rows:
        widths += [0] * (len(row) - len(widths))
        for index, cell in enumerate(row):
            widths[index] = max(widths[index], len(_cell(cell)))
    for row in chain((head,), rows) if head else rows:
        line = Text("  ")
        for index, cell in enumerate(row):
            shown = _cell(cell)
            line.append(shown)
            if index < len(row) - 1:
                line.append(" " * (widths[index] - len(shown) + 2))
        yield line


def _cell(cell: str | Text) -> str | Text:
    # Styled text takes ten times the memory of a string, so it is not made for whole columns.
    return cell if isinstance(cell, Text) else printable(cell)


def finding_lines(found: Sequence[Finding]) -> Iterable[Text]:
    """Return one line for each finding."""
    for finding in found:
        line = Text("  ")
        line.append(finding.severity.value, STYLES[finding.severity])
        if finding.offset is not None:
            line.append(f" at {finding.offset:#x}")
        line.append(f": {printable(finding.message)}")
        line.append(f" ({finding.rule})", FAINT)
        yield line
