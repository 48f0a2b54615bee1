"""The JSON document of ``simulate``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qemu_svm.findings.verdict import judge_restore
from qemu_svm.machine import Machine
from qemu_svm.model.area import Area, Content
from qemu_svm.model.simulate import Result, Simulation, Snapshot
from qemu_svm.render.json.inspect import SCHEMA_VERSION
from qemu_svm.render.numbers import hex_text
from qemu_svm.x86.segments import Segment


def document(machine: Machine, finished: Sequence[Simulation], plan: str) -> dict[str, Any]:
    """The document: one entry in ``simulations`` for each kernel."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": machine.stream.source.path},
        "plan": plan,
        "simulations": [_simulation(one) for one in finished],
    }


def _simulation(one: Simulation) -> dict[str, Any]:
    judgement = judge_restore(one)
    return {
        "kernel": {
            "name": one.kernel.name,
            "about": one.kernel.about,
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
                "value": content(d.value),
                "expected": content(d.wanted),
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
        "errno": result.errno,
        "failed_check": result.failed,
        "notes": list(result.notes),
        "run": None
        if outcome is None
        else {
            "result": outcome.result,
            "level": outcome.level or None,
            "entry": None if outcome.entry is None else registers(outcome.entry),
            "l1": None if outcome.l1 is None else registers(outcome.l1),
        },
        "state": snapshot(result.state),
    }


def snapshot(state: Snapshot) -> dict[str, Any]:
    """The state after a step; ``nested`` is what KVM_GET_NESTED_STATE would give."""
    return {
        "guest_mode": state.guest_mode,
        "gif": state.gif,
        "smm": state.smm,
        "interrupt_shadow": state.shadow,
        "run_pending": state.run_pending,
        "mmu": state.mmu,
        "mmu_broken": state.mmu_broken or None,
        "requests": list(state.requests),
        "save_cache_valid": state.save_cache_valid,
        "nested": {
            "flags": hex_text(state.nested["flags"]),
            "format": state.nested["format"],
            "size": state.nested["size"],
            "vmcb_pa": hex_text(state.nested["vmcb_pa"]),
        },
        "areas": {name: registers(area) for name, area in state.areas.items()},
    }


def registers(area: Area) -> dict[str, Any]:
    """Every register with its value and the step and function that wrote it."""
    return {
        name: {
            "value": content(area.content(name)),
            "step": area.writer(name).step,
            "by": area.writer(name).function,
        }
        for name in area
    }


def content(value: Content) -> str | dict[str, str]:
    """A number as ``"0x…"``, a segment as an object."""
    if isinstance(value, Segment):
        return {
            "selector": hex_text(value.selector),
            "base": hex_text(value.base),
            "limit": hex_text(value.limit),
            "attrib": hex_text(value.attrib),
        }
    return hex_text(value)
