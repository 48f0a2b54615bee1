"""A saved vCPU out of a real capture, and ways to break it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qemu_svm.machine import Machine, read_machine
from qemu_svm.model import plans
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.saved import Saved, from_vcpu
from qemu_svm.model.simulate import Simulation, simulate
from qemu_svm.source import BytesSource
from qemu_svm.stream import read_stream
from tests.conftest import capture_bytes

PLAIN = capture_bytes("qemu7.2-linux6.1-nested.mig.zst")
PAGED = capture_bytes("qemu7.2-linux6.1-nested-npt.mig.zst")


def machine_of(data: bytes) -> Machine:
    return read_machine(read_stream(BytesSource(data)))


def patched(data: bytes, offset: int, change: bytes) -> Machine:
    """The capture with some bytes of the stream changed."""
    return machine_of(data[:offset] + change + data[offset + len(change) :])


def damaged(data: bytes, vmcb_offset: int, value: int, size: int = 8) -> Machine:
    """The capture with a field of its VMCB changed."""
    nested = machine_of(data).vcpus[0].nested
    assert nested is not None
    return patched(data, nested.vmcb_offset + vmcb_offset, value.to_bytes(size, "little"))


@pytest.fixture(scope="session")
def saved() -> Saved:
    return from_vcpu(machine_of(PLAIN).vcpus[0])


@pytest.fixture(scope="session")
def saved_npt() -> Saved:
    return from_vcpu(machine_of(PAGED).vcpus[0])


Run = Callable[..., Simulation]


@pytest.fixture
def run(saved: Saved) -> Run:
    """Simulate a plan on a kernel by name."""

    def simulated(kernel: str, plan: str, **options: object) -> Simulation:
        values = options.pop("saved", saved)
        assert isinstance(values, Saved)
        host = options.pop("host", Host())
        assert isinstance(host, Host)
        return simulate(PROFILES[kernel], values, plans.parse(plan), host=host, **options)  # type: ignore[arg-type]

    return simulated
