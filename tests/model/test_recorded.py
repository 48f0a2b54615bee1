"""The model against sequences recorded on four real kernels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.model import plans
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.observed import comparable, flat
from qemu_svm.model.observed import differences as differing
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.simulate import Result, simulate
from tests.model.recorded import (
    EDGES,
    HERE,
    RECORDED,
    Recording,
    backed,
    guests,
    recordings,
)

# What a guest's own code does between KVM_RUN and its exit is not modelled.
CHANGED_BY_CODE = frozenset(
    {"regs.rip", "regs.rflags", "regs.rax", "regs.rbx", "regs.rcx", "regs.rdx", "sregs.cr2"}
)
ENDINGS = {
    "INTERNAL_ERROR": {"INTERNAL_ERROR"},
    "EFAULT": {"EFAULT"},
    "EINVAL": {"EINVAL"},
    "hang": {"hang"},
    "waits": {"hang"},
}
"""Ends of KVM_RUN that KVM alone decides; the others depend on the code that runs."""


def judged(outcome: str, recorded: str) -> bool | None:
    """Whether the end of KVM_RUN agrees; None if the guest's code decided it."""
    if outcome in ENDINGS:
        return recorded in ENDINGS[outcome]
    if outcome == "exit" and recorded == "IO":
        return True
    if outcome == "exit" and recorded in ("INTERNAL_ERROR", "EFAULT"):
        return False
    return None


def disagreement(recording: Recording) -> str | None:
    """The first place where model and kernel differ."""
    entry, kernel = recording.entry, PROFILES[recording.profile]
    host = Host(
        npt=entry.get("npt", True),
        irqchip=entry.get("irqchip", False),
        bsp=not entry.get("vcpu"),
    )
    steps = plans.parse(entry["plan"])
    model = simulate(kernel, recording.saved, steps, host=host, backed=backed)
    truth: dict[str, Any] = {}
    for result, recorded in zip(model.results, entry["results"], strict=False):
        where = f"{entry['id']} {entry['guest']} {entry['plan']} step {result.number}"
        for name in recorded.get("gone", ()):
            truth.pop(name, None)
        truth.update(recorded.get("state", {}))
        ran = "run" in recorded
        if ran:
            assert result.outcome is not None
            agrees = judged(result.outcome.result, recorded["run"])
            if agrees is False:
                return f"{where}: {recorded['run']}, model {result.outcome.result}"
            if agrees is None or result.outcome.result != "exit":
                return None  # from here on the guest's code decides
        elif recorded["errno"] != result.errno:
            return f"{where}: {recorded['errno']}, model {result.errno} ({result.failed})"
        if "state" in recorded or truth:
            wrong = differences(result, truth, ran=ran)
            if wrong:
                if ran and truth["nested.flags"] & 1:
                    return None  # L1's code entered L2 again before the exit
                return f"{where}: {wrong[:4]}"
    return None


def differences(result: Result, truth: dict[str, Any], *, ran: bool) -> list[str]:
    found = flat(result.state, split="vmcb02" in result.state.areas)
    seen = {
        name: value
        for name, value in truth.items()
        if not ran or not (name in CHANGED_BY_CODE or name.startswith("regs.r") or name == "shadow")
    }
    return [
        f"{name}: {comparable(name, seen[name])} model {found.get(name)}"
        for name in differing(found, seen)
    ]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.split(".jsonl")[0])
def test_the_model_is_what_the_kernel_does(path: Path) -> None:
    wrong = []
    total = 0
    for recording in recordings(path):
        total += 1
        problem = disagreement(recording)
        if problem:
            wrong.append(problem)
    assert total > 1000
    assert wrong == []


@pytest.mark.parametrize("path", EDGES, ids=lambda path: path.name.split(".jsonl")[0])
def test_the_model_agrees_with_what_another_program_saw(path: Path) -> None:
    found = [disagreement(recording) for recording in recordings(path)]
    assert len(found) > 150
    assert [problem for problem in found if problem] == []


def test_edges_were_recorded_on_every_kernel() -> None:
    lines = [path.name.partition("-")[2].rpartition(".jsonl")[0] for path in EDGES]
    assert lines == ["5.10.223", "6.1.176", "6.12.117", "7.2.12"]


def test_recordings_cover_every_kind_of_step() -> None:
    kinds: Counter[str] = Counter()
    for path in RECORDED:
        for recording in recordings(path):
            kinds.update(step.split(":")[0] for step in recording.entry["plan"].split(","))
    for step in ("cpuid", "sregs", "nested", "regs", "msrs", "events", "debugregs", "run"):
        assert kinds[step] > 200, step


MATRIX = json.loads((HERE / "matrix.json").read_text())


@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12", "7.2"])
def test_every_row_of_the_check_matrix(kernel: str) -> None:
    wrong = []
    for row in MATRIX["set_nested_state"]:
        steps = plans.parse(row["plan"])
        model = simulate(
            PROFILES[kernel], guests()[row["guest"]], steps, host=Host(irqchip=False), backed=backed
        )
        result = model.results[row["step"] - 1]
        if result.errno != row["errno"][kernel]:
            wrong.append(f"{row['row']} ({row['plan']}): {row['errno'][kernel]}, {result.failed}")
    assert len(MATRIX["set_nested_state"]) > 300
    assert wrong == []


@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12", "7.2"])
def test_every_row_of_the_order_matrix(kernel: str) -> None:
    wrong = []
    for row in MATRIX["orders"]:
        expected = row["kernels"].get(kernel)
        if expected is None:
            continue
        steps = plans.parse(row["plan"])[: len(expected["errno"])]
        model = simulate(
            PROFILES[kernel], guests()[row["guest"]], steps, host=Host(irqchip=False), backed=backed
        )
        errnos = [r.errno for r in model.results]
        if errnos != expected["errno"]:
            wrong.append(f"{row['row']}: {expected['errno']}, model {errnos}")
        before = [r for r in model.results if r.outcome is None]
        runs = [r.outcome.result for r in model.results if r.outcome is not None]
        first = next((i for i, r in enumerate(model.results) if r.outcome is not None), None)
        last = model.results[first - 1] if first else before[-1]
        found = flat(last.state, split="vmcb02" in last.state.areas)
        for name, value in expected["before_run"].items():
            if found[name] != value:
                wrong.append(f"{row['row']}: {name} {value:#x}, model {found[name]:#x}")
        for ours, theirs in zip(runs, expected["run"], strict=False):
            if judged(ours, theirs) is False:
                wrong.append(f"{row['row']}: run {theirs}, model {ours}")
    assert len(MATRIX["orders"]) > 200
    assert wrong == []
