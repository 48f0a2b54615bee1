"""The JSON document of ``lab bisect``, version 1 (``docs/replay.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.lab.bisect import Bisection, Boundary, Tried
from qemu_svm.lab.suites.kernels import Kernel
from qemu_svm.model.kernels.changes import Change
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.json.base import SCHEMA_VERSION, optional_hex
from qemu_svm.render.json.observed import observed
from qemu_svm.replay.answers import Answer, Difference


def render(result: Bisection) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": result.path},
        "plan": result.plan,
        "patch": result.patch,
        "good": _kernel(result.good),
        "bad": _kernel(result.bad),
        "tried": [_tried(one) for one in result.tried],
        "not_tried": [_kernel(one) for one in result.left],
        "changes": [_boundary(one) for one in result.boundaries],
    }


def _kernel(kernel: Kernel) -> dict[str, Any]:
    return {
        "kernel": kernel.name_for_option,
        "version": kernel.version,
        "release": kernel.release,
        "suite": kernel.suite,
    }


def _tried(tried: Tried) -> dict[str, Any]:
    answer = None if tried.answer is None else _answer(tried.answer)
    return {**_kernel(tried.kernel), "answer": answer, "why": tried.why}


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "steps": [
            {
                "step": step.step,
                "errno": step.errno,
                "run": step.run,
                "exit_code": optional_hex(step.exit_code),
                "exit_code_name": None if step.exit_code is None else exit_name(step.exit_code),
            }
            for step in answer.steps
        ],
        "end": answer.end,
        "error": answer.error,
    }


def _boundary(boundary: Boundary) -> dict[str, Any]:
    return {
        "after": boundary.before.name_for_option,
        "until": boundary.after.name_for_option,
        "differences": [_difference(one) for one in boundary.differences],
        "table": [_change(one, explains=one in boundary.reasons) for one in boundary.changes],
    }


def _difference(one: Difference) -> dict[str, Any]:
    return {
        "number": one.number,
        "step": one.step,
        "name": one.name,
        "before": observed(one.name, one.before),
        "after": observed(one.name, one.after),
    }


def _change(change: Change, *, explains: bool) -> dict[str, Any]:
    return {
        "id": change.id,
        "title": change.title,
        "commits": list(change.commits),
        "cve": list(change.cve),
        "since": change.since,
        "stable": list(change.stable),
        "evidence": change.evidence,
        "explains": explains,
    }
