"""The JSON document of ``simulate``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.plans import Apart, PlansApart
from qemu_svm.findings.results import SimulationReport
from qemu_svm.findings.verdict import Judgement
from qemu_svm.model.area import Content
from qemu_svm.model.simulate import Result, Simulation
from qemu_svm.render.json.base import SCHEMA_VERSION, Hex, register
from qemu_svm.render.json.model_state import area, snapshot
from qemu_svm.render.json.recorded import recorded_difference, recorded_put


def render(result: SimulationReport) -> dict[str, Any]:
    """Return the document: one entry in ``simulations`` for each kernel."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": result.machine.stream.source.path},
        "plan": result.plan,
        "simulations": [
            _simulation(one, judgement) | _recorded(result, at)
            for at, (one, judgement) in enumerate(
                zip(result.simulations, result.judgements, strict=True)
            )
        ],
        "recorded": None if result.put is None else recorded_put(result.put),
        **({} if result.against is None else {"against": _against(result.against)}),
    }


def _recorded(result: SimulationReport, at: int) -> dict[str, Any]:
    found = result.recorded[at] if result.recorded else None
    return {"recorded_difference": recorded_difference(found, "model")}


def _against(found: PlansApart) -> dict[str, Any]:
    return {
        "plan": found.plan,
        **_simulation(found.b, found.judgement),
        "part": {
            "step": None if found.at_a is None else found.at_a.number,
            "step_against": None if found.at_b is None else found.at_b.number,
            "differences": [_apart(one) for one in found.after],
        }
        if found.part
        else None,
        "run": [_apart(one) for one in found.run],
    }


def _apart(one: Apart) -> dict[str, Any]:
    return {
        "where": one.where or None,
        "register": one.register,
        "value": _content(one.a),
        "against": _content(one.b),
        "written_by_step": one.step_a,
        "against_written_by_step": one.step_b,
    }


def _content(value: Content | str | None) -> Hex | dict[str, Hex] | str | None:
    return value if value is None or isinstance(value, str) else register(value)


def _simulation(one: Simulation, judgement: Judgement) -> dict[str, Any]:
    return {
        "kernel": {
            "name": one.kernel.name,
            "about": one.kernel.about,
            "release": ".".join(map(str, one.kernel.numbers)) if any(one.kernel.numbers) else "",
            "row": one.kernel.row,
            "measured": list(one.kernel.measured),
            "read": list(one.kernel.read),
        },
        "start": snapshot(one.start),
        "steps": [_result(result) for result in one.results],
        "verdict": judgement.verdict.value,
        "text": list(judgement.lines),
        "differences": [
            {
                "level": d.level,
                "register": d.register,
                "value": register(d.value),
                "expected": register(d.wanted),
                "written_by_step": d.step,
                "whose": d.whose or None,
            }
            for d in judgement.differences
        ],
    }


def _result(result: Result) -> dict[str, Any]:
    outcome = result.outcome
    return {
        "number": result.number,
        "step": result.step.text,
        "carried": result.step.carried,
        "errno": result.errno,
        "failed_check": result.failed,
        "notes": list(result.notes),
        "run": None
        if outcome is None
        else {
            "result": outcome.result,
            "level": outcome.level or None,
            "entry": None if outcome.entry is None else area(outcome.entry),
            "l1": None if outcome.l1 is None else area(outcome.l1),
        },
        "state": snapshot(result.state),
    }
