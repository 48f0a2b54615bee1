"""Plans for a vCPU of which an input has some structures only.

A stream has everything that QEMU puts; a raw nested state has L1's registers and nothing of
L2's, another VMM's snapshot may have no nested state.  A step whose values are not there
cannot be planned, and a run cannot be judged without L2's registers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from qemu_svm.errors import PlanError
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.model.plans import NAMED, Step

_SREGS = ("SREGS", "SREGS2")
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sregs": _SREGS,
        "sregs2": _SREGS,
        "nested": ("NESTED_STATE",),
        "regs": ("REGS",),
        "msrs": ("MSRS",),
        "debugregs": ("DEBUGREGS",),
    }
)
"""Steps that take saved values, and the structures that have them."""
OPTIONS = MappingProxyType(
    {
        "SREGS": "--sregs",
        "NESTED_STATE": "--nested",
        "REGS": "--regs",
        "MSRS": "--msrs",
        "DEBUGREGS": "--debugregs",
    }
)
"""The option that gives a structure."""
_ORDER = ("sregs", "nested", "regs", "msrs", "debugregs")


def missing(vcpu: Vcpu) -> tuple[str, ...]:
    """Return the structures that a restore takes and an input lacks; empty for a stream."""
    return tuple(PARTS[step][0] for step in _ORDER if not vcpu.has(*PARTS[step]))


def no_vmcb(vcpu: Vcpu) -> bool:
    """Whether a vCPU was in guest mode and the VMCB of its nested state is not there."""
    nested = vcpu.nested
    return nested is not None and nested.is_svm and nested.guest_mode and not nested.vmcb


def can_run(vcpu: Vcpu) -> bool:
    """Whether the registers are there with which the vCPU is to run."""
    return vcpu.has("REGS") and vcpu.has(*_SREGS)


def default_plan(machine: Machine, vcpu: Vcpu) -> str:
    """Return the plan of the VMM whose state it is, as far as a vCPU has values for it.

    For a snapshot of Cloud Hypervisor with nested state that is its own, else QEMU's.  Without
    SREGS, those of L1 are taken from the nested state.
    """
    if vcpu.parts is None:
        return "qemu"
    if machine.form in NAMED and can_run(vcpu) and vcpu.has("NESTED_STATE"):
        return machine.form or ""
    steps = ["cpuid"]
    for step in _ORDER:
        if vcpu.has(*PARTS[step]):
            steps.append(step)
        elif step == "sregs" and _blob(vcpu):
            steps.append("sregs:l1")
    if vcpu.has("VCPU_EVENTS"):
        steps.append("events:flags=0x9")
    if vcpu.has("MP_STATE"):
        steps.append("mpstate")
    return ",".join([*steps, *(["run"] if can_run(vcpu) else [])])


def check_plan(machine: Machine, vcpu: Vcpu, steps: Sequence[Step]) -> None:
    """Check that a vCPU has the values that steps take.

    :raises PlanError: one is not there; the message names the option that gives it.
    """
    if vcpu.parts is None:
        return
    for step in steps:
        if step.name == "run" and not can_run(vcpu):
            lacking = [name for name in missing(vcpu) if name in ("SREGS", "REGS")]
            raise PlanError(
                f"'run' cannot be judged: {_words(lacking)}", near=(default_plan(machine, vcpu),)
            )
        names = PARTS.get(step.name)
        if step.data is not None:
            continue
        if names is None or vcpu.has(*names) or (step.name == "msrs" and step.settings):
            continue
        if step.flags and _blob(vcpu):
            continue
        raise PlanError(f"'{step.name}' has no values: {_words(names[:1])}",
                        near=(default_plan(machine, vcpu),))  # fmt: skip


def _words(names: Sequence[str]) -> str:
    options = ", ".join(f"{OPTIONS[name]} FILE" for name in names)
    return f"the input has no {' and no '.join(names)} ({options} gives it)"


def _blob(vcpu: Vcpu) -> bool:
    return vcpu.nested is not None and bool(vcpu.nested.vmcb)
