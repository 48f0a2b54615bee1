"""A VM of a real KVM: this machine's if it has one, and always that of the box."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from qemu_svm.errors import EnvironmentFault
from qemu_svm.kvm import run as runs
from qemu_svm.kvm.device import KVM_PATH, KvmRefused, System, Vcpu
from qemu_svm.kvm.run import run
from qemu_svm.lab import Box
from qemu_svm.lab.kvm import pack_agent
from tests.conftest import ROOT

CODE = 0x1000
OUT_AND_HALT = b"\xb0\x2a\xe6\x80\xe6\xea\xf4"  # mov $42,%al; out $0x80; out $0xea; hlt
SPIN = b"\xeb\xfe"

usable = pytest.mark.skipif(not os.access(KVM_PATH, os.R_OK | os.W_OK), reason="no /dev/kvm here")


@pytest.fixture
def vcpu() -> Iterator[tuple[Vcpu, mmap.mmap]]:
    """A vCPU in real mode at CODE."""
    memory = mmap.mmap(-1, 0x10000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with System() as kvm, kvm.create_vm() as vm:
        vm.add_memory(0, 0, memory)
        made = vm.create_vcpu()
        made.set_cpuid(kvm.supported_cpuid())
        sregs = made.get("SREGS")
        made.set("SREGS", sregs | {"cs.base": 0, "cs.selector": 0})
        made.set("REGS", {"rip": CODE, "rflags": 2})
        yield made, memory


@usable
def test_a_guest_runs_to_its_out_and_halts(vcpu: tuple[Vcpu, mmap.mmap]) -> None:
    made, memory = vcpu
    memory[CODE : CODE + len(OUT_AND_HALT)] = OUT_AND_HALT
    found = run(made, 10, stop_port=0xEA)
    assert (found.name, found.detail["port"], found.detail["out"]) == ("IO", 0xEA, 1)
    assert made.get("REGS")["rax"] & 0xFF == 42
    assert run(made, 10).name == "HLT"


@usable
def test_a_guest_that_spins_is_got_back(vcpu: tuple[Vcpu, mmap.mmap]) -> None:
    made, memory = vcpu
    memory[CODE : CODE + len(SPIN)] = SPIN
    found = run(made, 0.1)
    assert found.errno == errno.EINTR
    assert made.get("REGS")["rip"] == CODE
    assert made.run_page[1] == 0  # immediate_exit is off again


@usable
def test_state_goes_in_and_comes_out(vcpu: tuple[Vcpu, mmap.mmap]) -> None:
    made, _memory = vcpu
    made.set("DEBUGREGS", {"dr0": 0x1234, "dr6": 0xFFFF0FF0, "dr7": 0x400})
    assert made.get("DEBUGREGS")["dr0"] == 0x1234
    assert made.set_msrs([(0x277, 0x0007040600070406), (0xC0000081, 5)]) == 2
    assert made.get_msrs([0xC0000081, 0x277]) == {0xC0000081: 5, 0x277: 0x0007040600070406}
    for name in ("XSAVE", "XCRS", "FPU", "VCPU_EVENTS", "SREGS"):
        values = made.get(name)
        made.set(name, values)
        assert made.get(name) == values, name


@usable
def test_an_ioctl_that_fails_keeps_its_errno(vcpu: tuple[Vcpu, mmap.mmap]) -> None:
    made, _memory = vcpu
    with pytest.raises(KvmRefused, match="KVM_SET_DEBUGREGS: EINVAL") as caught:
        made.set("DEBUGREGS", {"dr7": 1 << 32})
    assert (caught.value.ioctl, caught.value.errno) == ("SET_DEBUGREGS", errno.EINVAL)
    # Without an interrupt controller in the kernel there is no local APIC to read.
    with pytest.raises(KvmRefused, match="KVM_GET_LAPIC"):
        made.get("LAPIC")


@usable
def test_everything_is_closed_on_every_way_out() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError):
        _broken_off()
    assert sorted(os.listdir("/proc/self/fd")) == before


def _broken_off() -> None:
    with System() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        assert len(vm.create_vcpu().get("LAPIC")["regs"]) == 256
        raise ZeroDivisionError


def test_no_kvm_is_said_so() -> None:
    with pytest.raises(EnvironmentFault, match="/nowhere/kvm: No such file or directory"):
        System("/nowhere/kvm")
    with pytest.raises(EnvironmentFault, match="/dev/null is not a KVM device"):
        System("/dev/null")


def test_exits_are_named() -> None:
    page = bytearray(runs.RUN_BYTES)
    page[8] = 17
    page[32] = 1
    assert runs.decode(bytes(page)).detail == {"suberror": 1, "ndata": 0}
    assert runs.decode(bytes(page)).name == "INTERNAL_ERROR"
    assert runs.decode(bytes(page), errno.EFAULT).name == "EFAULT"
    page[8] = 200
    assert runs.decode(bytes(page)).name == "exit 200"


def test_the_same_in_the_box_with_its_own_python(box: Box) -> None:
    """All of the above that needs a KVM, on one that always is there."""
    pack_agent(box.share / "kvm.zip")
    (box.share / "plain_vm.py").write_bytes((ROOT / "tests" / "kvm" / "plain_vm.py").read_bytes())
    done = box.run(
        ["python3", "/share/plain_vm.py"], env={"PYTHONPATH": "/share/kvm.zip"}, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, b"")
    said = dict(line.split("=") for line in done.stdout.decode().split())
    assert said["out"] == "IO:0xea:42"
    assert said["halt"] == "HLT"
    assert said["spin"] == "EINTR"
    assert said["refused"] == "EINVAL"
    assert said["nested"] == "4224"
    assert said["left"] == "0"
