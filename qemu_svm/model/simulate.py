"""A plan run through the model of one kernel, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qemu_svm.model import arguments
from qemu_svm.model.area import Area, Content
from qemu_svm.model.kvm import nested, smm, x86
from qemu_svm.model.kvm.checks import Argument, errno_of
from qemu_svm.model.kvm.run import GuestCode, Outcome, vcpu_run
from qemu_svm.model.kvm.vcpu import Host, KvmVcpu, Mmu, MmuFault
from qemu_svm.model.plans import WITHOUT_EFFECT, Step
from qemu_svm.model.profile import Profile
from qemu_svm.model.recorded import RAN
from qemu_svm.model.saved import Saved, areas
from qemu_svm.nested import NestedState
from qemu_svm.x86.segments import TABLES, Segment


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state after a step.

    :param controls: control areas of the VMCBs, as far as they are modelled.
    :param nested: the header that KVM_GET_NESTED_STATE returns.
    :param shadow: the interrupt shadow in force.
    :param initialized, vmcb12_gpa, last_vmcb12_gpa: of ``svm->nested``.
    :param dead: KVM has killed the VM.
    """

    areas: Mapping[str, Area]
    controls: Mapping[str, Area]
    nested: NestedState
    guest_mode: bool
    gif: bool
    smm: bool
    run_pending: int
    mmu: Mmu
    mmu_broken: MmuFault | None
    requests: tuple[str, ...]
    save_cache_valid: bool
    shadow: int
    initialized: bool
    vmcb12_gpa: int
    last_vmcb12_gpa: int
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """One step and its result.

    :param number: of the step in the plan, from 1.
    :param failed: id of the check that failed; None if the ioctl succeeded.
    :param errno: name of the error, or None.
    :param outcome: of ``run``.
    :param unchecked: of ``vmrun``: what L2 was given without a check, because L1 changed it.
    """

    number: int
    step: Step
    failed: str | None
    errno: str | None
    notes: tuple[str, ...]
    state: Snapshot
    outcome: Outcome | None = None
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Simulation:
    """A plan that was run to its end.  ``start`` is the state of the fresh vCPU."""

    kernel: Profile
    saved: Saved
    start: Snapshot
    results: tuple[Result, ...]


def simulate(
    kernel: Profile,
    saved: Saved,
    plan: tuple[Step, ...],
    *,
    host: Host | None = None,
    backed: Callable[[int, int], bool] | None = None,
    race: Mapping[str, int] | None = None,
    code: Mapping[int, GuestCode] | None = None,
) -> Simulation:
    """Run ``plan`` with the values of ``saved`` on a fresh vCPU.

    :param backed: whether guest memory exists at (address, size).
    :param race: fields of vmcb12 that change in memory during ``vmrun``.
    :param code: what L2 does in a ``run``, by the number of the step; it exits to L1 otherwise.
    :raises PlanError: an invalid step, such as one with an unknown register.
    """
    vcpu = KvmVcpu(kernel, host or Host())
    if backed is not None:
        vcpu.backed = backed
    start = snapshot(vcpu)
    results = []
    for number, step in enumerate(plan, 1):
        vcpu.step = number
        vcpu.notes.clear()
        vcpu.unchecked.clear()
        does = (code or {}).get(number, GuestCode.EXITS)
        failed, outcome = _perform(vcpu, saved, step, dict(race or {}), does)
        results.append(
            Result(
                number,
                step,
                failed,
                None if failed is None else errno_of(failed),
                tuple(vcpu.notes),
                snapshot(vcpu),
                outcome,
                tuple(vcpu.unchecked),
            )
        )
    return Simulation(kernel, saved, start, tuple(results))


def snapshot(vcpu: KvmVcpu) -> Snapshot:
    """Copy everything that later steps may change."""
    return Snapshot(
        areas={name: area.copy() for name, area in vcpu.areas().items()},
        controls={name: area.copy() for name, area in vcpu.controls().items()},
        nested=nested.svm_get_nested_state(vcpu),
        guest_mode=vcpu.guest_mode,
        gif=vcpu.gif,
        smm=vcpu.smm,
        run_pending=vcpu.nested.run_pending,
        mmu=vcpu.mmu,
        mmu_broken=vcpu.mmu_broken,
        requests=tuple(sorted(vcpu.requests)),
        save_cache_valid=vcpu.nested.save_valid,
        shadow=vcpu.current_control.get("int_state") & 1,
        dead=vcpu.dead,
        initialized=vcpu.nested.initialized,
        vmcb12_gpa=vcpu.nested.vmcb12_gpa,
        last_vmcb12_gpa=vcpu.nested.last_vmcb12_gpa,
    )


