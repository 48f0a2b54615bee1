"""Steps of a plan, as ``simulate`` and ``replay`` show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, columns

BAD = "bold red"
INDENT = " " * 5
"""Of everything below the heading of a step."""


def heading(number: int, step: str, errno: str | None) -> Text:
    """Return the first line of a step, with its errno if it failed."""
    line = Text(f"{number:2} {printable(step)}", HEADING)
    return line.append(f"  {errno}", BAD) if errno else line


def carried_line(steps: Sequence[str]) -> Text:
    """Return the line for the steps that give a vCPU what it had before a recorded put."""
    return Text(f" 1 to {len(steps)}: {printable(' '.join(steps))}", FAINT)


def change(new: str, old: str | None, *, changed: bool) -> Text:
    """Return a value; if it changed, also what it was.

    :param old: None if there was no value before.
    :param changed: not always seen in the words, which leave out details.
    """
    text = Text(new, "bold" if changed else "")
    if changed and old is not None:
        text.append(f"  was {old}", FAINT)
    return text


def indented(rows: Sequence[Sequence[str | Text]]) -> Iterable[Text]:
    """Return aligned rows under a step."""
    return (Text(INDENT).append_text(row) for row in columns(rows))
