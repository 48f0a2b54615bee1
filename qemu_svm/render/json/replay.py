"""The JSON document of ``replay``, version 1 (``docs/replay.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.inside.view import Inside
from qemu_svm.model.simulate import Simulation
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.json.base import SCHEMA_VERSION, hex_text, optional_hex
from qemu_svm.render.json.model_state import snapshot
from qemu_svm.render.json.observed import observed
from qemu_svm.render.json.recorded import recorded_difference, recorded_put
from qemu_svm.replay.compare import Comparison, Mismatch
from qemu_svm.replay.job import ReplayStep, RunResult, kernel_of
from qemu_svm.replay.replay import Replay

_EXIT_CODE = slice(0x70, 0x78)


def render(result: Replay) -> dict[str, Any]:
    """Return the document; ``model`` and ``comparison`` are null without ``--compare``."""
    probe, replayed = result.probe, result.result
    simulation, comparison = result.simulation, result.comparison
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": result.path},
        "plan": result.plan,
        "kernel": {"release": probe.release, "version": kernel_of(probe)},
        "start": {"inside": _inside(replayed.start)},
        "steps": [_step(step) for step in replayed.steps],
        "end": replayed.end,
        "killed": replayed.killed,
        "host": replayed.host,
        "error": replayed.error,
        "lost": result.lost,
        "recorded": None if result.put is None else recorded_put(result.put),
        "recorded_difference": recorded_difference(result.recorded, "kernel"),
        "model": None if simulation is None else _model(simulation),
        "comparison": None if comparison is None else _comparison(comparison),
    }


def _step(step: ReplayStep) -> dict[str, Any]:
    return {
        "number": step.number,
        "step": step.step.text,
        "carried": step.step.carried,
        "errno": step.errno,
        "refused_msr": optional_hex(step.refused_msr),
        "run": None if step.run is None else _run(step.run),
        "state": {name: observed(name, value) for name, value in step.state.items()},
        "inside": _inside(step.inside),
    }


def _inside(found: Inside | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {name: observed(name, value) for name, value in found.items()}


def _run(run: RunResult) -> dict[str, Any]:
    code = int.from_bytes(run.vmcb12[_EXIT_CODE], "little") if run.vmcb12 else None
    return {
        "result": run.result,
        "detail": {name: hex_text(value) for name, value in run.found.detail.items()},
        "exit_code": optional_hex(code),
        "exit_code_name": None if code is None else exit_name(code),
    }


def _model(simulation: Simulation) -> dict[str, Any]:
    return {
        "profile": simulation.kernel.row,
        "steps": [
            {
                "number": result.number,
                "errno": result.errno,
                "failed_check": result.failed,
                "run": None if result.outcome is None else result.outcome.result,
                "state": snapshot(result.state),
            }
            for result in simulation.results
        ],
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "equal": comparison.equal,
        "complete": comparison.equal and comparison.open is None,
        "steps": [
            {
                "number": step.number,
                "differences": [_mismatch(one) for one in step.mismatches],
                "open": step.open,
            }
            for step in comparison.steps
        ],
        "ending": None if comparison.ending is None else _mismatch(comparison.ending),
    }


def _mismatch(one: Mismatch) -> dict[str, Any]:
    return {
        "name": one.name,
        "kernel": observed(one.name, one.kernel),
        "model": observed(one.name, one.model),
    }