def _perform(
    vcpu: KvmVcpu, saved: Saved, step: Step, race: dict[str, int], does: GuestCode
) -> tuple[str | None, Outcome | None]:
    if step.name in WITHOUT_EFFECT:
        return None, None
    if step.name == "run":
        return None, vcpu_run(vcpu, does)
    if vcpu.dead and step.name in _IOCTLS:
        return "U-06", None
    if step.name == "vmrun":
        return _vmrun(vcpu, race)
    if step.name in ("smi", "rsm"):
        why = smm.svm_enter_smm(vcpu) if step.name == "smi" else smm.svm_leave_smm(vcpu)
        if why:
            vcpu.note(why)
        return None, None
    return _IOCTLS[step.name](vcpu, saved, step), None


def _vmrun(vcpu: KvmVcpu, race: dict[str, int]) -> tuple[str | None, Outcome | None]:
    if vcpu.guest_mode or "rip" not in vcpu.vmcb12:
        vcpu.note("L1 does not have control here: add 'run' before 'vmrun'")
        return None, None
    why = nested.nested_svm_vmrun(vcpu, race)
    if why:
        vcpu.note(why)
    return None, None


def _cpuid(vcpu: KvmVcpu, _saved: Saved, step: Step) -> str | None:
    cpuid = arguments.cpuid(vcpu.host.cpuid, step)
    failed = x86.kvm_set_cpuid(vcpu, cpuid, arguments.cpuid_entries(step))
    vcpu.has_run = vcpu.has_run or (RAN, 1) in step.settings
    return failed


def _sregs(vcpu: KvmVcpu, saved: Saved, step: Step) -> str | None:
    return x86.set_sregs(vcpu, arguments.sregs(saved, step), second=step.name == "sregs2")


def _regs(vcpu: KvmVcpu, saved: Saved, step: Step) -> str | None:
    x86.set_regs(vcpu, arguments.regs(saved, step))
    return None


def _msrs(vcpu: KvmVcpu, saved: Saved, step: Step) -> str | None:
    for name, value in arguments.msrs(saved, step).items():
        failed = x86.set_msr(vcpu, name, value)
        if failed is not None:
            return failed
    return None


def _events(vcpu: KvmVcpu, saved: Saved, step: Step) -> str | None:
    return x86.set_vcpu_events(vcpu, arguments.events(saved, step))


def _debugregs(vcpu: KvmVcpu, saved: Saved, step: Step) -> str | None:
    return x86.set_debugregs(vcpu, arguments.debugregs(saved, step))


def _mpstate(vcpu: KvmVcpu, saved: Saved, step: Step) -> str | None:
    return x86.set_mp_state(vcpu, arguments.mp_state(saved, step))


def argument(saved: Saved, step: Step, vcpu: KvmVcpu) -> Argument:
    """Build the argument of KVM_SET_NESTED_STATE for a step."""
    state = arguments.nested(saved, step)
    control, save = areas(state.vmcb, vcpu.writer("KVM_SET_NESTED_STATE"))
    return Argument(state, nested.nested_copy_vmcb_control_to_cache(vcpu, control), save)


def _nested(vcpu: KvmVcpu, saved: Saved, step: Step) -> str | None:
    made = argument(saved, step, vcpu)
    failed = nested.svm_set_nested_state(vcpu, made)
    if failed is None and made.guest_mode:
        vcpu.vmcb12.set("address", made.nested.vmcb_pa, vcpu.writer("KVM_SET_NESTED_STATE"))
    return failed


def _get(vcpu: KvmVcpu, _saved: Saved, step: Step) -> str | None:
    return nested.kvm_get_nested_state(vcpu, arguments.get_size(step))


_IOCTLS: dict[str, Callable[[KvmVcpu, Saved, Step], str | None]] = {
    "cpuid": _cpuid,
    "sregs": _sregs,
    "sregs2": _sregs,
    "nested": _nested,
    "get": _get,
    "regs": _regs,
    "msrs": _msrs,
    "events": _events,
    "debugregs": _debugregs,
    "mpstate": _mpstate,
}


def content_text(value: Content, name: str = "") -> str:
    """Return the content of a register as text.

    :param name: of the register; a descriptor table has only base and limit.
    """
    if isinstance(value, Segment) and name in TABLES:
        return f"base {value.base:#x} limit {value.limit:#x}"
    if isinstance(value, Segment):
        return (
            f"{value.selector:#x} base {value.base:#x} limit {value.limit:#x} "
            f"attrib {value.attrib:#x}"
        )
    return f"{value:#x}"
