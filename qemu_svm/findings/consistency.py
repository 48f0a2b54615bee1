"""Parts of one stream that must agree, whatever kernel restores it.

Source: QEMU ``target/i386/machine.c`` (``cpu_post_load``,
``nested_state_post_load``), ``target/i386/kvm/kvm.c``
(``kvm_put_nested_state``), 5.2 to 10.0; Linux ``arch/x86/kvm/svm/nested.c``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qemu_svm.machine import Machine, Vcpu
from qemu_svm.machine.memory import backed
from qemu_svm.nested import NestedState, bits, layout

_TCG_SVME = 1 << 20  # HF_SVME: set by TCG only
_SVME = 1 << 12
_WHOLE = layout.UAPI_HEADER_SIZE + layout.VMCB_SIZE


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule of :mod:`qemu_svm.findings.rules` that does not hold."""

    rule: str
    message: str
    offset: int | None = None


def consistency(machine: Machine) -> Iterator[Violation]:
    """Everything that contradicts itself in the vCPUs of a stream."""
    for vcpu in machine.vcpus:
        if vcpu.nested is None:
            yield from _without(vcpu)
        else:
            yield from _with(machine, vcpu, vcpu.nested)


def _without(vcpu: Vcpu) -> Iterator[Violation]:
    # Under TCG L1's state is in memory, and these two tell that it is TCG.
    tcg = vcpu.get("vm_vmcb") != 0 or vcpu.get("hflags") & _TCG_SVME
    if vcpu.guest_mode and not tcg:
        yield Violation(
            "X-03",
            f"vCPU {vcpu.index} was in guest mode, but the stream carries no nested state: "
            "L1's state is lost and the restore will fail",
            vcpu.registers["hflags"].offset,
        )


def _with(machine: Machine, vcpu: Vcpu, nested: NestedState) -> Iterator[Violation]:
    name, guest_mode = f"vCPU {vcpu.index}", bool(nested.flags & bits.GUEST_MODE)
    if nested.format not in bits.FORMATS:
        yield Violation(
            "X-04",
            f"{name}: nested state of unknown format {nested.format}",
            nested.offset + 2,
        )
        return
    if guest_mode != vcpu.guest_mode:
        yield Violation(
            "X-01",
            f"{name}: hflags say guest mode {int(vcpu.guest_mode)}, the nested state's flags "
            f"{nested.flags:#x} the opposite; QEMU refuses or changes this on load",
            nested.offset,
        )
    if not nested.is_svm:
        return
    if bool(nested.flags & bits.GIF_SET) != vcpu.gif:
        yield Violation(
            "X-02",
            f"{name}: hflags2 say GIF {int(vcpu.gif)}, the nested state's flags "
            f"{nested.flags:#x} the opposite; QEMU takes hflags2",
            nested.offset,
        )
    if guest_mode and (nested.size < _WHOLE or not nested.vmcb):
        yield Violation(
            "X-04",
            f"{name}: the nested state says it has {nested.size} bytes; guest mode needs {_WHOLE}",
            nested.offset + 4,
        )
    if guest_mode and nested.vmcb:
        yield from _guest_mode(machine, vcpu, nested, name)


def _guest_mode(
    machine: Machine, vcpu: Vcpu, nested: NestedState, name: str
) -> Iterator[Violation]:
    if not vcpu.get("efer") & _SVME:
        yield Violation(
            "X-05",
            f"{name}: in guest mode, but EFER {vcpu.get('efer'):#x} has SVME clear",
            vcpu.registers["efer"].offset if "efer" in vcpu.registers else None,
        )
    if vcpu.smm:
        yield Violation("X-10", f"{name}: in SMM and in guest mode at once", nested.offset)
    known = bool(machine.blocks)
    at = nested.vmcb_offset
    if known and not backed(machine, nested.vmcb_pa, layout.VMCB_SIZE):
        yield Violation(
            "X-06",
            f"{name}: vmcb12 at {nested.vmcb_pa:#x} is outside the guest's RAM: the next #VMEXIT "
            "ends in a shutdown",
            at - 8,
        )
    control, save = nested.control, nested.l1_save
    intercepts = bits.intercept_words(list(control.intercepts))
    bitmap = control.msrpm_base_pa & ~0xFFF
    merged = known and intercepts & bits.INTERCEPTS.mask("MSR_PROT")
    if merged and not backed(machine, bitmap, 0x2000):
        yield Violation(
            "X-07",
            f"{name}: L1's MSR bitmap at {bitmap:#x} is outside the guest's RAM",
            at + layout.CONTROL.member("msrpm_base_pa").offset,
        )
    if not vcpu.get("vm_hsave_pa"):
        yield Violation(
            "X-08",
            f"{name}: VM_HSAVE_PA is 0 in guest mode",
            vcpu.registers["vm_hsave_pa"].offset if "vm_hsave_pa" in vcpu.registers else None,
        )
    if save.rax != nested.vmcb_pa:
        yield Violation(
            "X-09",
            f"{name}: L1's RAX is {save.rax:#x}, vmcb12's address {nested.vmcb_pa:#x}",
            at + layout.SAVE_OFFSET + layout.SAVE.member("rax").offset,
        )
