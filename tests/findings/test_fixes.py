"""Bugs that a change of KVM repaired: one stream that meets each, one that does not."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from qemu_svm.findings.check import check
from qemu_svm.findings.fixes import CHANGE_OF, FIXES, rules_of
from qemu_svm.findings.rules import RULES
from qemu_svm.machine import Machine
from qemu_svm.model.kernels.changes import Side
from qemu_svm.model.kernels.table import BY_ID, CHANGES
from qemu_svm.model.profiles import profiles
from tests.model.conftest import PAGED, PLAIN, machine_of

SOFT = {0xA8: (0x8000_0480, 4)}
PAE = {0x4D0: (0x1000, 8), 0x548: (0x20, 8), 0xB0: (0x10_5018, 8)}
RIP_AWAY = {0xC8: (0x1234, 8)}


def with_fields(data: bytes, changed: Mapping[int, tuple[int, int]]) -> Machine:
    nested = machine_of(data).vcpus[0].nested
    assert nested is not None
    raw = bytearray(data)
    for offset, (value, size) in changed.items():
        at = nested.vmcb_offset + offset
        raw[at : at + size] = value.to_bytes(size, "little")
    return machine_of(bytes(raw))


# Rule, stream, fields that show it, fields that do not, a kernel without the fix, one with it.
MET = [
    ("K-01", PLAIN, SOFT, {**SOFT, **RIP_AWAY}, "6.1.174", "6.1.175"),
    ("K-02", PLAIN, SOFT, {}, "6.12.113", "6.12.114"),
    ("K-03", PLAIN, {0xB8: (1, 8)}, {0xB8: (2, 8)}, "6.12.113", "6.12.114"),
    ("K-03", PLAIN, {0x670: (1, 8)}, {0x670: (2, 8)}, "6.18.26", "6.18.27"),
    ("K-04", PLAIN, {0xB8: (1, 8)}, {0x670: (1, 8)}, "6.1.190", "6.1.191"),
    ("K-05", PAGED, PAE, {**PAE, 0xB0: (0x10_5000, 8)}, "6.1.114", "6.1.115"),
    ("K-05", PAGED, PAE, {0xB0: (0x10_5018, 8)}, "5.10.228", "5.10.229"),
    ("K-06", PLAIN, {0x60: (1 << 31, 4)}, {0x60: (1 << 24, 4)}, "5.10.59", "5.10.60"),
    ("K-07", PLAIN, {0x3E0: (1, 4)}, {}, "6.12.87", "6.12.88"),
    ("K-07", PLAIN, {0x3E0: (1, 4)}, {0x3E0: (1, 4), 0x90: (1, 8)}, "6.12.87", "6.12.88"),
]


def found(machine: Machine, kernel: str, source: str | None = None) -> set[str]:
    saved_by = None if source is None else profiles(source)[0]
    return {one.rule for one in check(machine, profiles(kernel), source=saved_by).findings}


@pytest.mark.parametrize(("rule", "stream", "shows", "other", "without", "fixed"), MET)
def test_one_stream_that_meets_it_and_one_that_does_not(
    rule: str,
    stream: bytes,
    shows: Mapping[int, tuple[int, int]],
    other: Mapping[int, tuple[int, int]],
    without: str,
    fixed: str,
) -> None:
    machine = with_fields(stream, shows)
    side = BY_ID[RULES[rule].change].side
    if side is Side.SOURCE:
        assert rule in found(machine, "7.3", without)
        assert rule not in found(machine, "7.3", fixed)
        assert rule not in found(machine, without)
        assert rule not in found(with_fields(stream, other), "7.3", without)
        return
    assert rule in found(machine, without)
    assert rule not in found(machine, fixed)
    assert rule not in found(with_fields(stream, other), without)
    if side is Side.BOTH:
        assert rule in found(machine, fixed, without)


def test_a_source_is_named() -> None:
    report = check(with_fields(PLAIN, SOFT), profiles("7.3"), source=profiles("6.1.0-44-amd64")[0])
    (finding,) = [one for one in report.findings if one.rule == "K-01"]
    assert "saved by 6.1.0-44-amd64" in finding.message
    assert "6.1.175, 6.6.140, 6.12.86" in finding.do


@pytest.mark.parametrize("data", [PLAIN, PAGED])
@pytest.mark.parametrize("kernel", ["5.8", "5.10", "6.1.100", "6.12.117", "7.3"])
def test_nothing_of_it_is_in_every_stream(data: bytes, kernel: str) -> None:
    assert not {one for one in found(machine_of(data), kernel, "5.10") if one.startswith("K-")}


def test_every_rule_names_a_change() -> None:
    for one in FIXES:
        assert one.rule.change in BY_ID
        assert one.rule.id in RULES
    for rule, change in CHANGE_OF.items():
        assert rule in RULES
        assert change in BY_ID
    with_predicate = {one.rule.id for one in FIXES if one.applies is not None}
    assert with_predicate - {rule for rule, *_ in MET} == {"K-08"}  # needs a vCPU in SMM


def test_every_cve_leads_to_a_rule() -> None:
    for change in CHANGES:
        if change.cve:
            assert rules_of(change.id) or change.id == "invlpga-ud", change.id
