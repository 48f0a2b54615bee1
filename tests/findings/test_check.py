"""Streams judged by the rules: the right rule, on the right kernels, and on no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qemu_svm.findings.advisories import COMMON
from qemu_svm.findings.check import Report, check, summary
from qemu_svm.findings.impossible import IMPOSSIBLE
from qemu_svm.findings.rules import RULES
from qemu_svm.findings.verdict import Verdict
from qemu_svm.machine import Machine
from qemu_svm.machine.paths import vcpu_tree
from qemu_svm.model.profiles import PROFILES, RELEASED, ranges
from qemu_svm.model.scenario import Scenario
from qemu_svm.rules import Finding, Severity
from qemu_svm.stream import RamBlock
from tests.model.conftest import PAGED, PLAIN, damaged, machine_of, patched

ALL = [PROFILES[name] for name in RELEASED]


def judged(machine: Machine, **options: Any) -> Report:
    return check(machine, ALL, **options)


def own(report: Report) -> list[Finding]:
    """Findings about this stream, not information about the kernels that any such L1 meets."""
    info = Severity.INFO
    return [one for one in report.findings if one.rule not in COMMON or one.severity is not info]


def test_captures_pass_on_every_kernel(machine: Machine, capture: dict[str, Any]) -> None:
    report = judged(machine)
    assert {v.verdict for v in report.verdicts[0].values()} == {Verdict.RIGHT}
    expected = ["O-28"] if capture["provenance"]["guest"] == "nested-npt" else []
    # What ordinary streams meet is information about kernels.
    assert [finding.rule for finding in own(report)] == expected
    assert not [finding for finding in report.findings if finding.severity is Severity.ERROR]


def since(first: str) -> set[str]:
    names = list(RELEASED)
    return set(names[names.index(first) :])


def having(check: str) -> set[str]:
    """Rows whose kernels make a check; their boundaries are in the tests of the table."""
    return {name for name in RELEASED if check in PROFILES[name].checks}


# VMCB offset, size, value, rule, kernels that must refuse by that rule.
BROKEN = [
    (0x010, 4, 0, "C-01", set(RELEASED)),
    (0x058, 4, 0, "C-02", set(RELEASED)),
    (0x048, 8, 1 << 52, "C-04", since("5.13")),
    (0x040, 8, 1 << 52, "C-05", since("5.13")),
    (0x05C, 1, 3, "C-06", having("C-06")),
    (0x060, 4, 1 << 26, "C-07", having("C-07")),
    (0x0A8, 4, 0x8000_0100, "C-08", since("7.1.0")),
    (0x0A8, 4, 0x8000_0309, "C-08", since("7.1.0")),
    (0x558, 8, 0x11, "SV-11", set(RELEASED)),
    (0x558, 8, 0x8000_0010, "SV-13", since("5.13")),
    (0x558, 8, 0xA000_0011, "S-02", since("5.13")),
    (0x558, 8, 0x1_8000_0011, "S-03", since("5.13")),
    (0x570, 8, 0x2_0002, "SV-14", since("5.13")),
    (0x568, 8, 1 << 32, "S-04", since("5.13")),
    (0x560, 8, 1 << 32, "S-04", since("5.13")),
    (0x548, 8, 0, "S-05", since("5.13")),
    (0x550, 8, 1 << 40, "S-07", since("5.13")),
    (0x412, 2, 0xE9B, "S-09", having("S-09")),
    (0x548, 8, 0x8000_0020, "S-10", since("5.13")),
    (0x4D0, 8, 0x1504, "S-11", since("5.13")),
]


@pytest.mark.parametrize(("offset", "size", "value", "rule", "kernels"), BROKEN)
def test_one_broken_field(offset: int, size: int, value: int, rule: str, kernels: set[str]) -> None:
    report = judged(damaged(PLAIN, offset, value, size))
    errors = [
        finding
        for finding in report.findings
        if finding.severity is Severity.ERROR and RULES[finding.rule] not in IMPOSSIBLE
    ]
    assert [(finding.rule, set(finding.kernels)) for finding in errors] == [(rule, kernels)]
    (finding,) = errors
    nested = machine_of(PLAIN).vcpus[0].nested
    assert nested is not None
    assert finding.offset is not None
    assert finding.message.startswith("vCPU 0: ")
    for name, judgement in report.verdicts[0].items():
        refused = any(rule in line for line in judgement.lines)
        assert refused is (name in kernels), name


def test_broken_svme_and_nested_cr3() -> None:
    report = judged(damaged(PLAIN, 0x4D0, 0x500))
    found = {finding.rule: set(finding.kernels) for finding in report.findings}
    assert found["SV-12"] == having("SV-12")
    assert found["S-01"] == since("5.13")
    report = judged(damaged(PAGED, 0x0B0, 1 << 52))
    found = {finding.rule: set(finding.kernels) for finding in report.findings}
    assert found["C-03b"] == having("C-03b")


def test_headers_and_registers() -> None:
    machine = machine_of(PLAIN)
    vcpu, nested = machine.vcpus[0], machine.vcpus[0].nested
    assert nested is not None

    def rules(offset: int, change: bytes, **options: Any) -> dict[str, set[str]]:
        report = judged(patched(PLAIN, offset, change), **options)
        return {finding.rule: set(finding.kernels) for finding in report.findings}

    address = nested.vmcb_offset - 8
    found = rules(address, (0x108001).to_bytes(8, "big"))
    assert found["SV-05"] == set(RELEASED)
    assert "X-09" in found
    found = rules(address, (0x7F00_0000).to_bytes(8, "big"))
    assert "X-06" in found
    assert rules(nested.offset + 4, (128).to_bytes(4, "big"))["SV-06"] == set(RELEASED)
    found = rules(vcpu.registers["efer"].offset, (0x500).to_bytes(8, "big"))
    assert found["SV-03"] == set(RELEASED) - since("7.0.0")
    assert found["SV-03b"] == since("7.0.0")
    assert "X-05" in found
    found = rules(vcpu.registers["cr0"].offset, (0xA000_0011).to_bytes(8, "big"))
    assert found["SV-10"] == set(RELEASED) - having("R-04")
    assert found["R-04"] == having("R-04")
    found = rules(vcpu.registers["hflags"].offset, (0x28C0B0).to_bytes(4, "big"))
    assert set(found) >= {"X-10"}
    assert "X-08" in rules(vcpu.registers["vm_hsave_pa"].offset, bytes(8))
    assert judged(machine_of(PAGED), npt=False).findings[0].rule == "C-03"
    wide = damaged(PLAIN, 0x550, 1 << 35)  # L1's CR3
    assert "S-07" not in {one.rule for one in judged(wide).findings}
    assert "S-07" in {one.rule for one in judged(wide, maxphyaddr=32).findings}


def test_l1s_bitmap_outside_ram() -> None:
    machine = damaged(PLAIN, 0x00C, 0x1004_0000, 4)
    nested = machine.vcpus[0].nested
    assert nested is not None
    both = bytearray(PLAIN)
    at = nested.vmcb_offset
    both[at + 0x0C : at + 0x10] = (0x1004_0000).to_bytes(4, "little")
    both[at + 0x48 : at + 0x50] = (0x300_0000).to_bytes(8, "little")
    report = judged(machine_of(bytes(both)))
    assert [finding.rule for finding in own(report)] == ["X-07", "A-01", "K-20"]
    assert {v.verdict for v in report.verdicts[0].values()} == {Verdict.BROKEN}


def test_advisories() -> None:
    machine = machine_of(PLAIN)
    nested = machine.vcpus[0].nested
    assert nested is not None
    pending = patched(PLAIN, nested.offset, (0x103).to_bytes(2, "big"))
    found = {finding.rule: finding for finding in judged(pending).findings}
    assert ranges(found["O-21"].kernels) == "5.8 to 5.10"
    assert found["O-21"].severity is Severity.WARNING
    data = bytearray(PLAIN)
    data[nested.offset : nested.offset + 2] = (0x103).to_bytes(2, "big")
    at = nested.vmcb_offset + 0xA8
    data[at : at + 4] = (0x8000_0480).to_bytes(4, "little")
    assert "O-10" in {finding.rule for finding in judged(machine_of(bytes(data))).findings}
    data[at + 0x20 : at + 0x28] = (0x1234).to_bytes(8, "little")  # next_rip
    found = {finding.rule: finding for finding in judged(machine_of(bytes(data))).findings}
    assert ranges(found["A-02"].kernels) == "5.8 to 5.18"
    bitmap = own(judged(damaged(PLAIN, 0x00C, 0x1004_0000, 4)))
    assert [(finding.rule, finding.kernels) for finding in bitmap] == [("A-01", ("5.8",))]
    hyperv = own(judged(damaged(PLAIN, 0x3E0, 1, 4)))
    assert [finding.rule for finding in hyperv] == ["O-29", "K-07"]
    stack = own(judged(damaged(PLAIN, 0x5E8, 0x1000)))
    assert [finding.rule for finding in stack] == ["O-30"]
    hflags2 = machine.vcpus[0].registers["hflags2"].offset
    data = bytearray(PLAIN)
    data[hflags2 : hflags2 + 4] = bytes(4)
    data[nested.offset : nested.offset + 2] = (1).to_bytes(2, "big")
    found = {finding.rule: finding for finding in judged(machine_of(bytes(data))).findings}
    assert ranges(found["O-19"].kernels) == "5.10 to 5.12"


def test_the_order_of_old_qemus() -> None:
    found = own(judged(machine_of(PLAIN), plan="qemu-5.0"))
    assert [finding.rule for finding in found] == ["SV-03", "SV-03b"]


def test_fields_of_the_checks_exist() -> None:
    vcpu = machine_of(PLAIN).vcpus[0]
    for rule in RULES.values():
        if rule.field:
            assert vcpu_tree(vcpu).resolve(rule.field) is not None, rule.id


def test_what_ordinary_streams_meet_is_no_warning_about_all_kernels() -> None:
    for data in (PLAIN, PAGED):
        machine = damaged(data, 0x00C, 0x1004_0000, 4)  # as any real L1, it intercepts MSRs
        report = judged(machine, named=False)
        assert {one.severity for one in report.findings} == {Severity.INFO}
        severities = {one.rule: one.severity for one in judged(machine).findings}
        assert severities["A-01"] is Severity.WARNING
        assert severities["K-12"] is Severity.INFO
        assert ("O-28" in severities) is (data is PAGED)


def test_summaries() -> None:
    report = judged(damaged(PLAIN, 0x0A8, 0x8000_0100, 4))
    assert summary(report, 0) == "accepted by 5.8 to 7.0; wrong 7.1 to 7.3"
    assert summary(report, 99) == ""


def test_high_memory() -> None:
    from qemu_svm.memory.layout import backed, ram_ranges

    gib = 1 << 30
    machine = machine_of(PLAIN)
    for name, size, ranges_ in (
        ("pc-i440fx-7.2", 8 * gib, [(0, 3 * gib), (4 * gib, 9 * gib)]),
        ("pc-q35-7.2", 8 * gib, [(0, 2 * gib), (4 * gib, 10 * gib)]),
        ("microvm", 4 * gib, [(0, 3 * gib), (4 * gib, 5 * gib)]),
        ("pc-i440fx-7.2", gib, [(0, gib)]),
    ):
        other = replace(machine, name=name, blocks=(RamBlock("pc.ram", size, 0),))
        assert ram_ranges(other) == ranges_
    big = replace(machine, blocks=(RamBlock("x", 8 * gib, 0), RamBlock("rom", 5, 0)))
    assert backed(big, 4 * gib, 4096)
    assert not backed(big, 3 * gib, 4096)
    assert not backed(replace(machine, blocks=()), 0, 1)


def test_equal_vcpus_are_judged_once_and_others_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = machine_of(PLAIN).vcpus[0]
    broken = damaged(PLAIN, 0x058, 0, 4).vcpus[0]
    vcpus = tuple(replace(broken if index == 5 else first, index=index) for index in range(1, 9))
    runs: list[str] = []
    simulate = Scenario.simulate
    monkeypatch.setattr(
        Scenario,
        "simulate",
        lambda self, kernel: runs.append(kernel.name) or simulate(self, kernel),
    )
    report = judged(replace(machine_of(PLAIN), vcpus=vcpus))
    assert len(runs) == 2 * len(ALL)
    assert {one.verdict for one in report.verdicts[1].values()} == {Verdict.RIGHT}
    assert {one.verdict for one in report.verdicts[5].values()} == {Verdict.WRONG}
    assert all(
        report.verdicts[index] == report.verdicts[1] for index in report.verdicts if index != 5
    )
    refused = [one.path for one in report.findings if one.rule == "C-02"]
    assert refused == ["vcpu5.nested.control.asid"]
