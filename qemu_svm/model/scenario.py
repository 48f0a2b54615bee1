"""A restore to simulate: the saved vCPU, the plan and the host."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qemu_svm.errors import PlanError
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.memory.layout import backing
from qemu_svm.model import plans
from qemu_svm.model.kvm.run import GuestCode
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.partial import check_plan, default_plan
from qemu_svm.model.plans import Step
from qemu_svm.model.profile import Profile
from qemu_svm.model.race import FIELDS as RACED
from qemu_svm.model.saved import Saved, cpuid_of, from_vcpu, guest_cpuid
from qemu_svm.model.simulate import Simulation, simulate
from qemu_svm.x86 import cpu_models

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
) -> Scenario:
    """Return the restore of one vCPU of a stream.

    :param plan: see :mod:`qemu_svm.model.plans`; None for QEMU's, as far as the input has
        values for it (:mod:`qemu_svm.model.partial`).
    :param npt: the host uses nested paging.
    :param irqchip: the local APIC is in the kernel.
    :param maxphyaddr: the guest's physical address width in bits, if no CPUID is there.
    :param cpu: the CPU model of the destination, see :mod:`qemu_svm.x86.cpu_models`; None
        for one with the features that the saved registers show.
    :param race: fields of vmcb12 that L1 changes between check and use, see
        :mod:`qemu_svm.model.race`; adds a second VMRUN to the plan.
    :param backed: ``backing(machine)``, if the caller has it already.
    :raises PlanError: an unknown step, setting, field, CPU model or feature.
    """
    race = race or {}
    for name in race:
        if name not in RACED:
            near = difflib.get_close_matches(name, RACED, cutoff=0.5) or RACED
            raise PlanError(f"VMRUN reads no field '{name}'", near=tuple(near))
    steps = plans.parse(default_plan(vcpu) if plan is None else plan)
    check_plan(vcpu, steps)
    saved = from_vcpu(vcpu)
    if race and not any(step.name == "vmrun" for step in steps):
        steps += plans.parse("vmrun")
    cpuid = cpuid_of(vcpu) or guest_cpuid(saved, maxphyaddr)
    if cpu is not None:
        cpuid = cpu_models.parse(cpu, cpuid)
    host = Host(npt=npt, irqchip=irqchip, bsp=vcpu.index == 0, cpuid=cpuid)
    return Scenario(saved, steps, host, backed or backing(machine), race)
