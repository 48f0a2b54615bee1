"""The report of ``doctor``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from rich.text import Text

from qemu_svm.doctor.model import CheckState, Diagnosis
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING

_STYLES = {
    CheckState.OK: "green",
    CheckState.NOTE: "blue",
    CheckState.WARNING: "yellow",
    CheckState.MISSING: "bold red",
}
_STATE = 9
_UNDER = 2 + _STATE
_NARROWEST = 20


def render(result: Diagnosis, *, width: int | None = None) -> Iterable[Text]:
    """Return one line for each check, by group; below it what it means and what to do.

    :param width: columns to wrap at; None for lines of any length.
    """
    checks = result.checks
    name_width = max((len(one.name) for one in checks), default=0) + 2
    group = None
    for one in checks:
        if one.group != group:
            if group is not None:
                yield Text()
            yield Text(one.group, HEADING)
            group = one.group
        first, *rest = _wrapped(one.found, _UNDER + name_width, width)
        line = Text("  ").append(one.state.value.ljust(_STATE), _STYLES[one.state])
        yield line.append(one.name.ljust(name_width)).append(first)
        yield from (Text(" " * (_UNDER + name_width) + more) for more in rest)
        for words in (one.means, f"do: {one.do}" if one.do else ""):
            if words:
                yield from (
                    Text(" " * _UNDER + more, FAINT) for more in _wrapped(words, _UNDER, width)
                )


def _wrapped(text: str, indent: int, width: int | None) -> list[str]:
    text = printable(text)
    if width is None:
        return [text]
    room = max(width - indent, _NARROWEST)
    return textwrap.wrap(text, room, break_on_hyphens=False) or [""]
