"""The report of ``doctor``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from qemu_svm.doctor.model import Check, State
from qemu_svm.render.escape import printable
from qemu_svm.render.text import FAINT, HEADING

_STYLES = {
    State.OK: "green",
    State.NOTE: "blue",
    State.WARNING: "yellow",
    State.MISSING: "bold red",
}
_STATE_WIDTH = 9


def report(checks: Sequence[Check]) -> Iterable[Text]:
    """Group by group, one check a line, what it means and what to do under it."""
    width = max((len(one.name) for one in checks), default=0) + 2
    group = None
    for one in checks:
        if one.group != group:
            if group is not None:
                yield Text()
            yield Text(one.group, HEADING)
            group = one.group
        line = Text("  ").append(one.state.value.ljust(_STATE_WIDTH), _STYLES[one.state])
        yield line.append(printable(one.name).ljust(width)).append(printable(one.found))
        if one.means:
            yield Text(" " * (2 + _STATE_WIDTH) + printable(one.means), FAINT)
        if one.do:
            yield Text(" " * (2 + _STATE_WIDTH) + f"do: {printable(one.do)}", FAINT)
