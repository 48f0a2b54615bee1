"""Boundaries of the table of changes, as the kernels on both sides answered.

``tools/boundaries.py`` has recorded the answers (``make boundaries``); each plan was
performed on the nearest packages before and after the update of the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.lab.suites.kernels import order_of, version_of
from qemu_svm.machine import read_machine
from qemu_svm.model import plans
from qemu_svm.model.kernels.changes import Evidence
from qemu_svm.model.kernels.derive import profile_of
from qemu_svm.model.kernels.release import Release
from qemu_svm.model.kernels.table import BY_ID
from qemu_svm.model.saved import from_vcpu
from qemu_svm.model.scenario import Scenario
from qemu_svm.replay.compare import run_agrees
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import ROOT, STREAMS

DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parent / "boundaries.json").read_text())
CASES: list[dict[str, Any]] = DOCUMENT["boundaries"]
RAM = 32 << 20
SIDES = ("before", "after")


def name(case: dict[str, Any]) -> str:
    return f"{case['change']}-{case['after']}"


def answer(case: dict[str, Any], side: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["answers"][case[side]][case["plan"]]
    return found


def release(case: dict[str, Any], side: str) -> Release:
    major, minor, update, _ = order_of(case[side])
    return Release(major, minor, update)


def backed(address: int, size: int) -> bool:
    return address + size <= RAM


def test_there_are_boundaries_of_all_series() -> None:
    assert len({name(case) for case in CASES}) >= 10
    assert len({case["change"] for case in CASES}) >= 8


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_kernels_differ_where_the_table_has_the_change(case: dict[str, Any]) -> None:
    change = BY_ID[case["change"]]
    assert [change.is_in(release(case, side)) for side in SIDES] in ([False, True], [True, False])
    assert answer(case, "before") != answer(case, "after")


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_table_says_that_it_was_measured(case: dict[str, Any]) -> None:
    change = BY_ID[case["change"]]
    assert change.evidence is Evidence.MEASURED
    for side in SIDES:
        assert version_of(order_of(case[side])) in change.source


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", [case for case in CASES if BY_ID[case["change"]].effective],
                         ids=name)  # fmt: skip
def test_the_model_answers_like_the_kernel(case: dict[str, Any], side: str) -> None:
    profile = profile_of(release(case, side))
    assert profile is not None
    with open_source(str(STREAMS / f"{case['guest']}.mig.zst")) as source:
        saved = from_vcpu(read_machine(read_stream(source)).vcpus[0])
    simulated = Scenario(saved, plans.parse(case["plan"]), backed=backed).simulate(profile).results
    seen = answer(case, side)["steps"]
    for ours, theirs in zip(simulated, seen, strict=False):
        assert ours.errno == theirs.get("errno"), ours.step.text
        if "run" in theirs and ours.outcome is not None:
            assert run_agrees(ours.outcome.result, theirs["run"]) is not False, ours.step.text


def test_the_page_has_them_all() -> None:
    page = (ROOT / "docs/kernels.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for case in CASES:
        versions = [version_of(order_of(case[side])) for side in SIDES]
        assert any(
            f"`{case['change']}`" in row and all(f" {version}" in row for version in versions)
            for row in rows
        ), name(case)
