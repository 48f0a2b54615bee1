"""What is around device state: the run state, the container, RAM that was left out."""

from __future__ import annotations

import pytest

from qemu_svm.findings.compat import compatibility
from qemu_svm.findings.inspection import findings
from qemu_svm.machine import Machine, read_machine
from qemu_svm.rules import Finding, Severity
from qemu_svm.source import BytesSource, open_source
from qemu_svm.source.libvirt import FINISHED, FORMATS
from qemu_svm.stream import read_stream
from qemu_svm.stream.vmstate.dump import Dump
from tests.conftest import STREAMS
from tests.support.builders import Section, stream

STATE = [
    {"name": "size", "type": "uint32", "size": 4},
    {"name": "runstate", "type": "buffer", "size": 100},
]


def with_run_state(name: bytes) -> Machine:
    payload = (len(name) + 1).to_bytes(4, "big") + name[:100].ljust(100, b"\0")
    section = Section("globalstate", payload, STATE)
    return read_machine(read_stream(BytesSource(stream([section]))))


@pytest.mark.parametrize("name", [b"running", b"paused", b"shutdown", b"guest-panicked"])
def test_run_states_that_qemu_knows(name: bytes) -> None:
    assert findings(with_run_state(name)) == []


@pytest.mark.parametrize("name", [b"", b"Running", b"run", b"S2Ebad!", b"\xff", b"x" * 100])
def test_run_states_that_qemu_refuses(name: bytes) -> None:
    machine = with_run_state(name)
    (found,) = findings(machine)
    assert (found.rule, found.severity) == ("X-11", Severity.ERROR)
    assert found.path == "section:globalstate.runstate"
    section = next(machine.stream.sections())
    assert found.offset == section.payload + 4


def of_image(number: int, payload: bytes, tmp_path: object) -> list[Finding]:
    path = f"{tmp_path}/image"
    header = FINISHED + b"".join(n.to_bytes(4, "little") for n in (2, 4, 1, number, 0))
    with open(path, "wb") as file:
        file.write(header.ljust(92, b"\0") + b"<a/>" + payload)
    with open_source(path) as source:
        return findings(read_machine(read_stream(source)))


def test_what_libvirt_says_of_the_payload(sample: bytes, tmp_path: object) -> None:
    assert of_image(FORMATS.index("raw"), sample, tmp_path) == []
    for number, words in ((FORMATS.index("xz"), "is xz, but it is raw"), (9, "unknown format 9")):
        (found,) = of_image(number, sample, tmp_path)
        assert (found.rule, found.severity) == ("libvirt-format", Severity.WARNING)
        assert words in found.message


def test_ram_that_stays_in_the_host() -> None:
    with open_source(str(STREAMS / "other/qemu10.0-cpr-transfer.mig.zst")) as source:
        machine = read_machine(read_stream(source))
        assert machine.stream.complete
        (found,) = findings(machine)
    assert (found.rule, found.severity) == ("ram-left-out", Severity.INFO)
    assert "memory stays in the host" in found.message


@pytest.mark.parametrize("name", ["multifd", "multifd-zlib", "ignore-shared", "mapped-ram"])
def test_ram_that_is_elsewhere_for_another_reason(name: str) -> None:
    with open_source(str(STREAMS / f"kinds/qemu10.0-{name}.mig.zst")) as source:
        assert findings(read_machine(read_stream(source))) == []


@pytest.mark.parametrize("name", ["s390_css", "lasips2", "or1k_timer", "spapr", "adb_bus"])
def test_what_qemu_registers_without_a_class_is_no_finding(name: str) -> None:
    field = {"name": "x", "type": "uint8", "size": 1}
    machine = read_machine(read_stream(BytesSource(stream([Section(name, b"\0", [field])]))))
    found = compatibility(machine, Dump(None, {}))
    assert found.findings == ()
    assert name in found.unlisted
