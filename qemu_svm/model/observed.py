"""The model's state by the names used for what a real KVM returns.

KVM returns five structures for a vCPU (KVM_GET_NESTED_STATE, SREGS, REGS, DEBUGREGS,
VCPU_EVENTS) and the MSRs that are requested.  A state here is flat: ``nested.flags``,
``ctl.asid`` (the blob's control area), ``l1.cr3`` (L1's fields of its save area),
``shared.star`` (the fields that L1 and L2 share, or nobody uses), ``sregs.cr3``,
``regs.rip``, ``msr.star``, ``smm``, ``shadow``.  A segment is
``[selector, base, limit, attrib]``, a descriptor table ``[base, limit]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from qemu_svm.model.area import Area
from qemu_svm.nested import NestedState
from qemu_svm.nested.groups import VMLOAD_MSRS, VMLOAD_SEGMENTS
from qemu_svm.x86.segments import Segment

Observed = dict[str, Any]

L1_SEGMENTS = ("es", "cs", "ss", "ds")
L1_REGISTERS = ("efer", "cr4", "cr3", "cr0", "rflags", "rip", "rsp", "rax", "cpl")
CONTROL_REGISTERS = ("cr0", "cr2", "cr3", "cr4", "efer")
TABLES = ("gdtr", "idtr")
SHARED_REGISTERS = (*VMLOAD_MSRS, "cr2", "dr6", "dr7", "g_pat")
"""Numbers in the blob's save area that are not L1's own."""
ARCH_MSRS = ("pat", "vm_hsave_pa", "vm_cr")
_DB = 0x400
_BUSY = 2
_ATTRIB = 0x7FE  # GET_SREGS makes up G, and KVM sets the accessed bit
_BLOB_ATTRIB = 0xFFF


class State(Protocol):
    """What the ioctls' answers are made from.

    A :class:`~qemu_svm.model.simulate.Snapshot`, or what stands in a kernel's memory.
    """

    @property
    def areas(self) -> Mapping[str, Area]:
        """``arch``, ``vmcb01``, ``vmcb02`` or ``hsave``, ``ctl_cache``."""
        ...

    @property
    def nested(self) -> NestedState:
        """The header that KVM_GET_NESTED_STATE returns."""
        ...

    @property
    def guest_mode(self) -> bool:
        """Whether L2 runs."""
        ...

    @property
    def smm(self) -> bool:
        """System management mode."""
        ...

    @property
    def shadow(self) -> int:
        """The interrupt shadow in force."""
        ...


def flat(state: State, *, split: bool) -> Observed:
    """Return what the ioctls answer.

    :param split: as in the kernel's profile.
    """
    arch, vmcb01 = state.areas["arch"], state.areas["vmcb01"]
    current = state.areas["vmcb02"] if split and state.guest_mode else vmcb01
    header = state.nested
    found: Observed = {
        "nested.flags": header.flags,
        "nested.size": header.size,
        "nested.vmcb_pa": header.vmcb_pa,
    }
    if state.guest_mode:
        control = state.areas["ctl_cache"]
        found |= {f"ctl.{name}": control.get(name) for name in control}
        l1 = vmcb01 if split else state.areas["hsave"]
        for name in L1_SEGMENTS:
            found[f"l1.{name}"] = _segment(l1.segment(name), _BLOB_ATTRIB)
        for name in TABLES:
            found[f"l1.{name}"] = [l1.segment(name).base, l1.segment(name).limit]
        for name in L1_REGISTERS:
            found[f"l1.{name}"] = l1.get(name)
        for name in VMLOAD_SEGMENTS:
            found[f"shared.{name}"] = _segment(l1.segment(name), _BLOB_ATTRIB)
        found |= {f"shared.{name}": l1.get(name) for name in SHARED_REGISTERS}
    for name in CONTROL_REGISTERS:
        found[f"sregs.{name}"] = arch.get(name)
    for name in L1_SEGMENTS:
        found[f"sregs.{name}"] = _segment(current.segment(name), _ATTRIB)
    if not current.segment("ss").present:
        found["sregs.ss"][3] &= ~_DB  # svm_get_segment clears it
    for name in VMLOAD_SEGMENTS:
        found[f"sregs.{name}"] = _segment(vmcb01.segment(name), _ATTRIB)
    found["sregs.tr"][3] |= _BUSY  # svm_get_segment sets it
    for name in TABLES:
        table = current.segment(name)
        found[f"sregs.{name}"] = [table.base, table.limit & 0xFFFF]
    for name in arch:
        if name not in (*CONTROL_REGISTERS, *ARCH_MSRS, "cr8", "apic_base"):
            found[f"regs.{name}"] = arch.get(name)
    found["regs.rflags"] = current.get("rflags")
    found |= {f"msr.{name}": vmcb01.get(name) for name in VMLOAD_MSRS}
    found |= {f"msr.{name}": arch.get(name) for name in ARCH_MSRS}
    found["smm"] = int(state.smm)
    found["shadow"] = state.shadow
    return found


def _segment(segment: Segment, mask: int) -> list[int]:
    return [segment.selector, segment.base, segment.limit, segment.attrib & mask]


def comparable(name: str, value: Any) -> Any:
    """Return a value of KVM without the bits that KVM makes up on GET."""
    if isinstance(value, list) and len(value) == 4:
        in_blob = name.startswith(("l1.", "shared."))
        return [*value[:3], value[3] & (_BLOB_ATTRIB if in_blob else _ATTRIB)]
    return value


def differences(model: Observed, kernel: Observed) -> list[str]:
    """Return the names whose values differ between kernel and model."""
    wrong = []
    for name, value in kernel.items():
        # A control field that this kernel does not cache comes back as zero.
        ours = model.get(name, 0 if name.startswith("ctl.") else None)
        if ours != comparable(name, value):
            wrong.append(name)
    return wrong
