"""What looks wrong is told, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from qemu_svm.findings.inspection import findings
from qemu_svm.machine import Machine, read_machine
from qemu_svm.rules import Severity
from qemu_svm.source import BytesSource
from qemu_svm.stream import Stream, read_stream
from tests.support.builders import Section, stream


def changed(sample: bytes, at: int, data: bytes) -> Machine:
    return read_machine(read_stream(BytesSource(sample[:at] + data + sample[at + len(data) :])))


@pytest.fixture(scope="module")
def healthy(sample: bytes) -> Machine:
    return read_machine(read_stream(BytesSource(sample)))


def rules(machine: Machine) -> list[str]:
    return [finding.rule for finding in findings(machine)]


def test_captures_are_clean(machine: Machine) -> None:
    assert findings(machine) == []


def test_guest_mode_must_agree(sample: bytes, healthy: Machine) -> None:
    at = healthy.vcpus[0].registers["hflags"].offset
    value = healthy.vcpus[0].get("hflags") ^ 1 << 21
    broken = changed(sample, at, value.to_bytes(4, "big"))
    assert rules(broken) == ["X-01"]
    (finding,) = findings(broken)
    assert finding.severity is Severity.ERROR
    assert finding.offset == 0x98D7C


def test_gif_must_agree(sample: bytes, healthy: Machine) -> None:
    at = healthy.vcpus[0].registers["hflags2"].offset
    assert rules(changed(sample, at, b"\0\0\0\0")) == ["X-02"]


@pytest.mark.parametrize(
    ("offset", "data", "rule"),
    [(2, b"\0\x05", "X-04"), (4, b"\0\0\0\x80", "X-04")],
)
def test_headers_of_the_nested_state(
    offset: int, data: bytes, rule: str, sample: bytes, healthy: Machine
) -> None:
    nested = healthy.vcpus[0].nested
    assert nested is not None
    assert rules(changed(sample, nested.offset + offset, data)) == [rule]


def cpu(hflags: int, vm_vmcb: int) -> Stream:
    fields: list[dict[str, Any]] = [
        {"name": "env.eip", "type": "uint64", "size": 8},
        {"name": "env.hflags", "type": "uint32", "size": 4},
        {"name": "env.vm_vmcb", "type": "uint64", "size": 8},
    ]
    payload = bytes(8) + hflags.to_bytes(4, "big") + vm_vmcb.to_bytes(8, "big")
    return read_stream(BytesSource(stream([Section("cpu", payload, fields)])))


def test_guest_mode_without_nested_state() -> None:
    assert rules(read_machine(cpu(1 << 21, 0))) == ["X-03"]
    # Under TCG there is none, and none is needed.
    assert rules(read_machine(cpu(1 << 21, 0x108000))) == []
    assert rules(read_machine(cpu(1 << 21 | 1 << 20, 0))) == []


def test_streams_that_do_not_describe_themselves() -> None:
    data = stream([Section("timer", b"\1", [])], describe=False)
    assert rules(read_machine(read_stream(BytesSource(data)))) == ["no-description"]


def test_damage_becomes_findings(sample: bytes) -> None:
    machine = read_machine(read_stream(BytesSource(sample[:0x98D00])))
    (finding,) = findings(machine)
    assert (finding.rule, finding.offset) == ("truncated", 0x98D00)
    assert "cpu" in finding.message
