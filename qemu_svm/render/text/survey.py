"""The report of ``survey``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.text import Text

from qemu_svm.findings.rules import RULES
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import HEADING, VERDICTS, entry
from qemu_svm.survey.row import Survey

_MOST = 12
"""Rules and destinations that are named one by one."""

_STYLES = {**VERDICTS, "unreadable": "bold red", "incomplete": "yellow", "warned": "yellow"}
_STATE, _MACHINE = 11, 20


def render(result: Survey, *, rows: bool = True) -> Iterable[Text]:
    """Yield the summary, then a line for each stream, the worst first.

    :param rows: with these lines.
    """
    summary = result.summary.to_json()
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items())
    total = summary["streams"]
    yield Text(f"{total} stream{'s' if total != 1 else ''}: {states or 'none found'}", HEADING)
    if summary["in_l2"]:
        yield entry("in L2", f"{summary['in_l2']} were saved while a vCPU ran L2")
    yield from _restores(summary["restores"])
    yield from _rules("stopped by", summary["refused_by"])
    yield from _rules("advisories", summary["advisories"])
    if result.continued:
        yield entry("continued", f"{result.continued} rows of a survey that was interrupted")
    if not rows:
        return
    if total:
        yield Text()
        yield Text(f"{'state':{_STATE}} {'machine':{_MACHINE}} {'vCPUs':5}  stream", HEADING)
    for row in result.rows():
        yield _row(row)


def _restores(counts: Mapping[str, Mapping[str, int]]) -> Iterator[Text]:
    alike: dict[tuple[int, int], list[str]] = {}
    for name, one in counts.items():
        alike.setdefault((one["right"], one["judged"]), []).append(name)
    for (right, judged), names in sorted(alike.items()):
        more = f" and {len(names) - _MOST} more" if names[_MOST:] else ""
        words = ", ".join(names[:_MOST]) + more
        yield entry("restored by", f"{right} of {judged} by {words}")


def _rules(key: str, counts: Mapping[str, int]) -> Iterator[Text]:
    for rule, count in list(counts.items())[:_MOST]:
        about = f": {RULES[rule].fails_when}" if rule in RULES else ""
        yield entry(key, f"{count} {rule}{about}")
    if len(counts) > _MOST:
        yield entry(key, f"{len(counts) - _MOST} more rules: --json has all")


def _row(row: Mapping[str, Any]) -> Text:
    state = row["state"]
    line = Text(f"{state:{_STATE}}", _STYLES.get(state, ""))
    machine = printable(row["machine"] or "-")
    vcpus = f"{row['vcpus']}" + (f"/{len(row['l2'])}" if row["l2"] else "")
    line.append(f" {machine:{_MACHINE}} {vcpus:5}  {printable(row['path'])}", "")
    why = [", ".join(row["refused_by"]), row["error"] or ""]
    if said := "; ".join(filter(None, why)):
        line.append(f"  {printable(said)}")
    return line
