"""The report of ``simulate --against``: two plans on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from qemu_svm.findings.plans import Apart, PlansApart
from qemu_svm.findings.results import SimulationReport
from qemu_svm.findings.verdict import Judgement
from qemu_svm.model.area import Content
from qemu_svm.model.simulate import Result
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, VERDICTS, columns, register

_SHOWN = 5
_FIRST = ("cr3", "rip", "rsp", "efer", "cr0", "cr4", "rax", "nested_cr3", "cs", "rflags")
"""Registers that decide where a vCPU continues, before all others."""
_PLACES = {"": "", "entry": "entered with ", "l1": "L1 gets "}


def against_lines(result: SimulationReport, found: PlansApart) -> Iterable[Text]:
    """Return both verdicts, the first step where the plans part, and what becomes of it."""
    yield Text(f"kernel {result.simulations[0].kernel.name}, against plan {printable(found.plan)}")
    yield from _verdict("A", result.judgements[0])
    yield from _verdict("B", found.judgement)
    yield Text()
    if not found.part:
        yield Text("The plans do not part: the same steps, with the same state after each.")
        return
    yield Text(f"They part at {_step(found.at_a, 'A')} and {_step(found.at_b, 'B')}", HEADING)
    yield from _table(found.after)
    if found.run:
        yield Text("When the vCPU runs", HEADING)
        yield from _table(found.run)


def _verdict(name: str, judgement: Judgement) -> Iterator[Text]:
    line = Text(f"{name}: ", HEADING)
    line.append(judgement.verdict.value, VERDICTS[judgement.verdict])
    yield line.append(f"; {judgement.lines[0]}" if judgement.lines else "")


def _step(result: Result | None, name: str) -> str:
    if result is None:
        return f"the end of {name}"
    failed = f", {result.errno} [{result.failed}]" if result.failed else ""
    return f"step {result.number} of {name} ({printable(result.step.text)}{failed})"


def _table(found: Sequence[Apart]) -> Iterator[Text]:
    if not found:
        yield Text("  no register differs yet", FAINT)
        return
    weights = {name: place for place, name in enumerate(_FIRST)}
    order = sorted(found, key=lambda one: weights.get(one.register, -1 if not one.where else 99))
    rows: list[list[str | Text]] = [
        [
            f"{_PLACES.get(one.where, f'{one.where} ')}{one.register}",
            _value(one.a, one.register, one.step_a),
            _value(one.b, one.register, one.step_b),
        ]
        for one in order[:_SHOWN]
    ]
    yield from columns(rows, ("", "A", "B"))
    if len(found) > _SHOWN:
        yield Text(f"  and {len(found) - _SHOWN} more (--json lists them)", FAINT)


def _value(value: Content | str | None, name: str, step: int) -> Text:
    if value is None:
        return Text("-")
    text = Text(value if isinstance(value, str) else register(value, name))
    return text.append(f" (step {step})", FAINT) if step else text
