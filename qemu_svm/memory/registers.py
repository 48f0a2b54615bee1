"""Registers of L1 and of L2, wherever they are.

While a vCPU runs L2 its own registers are L2's.  L1's are in two places: the save area
of the nested state (what VMRUN replaces), and, if L1 is KVM, the page at VM_HSAVE_PA,
into which KVM has executed VMSAVE: FS, GS, TR, LDTR and the MSRs of system calls.
L1's other general registers are on its stack: unknown, None here.

Source: Linux ``arch/x86/kvm/svm/svm.c`` (``svm_prepare_switch_to_guest``: VMSAVE into the
host save area from 5.11 on); AMD64 APM volume 2, 15.5 and appendix B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qemu_svm.errors import AddressError, StreamError
from qemu_svm.machine import Vcpu
from qemu_svm.memory.paging import Paging, mode
from qemu_svm.nested import layout
from qemu_svm.x86.segments import Segment

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
)
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
MSRS = (
    *("star", "lstar", "cstar", "sfmask", "kernel_gs_base"),
    *("sysenter_cs", "sysenter_esp", "sysenter_eip"),
)
_FROM_VCPU = (*GENERAL, "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer", *MSRS)
_FROM_BLOB = ("rip", "rsp", "rax", "rflags", "cr0", "cr3", "cr4", "efer")
_BLOB_SEGMENTS = {
    "es": "es", "cs": "cs", "ss": "ss", "ds": "ds", "gdt": "gdtr", "idt": "idtr",
}  # fmt: skip
_HSAVE_SEGMENTS = {"fs": "fs", "gs": "gs", "ldt": "ldtr", "tr": "tr"}
_KERNEL_HALF = 1 << 63
_TSS = (9, 11)

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Registers:
    """The registers of one level of one vCPU.

    :param numbers: by name; None where nothing in the stream has it.
    :param segments: by name, ``ldt``, ``tr``, ``gdt`` and ``idt`` included; None if unknown.
    :param sources: where they are from, in words.
    """

    level: str
    vcpu: int
    numbers: Mapping[str, int | None]
    segments: Mapping[str, Segment | None]
    sources: tuple[str, ...]

    def get(self, name: str) -> int:
        """A register; 0 if it is unknown."""
        return self.numbers.get(name) or 0

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the registers that the stream does not have."""
        missing = [name for name, value in self.numbers.items() if value is None]
        return (*missing, *(name for name, value in self.segments.items() if value is None))

    def paging(self, physical_bits: int = 0) -> Paging:
        """The paging that these registers choose."""
        return mode(
            self.get("cr0"), self.get("cr3"), self.get("cr4"), self.get("efer"), physical_bits
        )

    @property
    def bits(self) -> int:
        """Width of the code: 16, 32 or 64."""
        code = self.segments.get("cs")
        attrib = code.attrib if code is not None else 0
        if attrib & 0x200 and self.get("efer") & 0x400:
            return 64
        return 32 if attrib & 0x400 else 16

    @property
    def next_instruction(self) -> int:
        """Linear address of the next instruction."""
        code = self.segments.get("cs")
        if self.bits == 64 or code is None:
            return self.get("rip")
        return (code.base + self.get("rip")) & 0xFFFF_FFFF


def runs_l2(vcpu: Vcpu) -> bool:
    """Whether the vCPU was running L2, and L1's state is there."""
    nested = vcpu.nested
    return vcpu.guest_mode and nested is not None and nested.is_svm and bool(nested.vmcb)


def of_vcpu(vcpu: Vcpu, level: str = "") -> Registers:
    """The vCPU's own registers: those of L2 while it runs L2."""
    numbers = {name: vcpu.get(name) for name in _FROM_VCPU}
    segments = {name: vcpu.segments.get(name) for name in SEGMENTS}
    level = level or ("l2" if runs_l2(vcpu) else "l1")
    return Registers(level, vcpu.index, numbers, segments, ("the vCPU's registers",))


def of_l1(vcpu: Vcpu, read: Read) -> Registers:
    """L1's registers, wherever the vCPU was.

    :param read: reads L1-physical memory at (address, size).
    """
    nested = vcpu.nested
    if not runs_l2(vcpu) or nested is None:
        return of_vcpu(vcpu, "l1")
    save = nested.l1_save
    numbers: dict[str, int | None] = dict.fromkeys(_FROM_VCPU)
    numbers |= {name: int(save[name]) for name in _FROM_BLOB}
    segments: dict[str, Segment | None] = dict.fromkeys(SEGMENTS)
    for name, theirs in _BLOB_SEGMENTS.items():
        one = save[theirs]
        segments[name] = Segment(one.selector, one.base, one.limit, one.attrib)
    sources = ["the nested state's save area"]
    page = vcpu.get("vm_hsave_pa")
    found = _hsave(page, read)
    if found is not None:
        numbers |= found[0]
        segments |= found[1]
        sources.append(f"VMSAVE's image in the host save area at {page:#x}")
    return Registers("l1", vcpu.index, numbers, segments, tuple(sources))


def _hsave(page: int, read: Read) -> tuple[dict[str, int], dict[str, Segment]] | None:
    # What KVM as L1 has saved; None unless it looks like that of a 64-bit kernel.
    if not page or page & 0xFFF:
        return None
    try:
        data = read(page, layout.VMCB_SIZE)
    except (AddressError, StreamError):
        return None
    save = layout.SAVE.layout.parse(data[layout.SAVE_OFFSET :])
    segments = {}
    for name, theirs in _HSAVE_SEGMENTS.items():
        one = save[theirs]
        segments[name] = Segment(one.selector, one.base, one.limit, one.attrib)
    task, ours = segments["tr"], segments["gs"]
    addresses = (ours.base, task.base, save.lstar, save.kernel_gs_base, segments["fs"].base)
    plausible = (
        task.selector and not task.selector & 7 and task.present and task.type in _TSS
        and task.base & _KERNEL_HALF and ours.base & _KERNEL_HALF and save.lstar & _KERNEL_HALF
        and all(_canonical(address) for address in addresses)
    )  # fmt: skip
    return ({name: int(save[name]) for name in MSRS}, segments) if plausible else None


def _canonical(address: int) -> bool:
    return address >> 56 in (0, 0xFF)


def physical_bits(vcpu: Vcpu) -> int:
    """Width of a guest-physical address, as the firmware's MTRR masks show it; 0 if unknown."""
    array = vcpu.section.child("env.mtrr_var")
    masks = [one.number("mask") for one in array.children] if array is not None else []
    widest = max((mask & ~0xFFF for mask in masks if mask & 0x800), default=0).bit_length()
    return widest if 36 <= widest < 52 else 0  # with KVM, QEMU fills them up to 52
