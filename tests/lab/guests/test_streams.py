"""The kept captures of the guests: decoded, judged and restored in the model, without a box."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from qemu_svm.findings.check import check
from qemu_svm.findings.verdict import Verdict, judge_restore
from qemu_svm.lab.guests import GUESTS, values
from qemu_svm.machine import Machine, Vcpu, read_machine
from qemu_svm.model import plans
from qemu_svm.model.profiles import PROFILES, RELEASED
from qemu_svm.model.saved import from_vcpu
from qemu_svm.model.simulate import simulate
from qemu_svm.rules import Severity
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS

FOLDER = STREAMS / "guests"
KEPT: dict[str, dict[str, Any]] = {
    entry["guest"]: entry for entry in json.loads((FOLDER / "guests.json").read_text())["streams"]
}


@pytest.fixture(params=KEPT)
def kept(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, KEPT[request.param]


@pytest.fixture
def machine(kept: tuple[str, dict[str, Any]]) -> Iterator[Machine]:
    yield from opened(kept[0])


def opened(name: str) -> Iterator[Machine]:
    with open_source(str(FOLDER / KEPT[name]["file"])) as source:
        yield read_machine(read_stream(source))


def vcpu_of(name: str, index: int = 0) -> Vcpu:
    return next(opened(name)).vcpus[index]


def test_every_guest_is_kept() -> None:
    assert set(KEPT) == set(GUESTS)


def test_is_the_capture_that_was_recorded(kept: tuple[str, dict[str, Any]]) -> None:
    entry = kept[1]
    with open_source(str(FOLDER / entry["file"])) as source:
        data = source.read_at(0, source.size())
    assert len(data) == entry["size"]
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]


def test_decodes_as_recorded(kept: tuple[str, dict[str, Any]], machine: Machine) -> None:
    assert machine.stream.complete
    assert not machine.stream.problems + machine.problems
    assert len(machine.vcpus) == len(kept[1]["vcpus"])
    for vcpu, facts in zip(machine.vcpus, kept[1]["vcpus"], strict=True):
        assert vcpu.guest_mode == facts["guest_mode"]
        assert vcpu.smm == facts["smm"]
        assert facts["gif"] in (None, vcpu.gif)
        assert (None if vcpu.nested is None else hex(vcpu.nested.flags)) == facts["flags"]
        for name, value in facts.get("registers", {}).items():
            assert hex(vcpu.get(name)) == value, name
        if "l1_save" in facts:
            assert vcpu.nested is not None
            save = vcpu.nested.l1_save
            assert {name: hex(save[name]) for name in facts["l1_save"]} == facts["l1_save"]


def test_every_kernel_of_the_model_takes_it(machine: Machine) -> None:
    for vcpu in machine.vcpus:
        saved = from_vcpu(vcpu)
        for kernel in RELEASED:
            verdict = judge_restore(simulate(PROFILES[kernel], saved, plans.parse("qemu")))
            assert verdict.verdict is Verdict.RIGHT, (kernel, verdict.lines)


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("nested", set()),
        ("l1", set()),
        ("protected", set()),
        ("pae", set()),
        ("nested-npt", {"O-28"}),
        ("run-pending", {"O-21"}),
        ("inject", {"O-21"}),
        ("l2-gif-clear", {"O-19"}),
        ("msrs", {"A-01"}),
        ("smm", {"O-18", "A-03"}),
    ],
)
def test_what_check_finds(name: str, rules: set[str]) -> None:
    for machine in opened(name):
        found = check(machine, [PROFILES[kernel] for kernel in RELEASED])
        # Bugs of single updates that any such L1 meets are information.
        bugs = {one.rule for one in found.findings if one.rule.startswith("K-")}
        assert {one.rule for one in found.findings} - bugs == rules
        assert all(
            one.severity is Severity.INFO for one in found.findings if one.rule.startswith("K-")
        )
        assert ("K-08" in bugs) is (name == "smm")


def test_pae_carries_its_page_directory_pointers() -> None:
    for name in ("pae", "pae-npt"):
        vcpu = vcpu_of(name)
        found = tuple(vcpu.get(f"pdptr{number}") for number in range(4))
        assert found == values.pdptes(nested_paging=name == "pae-npt")
    assert "pdptr0" not in vcpu_of("nested").registers


def test_the_pending_event_is_in_the_control_area() -> None:
    nested = vcpu_of("inject").nested
    assert nested is not None
    assert nested.control.event_inj == values.CONSTANTS["EVENT"]


def test_intercepted_msrs() -> None:
    nested = vcpu_of("msrs").nested
    assert nested is not None
    control = nested.control
    assert control.intercepts[3] & 1 << 28
    assert control.msrpm_base_pa == values.ADDRESSES["MSRPM"]
