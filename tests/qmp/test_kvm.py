"""Guests under KVM, in L2: captured without hurting them, and through a second QEMU and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_svm.findings.diff import Comparison, compare
from qemu_svm.findings.masks import DEFAULT, ROUND_TRIP
from qemu_svm.findings.ram_diff import RamDiff, compare_ram
from qemu_svm.lab import Box
from qemu_svm.lab.capture import STEADY_TRIES, wait_alive
from qemu_svm.lab.guests import assemble, find
from qemu_svm.lab.vm import Settings, running
from qemu_svm.machine import read_machine
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from qemu_svm.stream.ram.read import read_ram


def in_l2(path: Path) -> bool:
    """Whether the guest was met in L2, not for a moment in L1."""
    with open_source(str(path)) as source:
        vcpu = read_machine(read_stream(source)).vcpus[0]
        return vcpu.nested is not None and vcpu.guest_mode


def differences(one: Path, two: Path) -> tuple[Comparison, RamDiff]:
    masks = ROUND_TRIP + DEFAULT
    with open_source(str(one)) as first, open_source(str(two)) as second:
        a, b = read_machine(read_stream(first)), read_machine(read_stream(second))
        return compare(a, b, masks), compare_ram(read_ram(a.stream), read_ram(b.stream), masks)


@pytest.mark.parametrize("name", ["nested-npt", "nested"])
def test_a_guest_in_l2_loses_nothing(name: str, box: Box) -> None:
    guest = find(name)
    settings = Settings(smp=len(guest.vcpus))
    first, second = box.share / f"trip-{name}.1", box.share / f"trip-{name}.2"
    with running(box, settings, image=assemble(guest).data) as vm:
        wait_alive(vm, guest)
        for _ in range(STEADY_TRIES):
            done = vm.qmp.capture(str(first), replace=True, qemu_directory="/share")
            assert done.before == done.after
            assert done.after.running
            if in_l2(first):
                break
        wait_alive(vm, guest)
    with running(box, settings) as other, open_source(str(first)) as source:
        other.qmp.save_again(read_stream(source), str(second), qemu_directory="/share")
        assert not other.qmp.status().running
    assert in_l2(first)
    fields, pages = differences(first, second)
    assert [one.path for one in fields.counting] == []
    assert fields.problems == ()
    assert pages.same
    first.unlink()
    second.unlink()
