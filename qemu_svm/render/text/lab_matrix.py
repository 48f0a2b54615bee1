"""The report of ``lab matrix``; with sixteen hosts it still fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from string import ascii_lowercase

from rich.text import Text

from qemu_svm.findings.rules import RULES
from qemu_svm.lab.matrix import Cell, Host, Matrix
from qemu_svm.lab.restore import Outcome
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, STYLES, columns
from qemu_svm.rules import Severity

_WORKS, _NOT_DONE = "ok", "-"
_Note = tuple[str, str, tuple[str, ...]]


def render(result: Matrix) -> Iterable[Text]:
    """Return a table for each guest, then what the numbers in them mean, then the hosts."""
    hosts = list(result.versions)
    notes: dict[_Note, int] = {}
    guests = dict.fromkeys(cell.guest for cell in result.cells)
    for guest in guests:
        cells = {(c.source, c.target): c for c in result.cells if c.guest == guest}
        good = sum(cell.outcome.good for cell in cells.values())
        yield Text(f"{guest}: {good} of {len(cells)} continue", HEADING)
        yield from columns(list(_rows(hosts, cells, notes)))
        yield Text()
    for note, number in notes.items():
        yield from _note(number, note)
    foreign = f", with {printable(result.foreign)}" if result.foreign is not None else ""
    yield Text(f"Saved on (rows), restored on (columns){foreign}", HEADING)
    rows = [
        (_letter(hosts, host), f"Linux {versions['kernel']}, QEMU {versions['qemu']}")
        for host, versions in result.versions.items()
    ]
    yield from columns(rows)


def _rows(
    hosts: list[Host], cells: dict[tuple[Host, Host], Cell], notes: dict[_Note, int]
) -> Iterator[list[str | Text]]:
    yield [Text("", FAINT), *(_letter(hosts, host) for host in hosts)]
    for source in hosts:
        line: list[str | Text] = [f"{_letter(hosts, source)} {source}"]
        for target in hosts:
            cell = cells.get((source, target))
            if cell is None:
                line.append(Text(_NOT_DONE, FAINT))
            elif cell.outcome.good:
                line.append(_WORKS)
            else:
                number = notes.setdefault(_reason(cell), len(notes) + 1)
                line.append(Text(str(number), STYLES[Severity.ERROR]))
        yield line


def _letter(hosts: list[Host], host: Host) -> str:
    return ascii_lowercase[hosts.index(host)]


def _reason(cell: Cell) -> _Note:
    outcome: Outcome = cell.outcome
    return outcome.verdict.value, outcome.reason, tuple(rule.rule for rule in cell.rules)


def _note(number: int, note: _Note) -> Iterator[Text]:
    verdict, reason, rules = note
    line = Text(f"{number}  ", STYLES[Severity.ERROR])
    yield line.append(f"{verdict}: {printable(reason)}", "default")
    for rule in rules:
        words = RULES[rule]
        yield Text(f"     {rule}: {words.fails_when}: {words.means}; {words.do}", FAINT)
    if not rules:
        yield Text("     no rule of this project applies", FAINT)
    yield Text()
