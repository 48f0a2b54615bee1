"""Comparison of a capture with the wanted state of its guest and the values of L1 and L2.

While L2 runs, the vCPU's registers and the control area are L2's, the save
area is L1's; see :mod:`qemu_svm.nested.state`.  Registers that change all the time
are compared with a range (RIP) or not at all (RCX, the arithmetic flags).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from qemu_svm.lab.guests import values
from qemu_svm.lab.guests.build import Image
from qemu_svm.lab.guests.catalogue import Guest, GuestState
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.nested import bits
from qemu_svm.x86.segments import Segment

_ARITHMETIC = 0x8D5  # OF SF ZF AF PF CF
_DR7_AFTER_EXIT = 0x400
_CR0_OUT_IN_SMM = 0x8000000D

SAVED_BY_VMRUN = (
    *(f"{name}.{part}" for name in ("es", "cs", "ss", "ds")
      for part in ("selector", "attrib", "limit", "base")),
    "efer", "cr0", "cr3", "cr4",
)  # fmt: skip
"""L1's registers in the save area of the nested state, besides RIP, RSP, RAX, RFLAGS."""


_UNREPORTED: Mapping[str, frozenset[str]] = {
    # By release line.  Before 5.12 RDMSR returned what WRMSR had written, not what VMLOAD loaded.
    "5.10": frozenset({"sysenter_esp", "sysenter_eip"}),
}


def differences(guest: Guest, image: Image, machine: Machine, kernel: str) -> list[str]:
    """Return the differences of a capture from the wanted state of its guest.

    :param image: from which the guest ran.
    :param kernel: release line of the host's kernel; some do not report all registers.
    :returns: one line for each difference, such as
        ``vcpu0.cr3: expected 0x114000, found 0x51a000``.
    """
    if len(machine.vcpus) != len(guest.vcpus):
        return [f"vCPUs: expected {len(guest.vcpus)}, found {len(machine.vcpus)}"]
    found: list[str] = []
    for state, vcpu in zip(guest.vcpus, machine.vcpus, strict=True):
        name = f"vcpu{vcpu.index}"
        wrong = [f"{name}.{line}" for line in _state(state, vcpu)]
        if not wrong:
            wrong = [f"{name}.{line}" for line in _values(guest, image, state, vcpu, kernel)]
        found += wrong
    return found


def _state(state: GuestState, vcpu: Vcpu) -> Iterator[str]:
    flags = vcpu.nested.flags if vcpu.nested is not None else 0
    facts = (
        ("guest_mode", state.guest_mode, vcpu.guest_mode),
        ("gif", state.gif, vcpu.gif),
        ("smm", state.smm, vcpu.smm),
        ("run_pending", state.run_pending, bool(flags & bits.RUN_PENDING)),
    )
    for name, wanted, found in facts:
        if wanted is not None and wanted != found:
            yield f"{name}: expected {int(wanted)}, found {int(found)}"


def _values(
    guest: Guest, image: Image, state: GuestState, vcpu: Vcpu, kernel: str
) -> Iterator[str]:
    if state.smm:
        yield from _compare(lambda name: _register(vcpu, name), _in_smm(guest))
        return
    who = (
        values.l2(guest.mode, nested_paging=guest.nested_paging) if state.guest_mode else values.L1
    )
    wanted = {**who, "vm_hsave_pa": values.ADDRESSES["VM_HSAVE_PA"]}
    for name in ("rcx", *_UNREPORTED.get(kernel, ())):
        wanted.pop(name, None)
    if state.guest_mode:
        # L2 has L1's PAT under KVM, which does not record the DR7 that VMRUN loads.
        wanted |= {"pat": values.L1["pat"], "dr7": _DR7_AFTER_EXIT}
    if state.run_pending:
        del wanted["cr2"]  # loaded when L2 is entered
    yield from _compare(lambda name: _register(vcpu, name), wanted)
    yield from _rip(image, state, vcpu, "l2" if state.guest_mode else "l1")
    if state.guest_mode:
        yield from _l1_save(guest, image, vcpu)
        yield from _control(guest, vcpu)


def _in_smm(guest: Guest) -> Mapping[str, int]:
    # An SMI in L2 first makes KVM leave L2, so it is L1's CR0 that loses PE, EM, TS and PG.
    base = guest.constant("SMBASE")
    cr0 = values.L1["cr0"] & ~_CR0_OUT_IN_SMM
    return {"smbase": base, "cs.base": base, "cr0": cr0, "cr4": 0, "efer": 0}


def _rip(image: Image, state: GuestState, vcpu: Vcpu, who: str) -> Iterator[str]:
    first, last = image.symbols[f"{who}_loop"], image.symbols[f"{who}_end"]
    if state.run_pending:
        first = image.symbols["l2"]
    rip = vcpu.get("rip")
    if not first <= rip < last:
        yield f"rip: expected {first:#x} to {last - 1:#x}, found {rip:#x}"


def _l1_save(guest: Guest, image: Image, vcpu: Vcpu) -> Iterator[str]:
    wanted = {name: values.L1[name] for name in SAVED_BY_VMRUN}
    wanted |= {
        "rip": image.symbols["after_vmrun"],
        "rsp": guest.l1_rsp,
        "rax": values.ADDRESSES["VMCB12"],
        "rflags": values.L1["rflags"],
        "gdtr.base": image.symbols["gdt"],
        "gdtr.limit": image.symbols["gdt_end"] - image.symbols["gdt"] - 1,
    }
    assert vcpu.nested is not None
    save = vcpu.nested.l1_save

    def look(name: str) -> int:
        segment, _, part = name.partition(".")
        return int(save[segment][part] if part else save[segment])

    for line in _compare(look, wanted):
        yield f"nested.l1_save.{line}"


def _control(guest: Guest, vcpu: Vcpu) -> Iterator[str]:
    assert vcpu.nested is not None
    nested = vcpu.nested
    control = nested.control
    words = control.intercepts
    wanted: dict[str, int] = {
        "nested_ctl": int(guest.nested_paging),
        "nested_cr3": values.ADDRESSES["NESTED_CR3"] if guest.nested_paging else 0,
        "asid": guest.constant("ASID"),
        "tsc_offset": guest.constant("TSC_OFFSET"),
        "msrpm_base_pa": values.ADDRESSES["MSRPM"],
        "iopm_base_pa": values.ADDRESSES["IOPM"],
        "intercepts[3]": guest.constant("INTERCEPTS3"),
        "intercepts[4]": guest.constant("INTERCEPTS4"),
        "vmcb_pa": values.ADDRESSES["VMCB12"],
    }
    if guest.source == "inject.s":
        wanted["event_inj"] = guest.constant("EVENT")
    found = {"intercepts[3]": words[3], "intercepts[4]": words[4], "vmcb_pa": nested.vmcb_pa}
    for line in _compare(lambda name: found[name] if name in found else control[name], wanted):
        yield f"nested.control.{line}"


def _compare(look: Callable[[str], int], wanted: Mapping[str, int]) -> Iterator[str]:
    for name, value in wanted.items():
        ignored = _ARITHMETIC if name == "rflags" else 0
        found = look(name)
        if (found ^ value) & ~ignored:
            yield f"{name}: expected {value:#x}, found {found:#x}"


def _register(vcpu: Vcpu, name: str) -> int:
    register, _, part = name.partition(".")
    if not part:
        return vcpu.get(name)
    segment = vcpu.segments.get(register, Segment(0, 0, 0, 0))
    return int(getattr(segment, part))
