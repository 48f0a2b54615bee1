"""What a simulation is put together from."""

from __future__ import annotations

import pytest

from qemu_svm.errors import PlanError
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.saved import Saved
from qemu_svm.model.scenario import Scenario, scenario
from tests.model.conftest import PLAIN, machine_of

MACHINE = machine_of(PLAIN)
VCPU = MACHINE.vcpus[0]


def test_it_is_made_of_the_stream() -> None:
    made = scenario(MACHINE, VCPU, "cpuid,sregs", npt=False, irqchip=False, maxphyaddr=36)
    assert [step.name for step in made.steps] == ["cpuid", "sregs"]
    assert (made.host.npt, made.host.irqchip, made.host.bsp) == (False, False, True)
    assert made.host.cpuid.maxphyaddr == 36
    assert made.saved.nested.vmcb_pa == 0x108000
    assert made.backed(0, 32 << 20)
    assert not made.backed(32 << 20, 1)


def test_a_race_needs_a_vmrun_and_a_field_that_it_reads() -> None:
    assert scenario(MACHINE, VCPU, race={"cr3": 0}).steps[-1].name == "vmrun"
    once = scenario(MACHINE, VCPU, "run,vmrun,run", race={"cr3": 0})
    assert [step.name for step in once.steps] == ["run", "vmrun", "run"]
    with pytest.raises(PlanError, match="VMRUN reads no field 'cr33'") as found:
        scenario(MACHINE, VCPU, race={"cr33": 0})
    assert "cr3" in found.value.near
    assert scenario(MACHINE, VCPU, race={"intercepts": 0}).race == {"intercepts": 0}
    with pytest.raises(PlanError, match="VMRUN reads no field 'es'"):
        scenario(MACHINE, VCPU, race={"es": 0})


def test_all_of_memory_exists_unless_it_is_said(saved: Saved) -> None:
    steps = scenario(MACHINE, VCPU, "cpuid,sregs,nested:vmcb_pa=0x7ff000000,regs,run").steps
    kernel = PROFILES["6.1"]
    outcome = Scenario(saved, steps).simulate(kernel).results[-1].outcome
    assert outcome is not None
    assert outcome.result == "exit"
    nowhere = Scenario(saved, steps, backed=lambda address, _size: address < 1 << 30)
    outcome = nowhere.simulate(kernel).results[-1].outcome
    assert outcome is not None
    assert outcome.result == "SHUTDOWN"
