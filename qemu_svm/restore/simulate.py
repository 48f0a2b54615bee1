"""A plan run through the model of one kernel, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qemu_svm.errors import PlanError
from qemu_svm.nested import layout
from qemu_svm.restore import nested, smm, x86
from qemu_svm.restore.area import Area, Content, Writer
from qemu_svm.restore.checks import Argument
from qemu_svm.restore.cpuid import FEATURES, Cpuid
from qemu_svm.restore.kernels import Kernel
from qemu_svm.restore.plan import WITHOUT_EFFECT, Step
from qemu_svm.restore.run import Outcome, vcpu_run
from qemu_svm.restore.saved import Saved, areas
from qemu_svm.restore.vcpu import Host, Vcpu
from qemu_svm.x86.segments import Segment

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr", "gdtr", "idtr")
_L1_SREGS = ("es", "cs", "ss", "ds", "gdtr", "idtr", "cr0", "cr3", "cr4", "efer")
_L1_REGS = ("rip", "rsp", "rax", "rflags")
_ALIASES = {"gdt": "gdtr", "idt": "idtr", "ldt": "ldtr"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state after a step; ``shadow`` is the interrupt shadow in force."""

    areas: Mapping[str, Area]
    nested: Mapping[str, int]
    guest_mode: bool
    gif: bool
    smm: bool
    run_pending: int
    mmu: str
    mmu_broken: str
    requests: tuple[str, ...]
    save_cache_valid: bool
    shadow: int


@dataclass(frozen=True, slots=True)
class Result:
    """One step and what it did.

    :param number: of the step in the plan, from 1.
    :param failed: id of the check that failed; None if the ioctl succeeded.
    :param errno: name of the error, or None.
    :param outcome: of ``run``.
    """

    number: int
    step: Step
    failed: str | None
    errno: str | None
    notes: tuple[str, ...]
    state: Snapshot
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Simulation:
    """A finished run.  ``start`` is the state of the fresh vCPU."""

    kernel: Kernel
    saved: Saved
    start: Snapshot
    results: tuple[Result, ...]


def simulate(
    kernel: Kernel,
    saved: Saved,
    plan: tuple[Step, ...],
    *,
    host: Host | None = None,
    backed: Callable[[int, int], bool] | None = None,
    race: Mapping[str, int] | None = None,
) -> Simulation:
    """Run ``plan`` with the values of ``saved`` on a fresh vCPU.

    :param backed: tells whether guest memory exists at (address, size).
    :param race: save fields that change in memory during ``vmrun``.
    :raises PlanError: a step that makes no sense, such as an unknown register.
    """
    vcpu = Vcpu(kernel, host or Host())
    if backed is not None:
        vcpu.backed = backed
    start = snapshot(vcpu)
    results = []
    for number, step in enumerate(plan, 1):
        vcpu.step = number
        vcpu.notes.clear()
        failed, outcome = _perform(vcpu, saved, step, dict(race or {}))
        results.append(
            Result(
                number,
                step,
                failed,
                _errno(failed),
                tuple(vcpu.notes),
                snapshot(vcpu),
                outcome,
            )
        )
    return Simulation(kernel, saved, start, tuple(results))


def snapshot(vcpu: Vcpu) -> Snapshot:
    """Copy everything that later steps may change."""
    return Snapshot(
        areas={name: area.copy() for name, area in vcpu.areas().items()},
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
    )


def _errno(failed: str | None) -> str | None:
    if failed is None:
        return None
    return "E2BIG" if failed.startswith("GET-") else "EINVAL"


def _perform(
    vcpu: Vcpu, saved: Saved, step: Step, race: dict[str, int]
) -> tuple[str | None, Outcome | None]:
    if step.name in WITHOUT_EFFECT:
        return None, None
    if step.name == "run":
        return None, vcpu_run(vcpu)
    if step.name == "vmrun":
        return _vmrun(vcpu, race)
    if step.name in ("smi", "rsm"):
        why = smm.svm_enter_smm(vcpu) if step.name == "smi" else smm.svm_leave_smm(vcpu)
        if why:
            vcpu.note(why)
        return None, None
    return _IOCTLS[step.name](vcpu, saved, step), None


def _vmrun(vcpu: Vcpu, race: dict[str, int]) -> tuple[str | None, Outcome | None]:
    if vcpu.guest_mode or "rip" not in vcpu.vmcb12:
        vcpu.note("L1 does not have control here: put 'run' before 'vmrun'")
        return None, None
    why = nested.nested_svm_vmrun(vcpu, race)
    if why:
        vcpu.note(why)
    return None, None


def _cpuid(vcpu: Vcpu, _saved: Saved, step: Step) -> str | None:
    cpuid = vcpu.host.cpuid
    if "nosvm" in step.flags:
        cpuid = cpuid.without("svm")
    for key, value in step.settings:
        if isinstance(value, int):
            cpuid = Cpuid(cpuid.features, value)
        elif value not in FEATURES:
            raise PlanError(f"'{value}' is no CPUID feature known here", near=sorted(FEATURES))
        elif key == "no":
            cpuid = cpuid.without(value)
        else:
            cpuid = Cpuid(cpuid.features | {value}, cpuid.maxphyaddr)
    return x86.kvm_set_cpuid(vcpu, cpuid)


