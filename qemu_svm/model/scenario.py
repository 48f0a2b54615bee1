"""A restore to simulate: the saved vCPU, the plan and the host."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from qemu_svm.errors import PlanError
from qemu_svm.kvm.layouts import unpack_cpuid
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.machine.recorded import CAP_EXCEPTION_PAYLOAD, CAP_TRIPLE_FAULT
from qemu_svm.memory.layout import backing
from qemu_svm.model import plans
from qemu_svm.model.kvm.run import GuestCode
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.partial import check_plan, default_plan
from qemu_svm.model.plans import Step
from qemu_svm.model.profile import Profile
from qemu_svm.model.race import FIELDS as RACED
from qemu_svm.model.recorded import PLAN, steps_of
from qemu_svm.model.saved import Saved, cpuid_of, from_vcpu, guest_cpuid
from qemu_svm.model.simulate import Simulation, simulate
from qemu_svm.x86 import cpu_models
from qemu_svm.x86.cpuid_entries import features

Backed = Callable[[int, int], bool]
"""Whether guest memory exists at (address, size)."""


def _everywhere(_address: int, _size: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that a simulation depends on, apart from the kernel.

    :param race: fields of vmcb12 that change in memory during ``vmrun``.
    :param code: what L2 does in a ``run``, by the number of the step; it exits to L1 otherwise.
    """

    saved: Saved
    steps: tuple[Step, ...]
    host: Host = field(default_factory=Host)
    backed: Backed = _everywhere
    race: Mapping[str, int] = field(default_factory=dict)
    code: Mapping[int, GuestCode] = field(default_factory=dict)

    def simulate(self, profile: Profile) -> Simulation:
        """Run the plan in the model of one kernel.

        :raises PlanError: an invalid step, such as one with an unknown register.
        """
        return simulate(
            profile,
            self.saved,
            self.steps,
            host=self.host,
            backed=self.backed,
            race=self.race,
            code=self.code,
        )


def steps_for(machine: Machine, vcpu: Vcpu, plan: str | None) -> tuple[Step, ...]:
    """Return the steps of a plan.

    :param plan: None for the recorded put, or for QEMU's plan as far as the input has values
        for it; ``recorded`` for the recorded put.
    :raises PlanError: an unknown step or setting; or the input is no recording.
    """
    if plan is None or plan == PLAN:
        recorded = steps_of(vcpu)
        if recorded:
            return recorded
        if plan == PLAN:
            raise PlanError(f"the plan '{PLAN}' is for recordings", near=tuple(plans.NAMED))
    return plans.parse(default_plan(machine, vcpu) if plan is None else plan)


def host_for(vcpu: Vcpu, host: Host) -> Host:
    """Return the host as a recording shows it: the VM's capabilities, CPUID that KVM supports."""
    if vcpu.put is None:
        return host
    found = vcpu.put.capabilities
    with suppress(ValueError):
        if vcpu.put.supported:
            host = replace(host, cpuid=features(unpack_cpuid(vcpu.put.supported)))
    return replace(
        host,
        irqchip=host.irqchip and vcpu.put.irqchip is not False,
        exception_payload=CAP_EXCEPTION_PAYLOAD in found,
        triple_fault_event=CAP_TRIPLE_FAULT in found,
    )


def scenario(
    machine: Machine,
    vcpu: Vcpu,
    plan: str | None = None,
    *,
    npt: bool = True,
    irqchip: bool = True,
    maxphyaddr: int = 40,
    cpu: str | None = None,
    race: Mapping[str, int] | None = None,
    backed: Backed | None = None,
    saved: Vcpu | None = None,
) -> Scenario:
    """Return the restore of one vCPU of a stream.

    :param plan: see :mod:`qemu_svm.model.plans`; None for that of :func:`steps_for`.
    :param npt: the host uses nested paging.
    :param irqchip: the local APIC is in the kernel.
    :param maxphyaddr: the guest's physical address width in bits, if no CPUID is there.
    :param cpu: the CPU model of the destination, see :mod:`qemu_svm.x86.cpu_models`; None
        for one with the features that the saved registers show.
    :param race: fields of vmcb12 that L1 changes between check and use, see
        :mod:`qemu_svm.model.race`; adds a second VMRUN to the plan.
    :param backed: ``backing(machine)``, if the caller has it already.
    :param saved: the vCPU that a recorded put was to restore, by whose registers the result is
        judged; None for what the put itself carries.
    :raises PlanError: an unknown step, setting, field, CPU model or feature.
    """
    race = race or {}
    for name in race:
        if name not in RACED:
            near = difflib.get_close_matches(name, RACED, cutoff=0.5) or RACED
            raise PlanError(f"VMRUN reads no field '{name}'", near=tuple(near))
    steps = steps_for(machine, vcpu, plan)
    check_plan(machine, vcpu, steps)
    values = from_vcpu(vcpu if saved is None else saved)
    if race and not any(step.name == "vmrun" for step in steps):
        steps += plans.parse("vmrun")
    cpuid = cpuid_of(vcpu) or guest_cpuid(values, maxphyaddr)
    if cpu is not None:
        cpuid = cpu_models.parse(cpu, cpuid)
    host = host_for(vcpu, Host(npt=npt, irqchip=irqchip, bsp=vcpu.index == 0, cpuid=cpuid))
    return Scenario(values, steps, host, backed or backing(machine), race)
