"""QEMU's words beside the stream; real refusals are in tests/qmp/test_restore.py."""

from __future__ import annotations

from qemu_svm.findings.refusal import explain_refusal
from qemu_svm.machine import read_machine
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS

CPU = "error while loading state for instance 0x0 of device 'cpu'"


def test_subsections_that_a_qemu_may_not_know() -> None:
    """What QEMU 5.2 says of a vCPU with PDPTRs."""
    with open_source(str(STREAMS / "guests/qemu10.0-linux6.12-pae.mig.zst")) as source:
        (found,) = explain_refusal(read_machine(read_stream(source)), [CPU])
    assert "has cpu/pdptrs, which is known to QEMU 7.2 and not to 5.2" in found.message
    with open_source(str(STREAMS / "qemu7.2-linux6.1-nested.mig.zst")) as source:
        (found,) = explain_refusal(read_machine(read_stream(source)), [CPU])
    assert "which QEMU" not in found.message
