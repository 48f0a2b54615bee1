"""Every guest on a real KVM: captured in its state, restored, and going on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qemu_svm.errors import Refused
from qemu_svm.lab import Box
from qemu_svm.lab.capture import capture
from qemu_svm.lab.guests import GUESTS, Guest, assemble, differences, find, values
from qemu_svm.lab.restore import Verdict, restore, settings_of
from qemu_svm.lab.vm import Settings, running
from qemu_svm.machine import Machine, read_machine
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream

KERNEL = "6.1"

Captured = Callable[[str], Path]
every_guest = pytest.mark.parametrize("name", GUESTS)


@pytest.fixture(scope="session")
def captured(box: Box) -> Captured:
    """Capture a guest by name; each once, in the box that all tests share."""
    done: dict[str, Path] = {}

    def take(name: str) -> Path:
        if name not in done:
            guest = find(name)
            image = assemble(guest)
            with running(box, Settings(smp=len(guest.vcpus)), image=image.data) as vm:
                done[name] = capture(vm, guest, image).path
        return done[name]

    return take


def machine_of(path: Path) -> Machine:
    with open_source(str(path)) as source:
        machine = read_machine(read_stream(source))
        assert machine.stream.complete
        assert not machine.problems
        return machine


@every_guest
def test_shows_whose_is_whose(name: str, captured: Captured) -> None:
    guest = find(name)
    machine = machine_of(captured(name))
    assert differences(guest, assemble(guest), machine, KERNEL) == []


@every_guest
def test_goes_on_after_a_restore(name: str, captured: Captured, box: Box) -> None:
    path = captured(name)
    outcome = restore(box, path.name, settings_of(machine_of(path)))
    assert outcome.verdict is Verdict.GOES_ON, outcome
    assert outcome.guest == name
    assert set(find(name).counters) <= set(outcome.moved)


@pytest.mark.parametrize(
    ("name", "flags"),
    [("nested", 0x101), ("run-pending", 0x103), ("inject", 0x103), ("l2-gif-clear", 0x001)],
)
def test_flags_of_the_nested_state(name: str, flags: int, captured: Captured) -> None:
    nested = machine_of(captured(name)).vcpus[0].nested
    assert nested is not None
    assert nested.flags == flags


def test_page_directory_pointers_travel(captured: Captured) -> None:
    for name in ("pae", "pae-npt"):
        vcpu = machine_of(captured(name)).vcpus[0]
        found = tuple(vcpu.get(f"pdptr{number}") for number in range(4))
        assert found == values.pdptes(nested_paging=name == "pae-npt")


def test_smm_hides_guest_mode_and_the_smram_has_it(captured: Captured) -> None:
    vcpu = machine_of(captured("smm")).vcpus[0]
    assert vcpu.smm
    assert not vcpu.guest_mode
    assert vcpu.nested is None


def test_one_processor_in_each_level(captured: Captured) -> None:
    first, second = machine_of(captured("smp")).vcpus
    assert (first.guest_mode, second.guest_mode) == (False, True)
    assert (first.get("rbx"), second.get("rbx")) == (values.L1["rbx"], 0x2222_000B)


def test_a_difference_is_told(captured: Captured) -> None:
    """The comparison sees it when a capture is of another guest."""
    guest: Guest = find("nested")
    found = differences(guest, assemble(guest), machine_of(captured("nested-npt")), KERNEL)
    assert f"vcpu0.cr3: expected {0x51A000:#x}, found {0x11A000:#x}" in found
    assert "vcpu0.nested.control.nested_ctl: expected 0x0, found 0x1" in found


def test_a_machine_type_that_is_none_never_reaches_qemu(captured: Captured) -> None:
    machine = machine_of(captured("nested"))
    strange = replace(machine, name="pc,dump-guest-core=on")
    with pytest.raises(Refused, match="machine type is invalid"):
        settings_of(strange)
    assert settings_of(strange, "pc").machine == "pc"
    assert settings_of(machine).memory == 32
