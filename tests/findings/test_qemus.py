"""What a QEMU of some version takes, and in which order it restores."""

from __future__ import annotations

import pytest

from qemu_svm.errors import PlanError
from qemu_svm.findings.qemus import qemu_findings, qemu_plan
from qemu_svm.machine import read_machine
from qemu_svm.rules import Severity
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS
from tests.model.conftest import PLAIN, machine_of


def test_nested_state_and_machine_types() -> None:
    machine = machine_of(PLAIN)
    assert [f.rule for f in qemu_findings(machine, "5.0")] == ["Q-01", "Q-02"]
    assert [f.rule for f in qemu_findings(machine, "6.0")] == ["Q-02"]
    assert list(qemu_findings(machine, "7.2")) == []


def test_plans() -> None:
    assert (qemu_plan("5.0"), qemu_plan("5.1"), qemu_plan("10.0")) == ("qemu-5.0", "qemu", "qemu")
    with pytest.raises(PlanError, match="'new' is not a version"):
        qemu_plan("new")


@pytest.mark.parametrize("guest", ["pae", "pae-npt"])
def test_subsections_of_the_vcpu_that_are_too_new(guest: str) -> None:
    """A guest with PDPTRs; 5.2 was seen to refuse it (docs/support-matrix.md)."""
    with open_source(str(STREAMS / f"guests/qemu10.0-linux6.12-{guest}.mig.zst")) as source:
        machine = read_machine(read_stream(source))
        old, between, new = (
            [found for found in qemu_findings(machine, version) if found.rule == "Q-03"]
            for version in ("5.2", "6.2", "7.2")
        )
        (found,) = old
        assert found.severity is Severity.ERROR
        assert found.message == "vCPU 0: QEMU 5.2 does not know the subsection cpu/pdptrs"
        assert source.read_at(found.offset or 0, 12) == b"\x05\x0acpu/pdptrs"
        (found,) = between
        assert found.severity is Severity.WARNING
        assert found.message.endswith("may not know the subsection cpu/pdptrs (5.2 does not, "
                                      "7.2 does)")  # fmt: skip
        assert new == []