def _sregs(vcpu: Vcpu, saved: Saved, step: Step) -> str | None:
    sregs = saved.sregs.copy()
    if "l1" in step.flags:
        sregs.copy_from(saved.l1(), _L1_SREGS)
    for key, value in step.settings:
        register, _, part = key.partition(".")
        register = _ALIASES.get(register, register)
        if part and register in _SEGMENTS:
            sregs.set(register, _changed(sregs.segment(register), part, value), Writer(0, "plan"))
        elif key in sregs or key in ("cr8", "apic_base") or key.startswith("pdptr"):
            sregs.set(key, int(value), Writer(0, "plan"))
        else:
            raise PlanError(f"'{step.name}' has no register '{key}'", near=tuple(sregs))
    return x86.set_sregs(vcpu, sregs, second=step.name == "sregs2")


_PARTS = {"type": (0, 0xF), "s": (4, 1), "dpl": (5, 3), "present": (7, 1), "avl": (8, 1)} | {
    "l": (9, 1),
    "db": (10, 1),
    "g": (11, 1),
}


def _changed(segment: Segment, part: str, value: int | str) -> Segment:
    number = int(value)
    if part in ("selector", "base", "limit", "attrib"):
        return replace(segment, **{part: number})
    if part not in _PARTS:
        raise PlanError(f"a segment has no part '{part}'", near=tuple(_PARTS))
    shift, mask = _PARTS[part]
    attrib = segment.attrib & ~(mask << shift) | (number & mask) << shift
    return replace(segment, attrib=attrib)


def _regs(vcpu: Vcpu, saved: Saved, step: Step) -> str | None:
    regs = dict(saved.regs)
    if "l1" in step.flags:
        l1 = saved.l1()
        regs |= {name: l1.get(name) for name in _L1_REGS}
    for key, value in step.settings:
        if key not in regs:
            raise PlanError(f"'regs' has no register '{key}'", near=tuple(regs))
        regs[key] = int(value)
    x86.set_regs(vcpu, regs)
    return None


def _msrs(vcpu: Vcpu, saved: Saved, step: Step) -> str | None:
    msrs = {key: int(value) for key, value in step.settings} or dict(saved.msrs)
    for name, value in msrs.items():
        failed = x86.set_msr(vcpu, name, value)
        if failed is not None:
            return failed
    return None


def _events(vcpu: Vcpu, saved: Saved, step: Step) -> str | None:
    events = {"smm": saved.smm} | {key: int(value) for key, value in step.settings}
    return x86.set_vcpu_events(vcpu, events)


def _debugregs(vcpu: Vcpu, saved: Saved, step: Step) -> str | None:
    values = dict(saved.debugregs) | {key: int(value) for key, value in step.settings}
    return x86.set_debugregs(vcpu, values)


def _mpstate(vcpu: Vcpu, saved: Saved, step: Step) -> str | None:
    values = dict(step.settings)
    return x86.set_mp_state(vcpu, int(values.get("state", saved.mp_state)))


def argument(saved: Saved, step: Step, vcpu: Vcpu) -> Argument:
    """Build the argument of KVM_SET_NESTED_STATE for a step."""
    blob = saved.blob
    header = {
        "flags": blob.flags,
        "format": blob.format,
        "size": blob.size,
        "vmcb_pa": blob.vmcb_pa,
        "gpat": blob.gpat,
    }
    vmcb = bytearray(blob.vmcb)
    for key, value in step.settings:
        if key.startswith("@"):
            _damage(vmcb, key[1:], int(value))
        else:
            header[key] = int(value)
    control, save = areas(bytes(vmcb), vcpu.writer("KVM_SET_NESTED_STATE"))
    return Argument(
        flags=header["flags"],
        format=header["format"],
        size=header["size"],
        vmcb_pa=header["vmcb_pa"],
        gpat=header["gpat"],
        ctl=nested.nested_copy_vmcb_control_to_cache(vcpu, control),
        save=save,
    )


def _damage(vmcb: bytearray, place: str, value: int) -> None:
    offset_text, _, size_text = place.partition("/")
    try:
        offset, size = int(offset_text, 0), int(size_text or "8", 0)
    except ValueError:
        raise PlanError(f"'@{place}' is not an offset such as @0x550 or @0x5c/1") from None
    if size not in (1, 2, 4, 8) or not 0 <= offset <= layout.VMCB_SIZE - size:
        raise PlanError(f"'@{place}' is outside the VMCB, or its size is not 1, 2, 4 or 8")
    vmcb[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def _nested(vcpu: Vcpu, saved: Saved, step: Step) -> str | None:
    made = argument(saved, step, vcpu)
    failed = nested.svm_set_nested_state(vcpu, made)
    if failed is None and made.guest_mode:
        vcpu.vmcb12.set("address", made.vmcb_pa, vcpu.writer("KVM_SET_NESTED_STATE"))
    return failed


def _get(vcpu: Vcpu, _saved: Saved, step: Step) -> str | None:
    values = dict(step.settings)
    return nested.kvm_get_nested_state(vcpu, int(values.get("size", layout.VMCB_SIZE + 128)))


_IOCTLS: dict[str, Callable[[Vcpu, Saved, Step], str | None]] = {
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


def content_text(value: Content) -> str:
    """A register's content in one word or a few."""
    if isinstance(value, Segment):
        return (
            f"{value.selector:#x} base {value.base:#x} limit {value.limit:#x} "
            f"attrib {value.attrib:#x}"
        )
    return f"{value:#x}"
