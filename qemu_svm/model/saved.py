"""What a saved vCPU offers to a restore: L2's registers and L1's.

The vCPU's registers are L2's; L1's come out of the blob's save area.  Both are
brought into the form in which the ioctls take them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from construct import Container

from qemu_svm.machine import Vcpu
from qemu_svm.model.area import RESET, Area, Writer
from qemu_svm.nested import NestedState, bits, layout
from qemu_svm.x86.cpuid import Cpuid, infer
from qemu_svm.x86.segments import Segment

_L1_SEGMENTS = ("es", "cs", "ss", "ds", "gdtr", "idtr")
_SEGMENT_NAMES = {"ldt": "ldtr", "gdt": "gdtr", "idt": "idtr"}
_SREGS = ("cr0", "cr2", "cr3", "cr4", "efer")
_REGS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "rflags"),
)
MSRS = (
    *("efer", "star", "lstar", "cstar", "sfmask", "kernel_gs_base", "sysenter_cs"),
    *("sysenter_esp", "sysenter_eip", "pat", "vm_hsave_pa"),
)
_DEBUG = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")


@dataclass(frozen=True, slots=True)
class Blob:
    """The argument of KVM_SET_NESTED_STATE, in parts.  ``vmcb`` is the 4096 bytes."""

    flags: int
    format: int
    size: int
    vmcb_pa: int
    vmcb: bytes
    gpat: int = 0


@dataclass(frozen=True, slots=True)
class Saved:
    """Everything that the steps of a plan take their values from."""

    sregs: Area
    regs: Mapping[str, int]
    msrs: Mapping[str, int]
    debugregs: Mapping[str, int]
    blob: Blob
    smm: int = 0
    mp_state: int = 0

    @property
    def guest_mode(self) -> bool:
        """Whether the vCPU was saved while it ran L2."""
        return bool(self.blob.flags & bits.GUEST_MODE)

    def l1(self) -> Area:
        """L1's registers out of the blob (fields that are L1's on every kernel)."""
        _, save = areas(self.blob.vmcb, RESET)
        return save


def guest_cpuid(saved: Saved, maxphyaddr: int = 40) -> Cpuid:
    """CPUID that the saved vCPU must have had, as far as its registers tell."""
    l1 = saved.l1()
    # EFER of L1 is under test, so L2's alone counts.
    return infer(saved.sregs.get("cr4"), l1.get("cr4"), saved.sregs.get("efer"), maxphyaddr)


def from_vcpu(vcpu: Vcpu) -> Saved:
    """Take a vCPU out of a stream.

    Like QEMU, take GUEST_MODE and GIF_SET from hflags and hflags2, the other
    flags from the stream (``kvm_put_nested_state``).
    """
    sregs = Area("sregs")
    for name in _SREGS:
        sregs.set(name, vcpu.get(name), RESET)
    for name, segment in vcpu.segments.items():
        sregs.set(_SEGMENT_NAMES.get(name, name), segment, RESET)
    return Saved(
        sregs=sregs,
        regs={name: vcpu.get(name) for name in _REGS},
        msrs={name: vcpu.get(name) for name in MSRS},
        debugregs={name: vcpu.get(name) for name in _DEBUG},
        blob=_blob(vcpu),
        smm=int(vcpu.smm),
        mp_state=vcpu.get("mp_state"),
    )


def _blob(vcpu: Vcpu) -> Blob:
    nested = vcpu.nested or NestedState(0, layout.FORMAT_SVM, layout.UAPI_HEADER_SIZE)
    flags = nested.flags & ~(bits.GUEST_MODE | bits.GIF_SET)
    flags |= bits.GUEST_MODE if vcpu.guest_mode else 0
    flags |= bits.GIF_SET if vcpu.gif else 0
    vmcb = nested.vmcb or bytes(layout.VMCB_SIZE)
    return Blob(flags, nested.format, nested.size, nested.vmcb_pa, vmcb)


def areas(vmcb: bytes, writer: Writer) -> tuple[Area, Area]:
    """Control and save area of a VMCB page."""
    control = Area("vmcb12 control")
    parsed: Container[Any] = layout.CONTROL.layout.parse(vmcb[: layout.CONTROL_SIZE])
    for member in layout.CONTROL.members:
        value = parsed[member.name]
        if member.name == "intercepts":
            control.set("intercepts", bits.intercept_words(list(value)), writer)
        elif isinstance(value, int):
            control.set(member.name, value, writer)
    save = Area("vmcb12 save")
    parsed = layout.SAVE.layout.parse(vmcb[layout.SAVE_OFFSET :])
    for member in layout.SAVE.members:
        value = parsed[member.name]
        if isinstance(value, int):
            save.set(member.name, value, writer)
        elif member.name in layout.SEGMENTS:
            segment = Segment(value.selector, value.base, value.limit, value.attrib)
            if member.name in ("gdtr", "idtr"):
                segment = Segment(0, value.base, value.limit, 0)
            save.set(member.name, segment, writer)
    return control, save
