"""The registers of a saved vCPU in the form of the ioctls' arguments.

The vCPU's registers are L2's; L1's are in the save area of the nested state.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from qemu_svm.errors import PlanError
from qemu_svm.machine import Vcpu
from qemu_svm.model.area import RESET, Area, Content, Writer
from qemu_svm.nested import NestedState, bits, layout, vmcb_fields
from qemu_svm.x86.segments import Segment

if TYPE_CHECKING:
    from qemu_svm.x86.cpuid import Cpuid

WIDTHS = range(32, 53)
"""Widths of physical addresses that QEMU gives a guest (``target/i386/cpu.c``, 10.0:
``x86_cpu_realizefn``, phys-bits)."""

_TABLES = ("gdtr", "idtr")
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
class Saved:
    """The values that the steps of a plan restore."""

    sregs: Area
    regs: Mapping[str, int]
    msrs: Mapping[str, int]
    debugregs: Mapping[str, int]
    nested: NestedState
    smm: int = 0
    mp_state: int = 0

    @property
    def guest_mode(self) -> bool:
        """Whether the vCPU was saved while it ran L2."""
        return self.nested.guest_mode

    @property
    def values(self) -> Hashable:
        """All of it, to be compared: two vCPUs with equal values are restored alike."""
        return (
            tuple(self.sregs.items()),
            *(tuple(each.items()) for each in (self.regs, self.msrs, self.debugregs)),
            replace(self.nested, offset=-1, vmcb_offset=-1, vmcb_pa_offset=-1),
            self.smm,
            self.mp_state,
        )

    def control(self) -> Area:
        """Return what L1 asked for L2: the control area of the nested state."""
        return areas(self.nested.vmcb)[0]

    def l1(self) -> Area:
        """Return L1's registers: the save area of the nested state."""
        return areas(self.nested.vmcb)[1]


def guest_cpuid(saved: Saved, maxphyaddr: int = 40) -> Cpuid:
    """Return the CPUID that the saved vCPU must have had, as far as its registers show.

    :raises PlanError: ``maxphyaddr`` is not a width that a processor can have.
    """
    if maxphyaddr not in WIDTHS:
        raise PlanError(
            f"no guest has physical addresses of {str(maxphyaddr)[:20]} bits; "
            f"{WIDTHS.start} to {WIDTHS.stop - 1} are possible"
        )
    l1 = saved.l1()
    # EFER of L1 is under test, so L2's alone counts.
    from qemu_svm.x86.cpuid import infer

    return infer(saved.sregs.get("cr4"), l1.get("cr4"), saved.sregs.get("efer"), maxphyaddr)


def cpuid_of(vcpu: Vcpu) -> Cpuid | None:
    """Return the CPUID that an input has for a vCPU; None if it has none, as a stream."""
    found = vcpu.section.child("CPUID2") if vcpu.parts is not None else None
    if found is None:
        return None
    entries = []
    for child in found.children[1:]:
        leaf, _, index = child.name.partition(".")
        words = child.value if isinstance(child.value, tuple) else (0, 0, 0, 0)
        registers = dict(zip(("eax", "ebx", "ecx", "edx"), words, strict=True))
        entries.append({"function": int(leaf, 16), "index": int(index, 16), **registers})
    from qemu_svm.x86.cpuid_entries import features

    return features(entries)


def from_vcpu(vcpu: Vcpu) -> Saved:
    """Return the values of a vCPU of a stream.

    As in QEMU, GUEST_MODE and GIF_SET come from hflags and hflags2, the other
    flags from the nested state (``kvm_put_nested_state``).  Registers that an input does not
    have are 0; :mod:`qemu_svm.model.partial` tells which steps have their values.
    """
    sregs, known = Area("sregs"), vcpu.registers
    for name in _SREGS:
        sregs.set(name, vcpu.get(name), RESET)
    for name, segment in vcpu.segments.items():
        sregs.set(_SEGMENT_NAMES.get(name, name), segment, RESET)
    return Saved(
        sregs=sregs,
        regs={name: vcpu.get(name) for name in _REGS},
        msrs={name: vcpu.get(name) for name in MSRS if vcpu.parts is None or name in known},
        debugregs={name: vcpu.get(name) for name in _DEBUG},
        nested=_nested(vcpu),
        smm=int(vcpu.smm),
        mp_state=vcpu.get("mp_state"),
    )


def _nested(vcpu: Vcpu) -> NestedState:
    nested = vcpu.nested or NestedState(0, layout.FORMAT_SVM, layout.UAPI_HEADER_SIZE)
    flags = nested.flags & ~(bits.GUEST_MODE | bits.GIF_SET)
    flags |= bits.GUEST_MODE if vcpu.guest_mode else 0
    flags |= bits.GIF_SET if vcpu.gif else 0
    return replace(nested, flags=flags, vmcb=nested.vmcb or bytes(layout.VMCB_SIZE))


def areas(vmcb: bytes, writer: Writer = RESET) -> tuple[Area, Area]:
    """Return the control area and the save area of a VMCB page.

    The six intercept words become one number; fields that are neither a number nor a
    segment are left out.
    """
    control, save = _contents(vmcb)
    return Area("vmcb12 control", control, writer), Area("vmcb12 save", save, writer)


@lru_cache(maxsize=16)  # as vmcb_fields: one VMCB is read by many rules
def _contents(vmcb: bytes) -> tuple[Mapping[str, Content], Mapping[str, Content]]:
    fields = vmcb_fields(vmcb)
    control: dict[str, Content] = {}
    save: dict[str, Content] = {}
    for name, value in fields[0].items():
        if name == "intercepts":
            control[name] = bits.intercept_words(list(value))
        elif isinstance(value, int):
            control[name] = value
    for name, value in fields[1].items():
        if isinstance(value, int):
            save[name] = value
        elif name in _TABLES:
            save[name] = Segment(0, value.base, value.limit, 0)
        elif name in layout.SEGMENTS:
            save[name] = Segment(value.selector, value.base, value.limit, value.attrib)
    return control, save
