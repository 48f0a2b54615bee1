"""The argument of the ioctl of each step, as values.

The model and a real KVM get the same arguments: both take them from here.  They come from the
saved vCPU, from the settings of the step, or are the bytes that a recorded step has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from qemu_svm.errors import PlanError
from qemu_svm.kvm import layouts
from qemu_svm.model.area import Area, Writer
from qemu_svm.model.plans import Step
from qemu_svm.model.saved import MSRS as SAVED_MSRS
from qemu_svm.model.saved import Saved
from qemu_svm.nested import NestedState, from_uapi, layout
from qemu_svm.x86.cpuid import FEATURES, Cpuid
from qemu_svm.x86.cpuid_entries import Entries, features, without_runtime
from qemu_svm.x86.msrs import NUMBERS
from qemu_svm.x86.segments import PARTS, Segment, from_kvm

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr", "gdtr", "idtr")
_L1_SREGS = ("es", "cs", "ss", "ds", "gdtr", "idtr", "cr0", "cr3", "cr4", "efer")
_L1_REGS = ("rip", "rsp", "rax", "rflags")
_ALIASES = {"gdt": "gdtr", "idt": "idtr", "ldt": "ldtr"}
_HIDDEN = ("base", "limit", "selector")
_PDPTRS_VALID = 1
_NMI_PENDING, _SHADOW, _SMM, _PAYLOAD, _TRIPLE_FAULT = 1, 4, 8, 0x10, 0x20
_CAPABLE = ("exc_pending", "exc_has_payload", "exc_payload", "triple_fault")
MSRS = (*SAVED_MSRS, "fs_base", "gs_base", "tsc", "tsc_aux", "tsc_ratio", "debugctl", "vm_cr")
"""MSRs that a plan can set."""


def cpuid(host: Cpuid, step: Step) -> Cpuid:
    """Return the CPUID that a ``cpuid`` step sets: the host's with its changes.

    :raises PlanError: an unknown feature.
    """
    if step.data is not None:
        head, size = layouts.CPUID2.size, layouts.CPUID_ENTRY.size
        return features(layouts.unpack_cpuid(_whole(step.data, head, size)))
    found = host.without("svm") if "nosvm" in step.flags else host
    for key, value in step.settings:
        if isinstance(value, int):
            found = Cpuid(found.features, value)
        elif value not in FEATURES:
            raise PlanError(f"unknown CPUID feature '{value}'", near=sorted(FEATURES))
        elif key == "no":
            found = found.without(value)
        else:
            found = Cpuid(found.features | {value}, found.maxphyaddr)
    return found


def cpuid_entries(step: Step) -> Entries | None:
    """Return the entries that a recorded ``cpuid`` step sets; None of another step."""
    if step.data is None:
        return None
    head, size = layouts.CPUID2.size, layouts.CPUID_ENTRY.size
    return without_runtime(layouts.unpack_cpuid(_whole(step.data, head, size)))


def sregs(saved: Saved, step: Step) -> Area:
    """Return the registers that ``sregs`` and ``sregs2`` set.

    :raises PlanError: a register or part of a segment that does not exist.
    """
    if step.data is not None:
        return _sregs(step)
    found = saved.sregs.copy()
    if "l1" in step.flags:
        found.copy_from(saved.l1(), _L1_SREGS)
    for key, value in step.settings:
        register, _, part = key.partition(".")
        register = _ALIASES.get(register, register)
        if part and register in _SEGMENTS:
            found.set(register, _changed(found.segment(register), part, value), Writer(0, "plan"))
        elif key in found or key in ("cr8", "apic_base") or key.startswith("pdptr"):
            found.set(key, int(value), Writer(0, "plan"))
        else:
            raise PlanError(f"'{step.name}' has no register '{key}'", near=tuple(found))
    return found


def msr_numbers(saved: Saved, step: Step) -> tuple[int, ...]:
    """Return the numbers of the MSRs that ``msrs`` sets, those without a name among them."""
    if step.data is not None:
        return tuple(number for number, _, _ in _msrs(step.data))
    return tuple(NUMBERS[name] for name in msrs(saved, step))


def _msrs(data: bytes) -> Iterator[tuple[int, str | None, int]]:
    names = {number: name for name, number in NUMBERS.items()}
    whole = _whole(data, layouts.MSRS.size, layouts.MSR_ENTRY.size)
    for entry in layouts.unpack_list(layouts.MSRS, "nmsrs", layouts.MSR_ENTRY, whole):
        yield entry["index"], names.get(entry["index"]), entry["data"]


def _whole(data: bytes, head: int, size: int) -> bytes:
    # A list with as many entries as are there.
    count = min(int.from_bytes(data[:4], "little"), max(len(data) - head, 0) // size)
    return count.to_bytes(4, "little") + bytes(4) + data[head:]


def _unpacked(of: layouts.Layout, data: bytes) -> dict[str, int]:
    return of.unpack(data[: of.size].ljust(of.size, b"\0"))


def _sregs(step: Step) -> Area:
    # The segments of a recorded put; one that is unusable is not present (svm_set_segment).
    data = step.data or b""
    second = step.name == "sregs2"
    values = _unpacked(layouts.SREGS2 if second else layouts.SREGS, data)
    writer, found = Writer(0, "recording"), Area("sregs")
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"):
        found.set(name, values[name], writer)
    for name in layouts.SEGMENTS:
        parts = {part: values[f"{name}.{part}"] for part in (*PARTS, *_HIDDEN)}
        parts["present"] &= int(not values[f"{name}.unusable"])
        found.set(_ALIASES.get(name, name), from_kvm(parts), writer)
    for name in layouts.TABLES:
        table = Segment(0, values[f"{name}.base"], values[f"{name}.limit"], 0)
        found.set(_ALIASES[name], table, writer)
    pdptrs: Any = values.get("pdptrs", ())
    if second and values["flags"] & _PDPTRS_VALID:
        for number, value in enumerate(pdptrs):
            found.set(f"pdptr{number}", value, writer)
    return found


def _changed(segment: Segment, part: str, value: int | str) -> Segment:
    number = int(value)
    if part in ("selector", "base", "limit", "attrib"):
        return replace(segment, **{part: number})
    if part not in PARTS:
        raise PlanError(f"a segment has no part '{part}'", near=tuple(PARTS))
    return segment.with_part(part, number)


def regs(saved: Saved, step: Step) -> dict[str, int]:
    """Return the registers that ``regs`` sets.

    :raises PlanError: a register that does not exist.
    """
    if step.data is not None:
        return _unpacked(layouts.REGS, step.data)
    found = dict(saved.regs)
    if "l1" in step.flags:
        l1 = saved.l1()
        found |= {name: l1.get(name) for name in _L1_REGS}
    for key, value in step.settings:
        if key not in found:
            raise PlanError(f"'regs' has no register '{key}'", near=tuple(found))
        found[key] = int(value)
    return found


def msrs(saved: Saved, step: Step) -> dict[str, int]:
    """Return the MSRs that ``msrs`` sets by name, in the order of the writes.

    :raises PlanError: an unknown MSR.
    """
    if step.data is not None:
        return {name: value for _, name, value in _msrs(step.data) if name is not None}
    for name, _value in step.settings:
        if name not in MSRS:
            raise PlanError(f"'msrs' has no MSR '{name}'", near=MSRS)
    return {key: int(value) for key, value in step.settings} or dict(saved.msrs)


def events(saved: Saved, step: Step) -> dict[str, int]:
    """Return the fields of ``events`` by the names that plans use.

    With ``caps`` the flags that need a capability of the VM are left out: a plan does not
    enable it, and without such an event these flags change nothing.
    """
    if step.data is not None:
        return _unpacked(layouts.VCPU_EVENTS, step.data)
    found = {"flags": _NMI_PENDING | _SHADOW | _SMM, "smm": saved.smm}
    found |= {key: int(value) for key, value in step.settings}
    if "caps" in step.flags and not any(found.get(name) for name in _CAPABLE):
        found["flags"] &= ~(_PAYLOAD | _TRIPLE_FAULT)
    return found


def debugregs(saved: Saved, step: Step) -> dict[str, int]:
    """Return the registers that ``debugregs`` sets."""
    if step.data is not None:
        return _unpacked(layouts.DEBUGREGS, step.data)
    return dict(saved.debugregs) | {key: int(value) for key, value in step.settings}


def mp_state(saved: Saved, step: Step) -> int:
    """Return the MP state that ``mpstate`` sets."""
    if step.data is not None:
        return int(_unpacked(layouts.MP_STATE, step.data)["mp_state"])
    return int(dict(step.settings).get("state", saved.mp_state))


def get_size(step: Step) -> int:
    """Return the size of the buffer that ``get`` passes."""
    return int(dict(step.settings).get("size", layout.NESTED_STATE_SIZE))


def nested(saved: Saved, step: Step) -> NestedState:
    """Return the argument of ``nested``: the saved nested state with the step's changes.

    :raises PlanError: an offset outside the VMCB.
    """
    if step.data is not None:
        whole = layout.UAPI_HEADER_SIZE + layout.VMCB_SIZE
        state = from_uapi(step.data[:whole].ljust(whole, b"\0"))
        # A size that has no VMCB is refused in guest mode, and KVM does not look for one else.
        return replace(state, vmcb=state.vmcb or bytes(layout.VMCB_SIZE))
    if not step.settings:
        return saved.nested
    header = {key: int(value) for key, value in step.settings if not key.startswith("@")}
    vmcb = bytearray(saved.nested.vmcb)
    for key, value in step.settings:
        if key.startswith("@"):
            _damage(vmcb, key[1:], int(value))
    changes: dict[str, Any] = header | {"vmcb": bytes(vmcb)}
    return replace(saved.nested, **changes)


def _damage(vmcb: bytearray, place: str, value: int) -> None:
    offset_text, _, size_text = place.partition("/")
    try:
        offset, size = int(offset_text, 0), int(size_text or "8", 0)
    except ValueError:
        raise PlanError(f"'@{place}' is not an offset such as @0x550 or @0x5c/1") from None
    if size not in (1, 2, 4, 8) or not 0 <= offset <= layout.VMCB_SIZE - size:
        raise PlanError(f"'@{place}' is outside the VMCB, or its size is not 1, 2, 4 or 8")
    vmcb[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
