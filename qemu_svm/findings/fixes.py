"""Bugs of KVM that a change repaired: rules, and what shows each.

Which kernels have the change is in :mod:`qemu_svm.model.kernels.table`; a rule names it.
"""

from __future__ import annotations

from collections.abc import Mapping

from qemu_svm.findings import conditions as c
from qemu_svm.findings.advisory import Advisory, Case, Met, repaired
from qemu_svm.nested import bits, vmcb_fields
from qemu_svm.rules import Severity
from qemu_svm.x86.cpuid import is_legal_gpa
from qemu_svm.x86.registers import uses_pae

_WARNING, _INFO = Severity.WARNING, Severity.INFO

_LBR_ENABLE = 1
_AVIC = 0xC000_0000
_V_IRQ = bits.INT_CTL.mask("V_IRQ")
_SHADOW = 1
_IF = 1 << 9
_STI = b"\xfb"
_PAGE_FAULT = 14
_LME, _LMA, _SVME = 1 << 8, 1 << 10, 1 << 12
_MSRPM_SIZE = 0x2000
_ON = ("1", "Y", "y")


def _stale_next_rip(case: Case) -> Met | None:
    saved = case.saved
    if not (saved.guest_mode and case.knows_registers and c.soft_event(saved)):
        return None
    next_rip, rip = saved.control().get("next_rip"), saved.regs["rip"]
    length = _soft_length(case.looks.code(case.vcpu, 0, 2))
    if length is None:
        return Met() if next_rip in (0, rip) else None
    after = rip + length & (1 << 64) - 1
    if next_rip == after:
        return None
    return Met(f"the instruction in memory ends at {after:#x}, next_rip is {next_rip:#x}",
               certain=True)  # fmt: skip


def _soft_length(code: bytes | None) -> int | None:
    # INT3 and INTO have one byte, INT n has two.
    if not code:
        return None
    return 1 if code[0] in (0xCC, 0xCE) else 2 if code[0] == 0xCD else None


def _lost_shadow(case: Case) -> Met | None:
    saved = case.saved
    if not saved.guest_mode or not saved.regs["rflags"] & _IF:
        return None
    if saved.control().get("int_state") & _SHADOW:
        return None
    before = case.looks.code(case.vcpu, -1, 1)
    if before is None:
        return Met("if there was one: L2's code is not in the stream or was not read", _INFO)
    return Met("the byte before L2's RIP is STI", certain=True) if before == _STI else None


def _replaced(case: Case) -> Met | None:
    # What is injected is INT3 or INTO, but memory has another instruction there.
    saved = case.saved
    if not (saved.guest_mode and c.soft_event(saved) and c.event_of(saved, c.EXCEPTION)):
        return None
    code = case.looks.code(case.vcpu, 0, 2)
    if code is None:
        return None
    return None if _soft_length(code) else Met(f"memory has {code.hex(' ')} there")


def _lbr(case: Case) -> bool:
    nested = case.vcpu.nested
    if not case.saved.guest_mode or nested is None:
        return False
    debugctl = nested.l1_save["dbgctl"] if nested.vmcb else 0
    return bool(case.saved.control().get("virt_ext") & _LBR_ENABLE or int(debugctl) & _LBR_ENABLE)


def _hyperv(case: Case) -> bool:
    nested = case.vcpu.nested
    if nested is None or not nested.vmcb:
        return False
    return bool(nested.control.hv_enlightenments.control)


def _l1_uses_pae(case: Case) -> bool:
    l1 = case.saved.l1()
    return uses_pae(l1.get("cr0"), l1.get("cr4"), l1.get("efer"))


def _l2_uses_pae(case: Case) -> bool:
    return uses_pae(*(case.saved.sregs.get(name) for name in ("cr0", "cr4", "efer")))


def _l1_cr3_fails(case: Case) -> Met | None:
    # nested_svm_load_cr3: an address that is not legal, or PDPTEs that are not.
    cr3 = case.saved.l1().get("cr3")
    if not case.saved.guest_mode:
        return None
    if not _l1_uses_pae(case):
        legal = is_legal_gpa(case.cpuid, cr3) or not case.saved.l1().get("efer") & _LMA
        return None if legal else Met(f"CR3 {cr3:#x} has more than {case.cpuid.maxphyaddr} bits")
    table = cr3 & 0xFFFF_FFE0
    if not case.backed(table, 32):
        return Met(f"the PDPT at {table:#x} is outside the guest's RAM")
    entries = case.looks.physical(table, 32)
    if entries is None:
        return None
    reserved = 0x1E6 | (1 << 64) - (1 << case.cpuid.maxphyaddr)
    for index in range(4):
        entry = int.from_bytes(entries[8 * index : 8 * index + 8], "little")
        if entry & 1 and entry & reserved:
            return Met(f"PDPTE {index} at {table:#x} is {entry:#x}")
    return None


def _vmrun_of_l2_fails(case: Case) -> bool:
    """Whether the processor refuses L2's registers (AMD64 APM volume 2, 15.5.1)."""
    sregs = case.saved.sregs
    cr0, cr4, efer = (sregs.get(name) for name in ("cr0", "cr4", "efer"))
    paging, protected = cr0 >> 31 & 1, cr0 & 1
    cs = sregs.segment("cs")
    return (
        case.saved.guest_mode
        and case.knows_registers
        and bool(
            cr0 >> 32
            or (cr0 >> 29 & 1 and not cr0 >> 30 & 1)
            or not efer & _SVME
            or (efer & _LME and paging and not (cr4 >> 5 & 1 and protected))
            or (efer & _LME and paging and cr4 >> 5 & 1 and cs.long and cs.attrib & 0x400)
        )
    )


def _lma_without_lme(case: Case) -> Met | None:
    page = case.looks.vmcb12(case.vcpu) if case.saved.guest_mode else None
    if page is None:
        return None
    efer = int(vmcb_fields(page)[1]["efer"])
    met = efer & (_LMA | _LME) == _LMA
    return Met(f"vmcb12 at {case.saved.nested.vmcb_pa:#x} has EFER {efer:#x}") if met else None


def _stale_exit_code(case: Case) -> Met | None:
    page = case.looks.vmcb12(case.vcpu) if case.saved.guest_mode else None
    if page is None:
        return None
    code = int(vmcb_fields(page)[0]["exit_code"])
    met = code >> 32 not in (0, 0xFFFF_FFFF)
    return Met(f"exit_code in vmcb12 is {code:#x}") if met else None


def _scaled_tsc(case: Case) -> bool:
    scale = case.vcpu.section.child("cpu/amd_tsc_scale_msr")
    ratio = scale.number("env.amd_tsc_scale_msr") if scale is not None else 0
    return ratio not in (0, 1 << 32)


def _pending_before_entry(case: Case) -> bool:
    section = case.vcpu.section
    return (
        section.number("env.interrupt_injected", -1) >= 0
        or section.number("env.exception_nr", -1) >= 0
        or bool(section.number("env.nmi_injected") or section.number("env.nmi_pending"))
    )


def _lacks(case: Case, *names: str) -> bool:
    return case.saved.guest_mode and not any(c.intercepts(case.saved, name) for name in names)


def _avic(parameters: Mapping[str, str]) -> bool:
    return parameters.get("avic") in _ON


def _nested(parameters: Mapping[str, str]) -> bool:
    return parameters.get("nested") in _ON


FIXES: tuple[Advisory, ...] = (
    Advisory(
        repaired(
            "K-01", _WARNING, "next-rip-synced",
            "a soft event is pending for L2 and NextRIP is 0, L2's RIP or not that of the "
            "instruction",
            "the source did not save NextRIP: a wrong return address is pushed",
        ),
        _stale_next_rip,
    ),
    Advisory(
        repaired(
            "K-02", _WARNING, "next-rip-after-run",
            "a soft event is pending for L2 without RUN_PENDING",
            "NextRIP of L1's last VMRUN is used: a wrong return address is pushed",
        ),
        lambda k: k.saved.guest_mode and c.soft_event(k.saved) and not c.run_pending(k.saved),
    ),
    Advisory(
        repaired(
            "K-03", _WARNING, "lbr-msrs-saved", "L1 or L2 uses LBR virtualization",
            "the LBR MSRs are not saved and restored",
        ),
        _lbr,
    ),
    Advisory(
        repaired(
            "K-04", _INFO, "lbr-clean-bit", "L1 uses LBR virtualization for L2",
            "#VMEXIT clears the LBR clean bit in vmcb12",
        ),
        lambda k: k.saved.guest_mode and bool(k.saved.control().get("virt_ext") & _LBR_ENABLE),
    ),
    Advisory(
        repaired(
            "K-05", _WARNING, "ncr3-low-bits",
            "L1 uses PAE paging and nested_cr3 has bits set below bit 5",
            "PDPTEs are read beyond L1's page directory pointer table",
        ),
        lambda k: k.saved.guest_mode
        and c.nested_paging(k.saved)
        and _l1_uses_pae(k)
        and bool(k.saved.control().get("nested_cr3") & 0x1F),
    ),
    Advisory(
        repaired(
            "K-06", _WARNING, "int-ctl-bits", "int_ctl has AVIC bits set",
            "L2 runs with AVIC and may read and write memory of the host",
        ),
        lambda k: k.saved.guest_mode and bool(k.saved.control().get("int_ctl") & _AVIC),
        host=_nested, avoided_by="nested=0",
    ),
    Advisory(
        repaired(
            "K-07", _INFO, "hyperv-flush",
            "L1 uses Hyper-V enlightenments without nested paging",
            "flush hypercalls of L2 use the wrong addresses",
        ),
        lambda k: k.saved.guest_mode and _hyperv(k) and not c.nested_paging(k.saved),
    ),
    Advisory(
        repaired(
            "K-08", _INFO, "rsm-checks-controls",
            "the source was in SMM, perhaps entered from L2",
            "RSM does not check vmcb12's controls",
        ),
        lambda k: k.vcpu.smm and not k.saved.guest_mode,
    ),
    Advisory(
        repaired(
            "K-09", _WARNING, "shadow-synced",
            "L2's interrupt shadow was not saved by the source",
            "an interrupt is delivered too early; L2 may hang in HLT",
        ),
        _lost_shadow,
        trace=("O-16",),
    ),
    Advisory(
        repaired(
            "K-10", _WARNING, "l1-cr3-triple-fault",
            "L1's CR3 or its PDPTEs cannot be loaded at #VMEXIT",
            "L1 goes on with damaged state",
        ),
        _l1_cr3_fails,
    ),
    Advisory(
        repaired(
            "K-11", _INFO, "vmmcall-intercepted", "L1 does not intercept VMMCALL",
            "a hypercall of L2 reaches the wrong hypervisor",
        ),
        lambda k: _lacks(k, "VMMCALL"),
        common=True,
    ),
    Advisory(
        repaired(
            "K-12", _INFO, "active-msr-bitmap", "L1 intercepts MSRs",
            "the wrong MSR bitmap is consulted while L2 runs",
        ),
        lambda k: k.saved.guest_mode and c.intercepts(k.saved, "MSR_PROT"),
        common=True,
    ),
    Advisory(
        repaired(
            "K-13", _WARNING, "controls-cached-first",
            "L1 changes the intercepts of vmcb12 during VMRUN",
            "L2 runs without the VMRUN intercept and can take over the host",
        ),
        host=_nested, avoided_by="nested=0",
    ),
    Advisory(
        repaired(
            "K-14", _INFO, "vmload-intercepted",
            "L1 does not intercept VMLOAD or VMSAVE of L2",
            "L2 reads and writes physical memory of the host",
        ),
        lambda k: k.saved.guest_mode
        and not (c.intercepts(k.saved, "VMLOAD") and c.intercepts(k.saved, "VMSAVE")),
        common=True,
        host=_nested, avoided_by="nested=0",
    ),
    Advisory(
        repaired(
            "K-15", _INFO, "leave-on-reset",
            "L1 does not intercept SHUTDOWN: a triple fault of L2 resets the vCPU in guest mode",
            "the host uses vmcb02 after it was freed",
        ),
        lambda k: _lacks(k, "SHUTDOWN"),
        common=True,
        host=_nested, avoided_by="nested=0",
    ),
    Advisory(
        repaired(
            "K-16", _WARNING, "avic-inhibited",
            "the destination's kvm_amd has avic=1 and the vCPU is in guest mode",
            "L2 runs with AVIC active",
        ),
        host=_avic, avoided_by="avic=0",
    ),
    Advisory(
        repaired(
            "K-17", _WARNING, "x2apic-intercepts",
            "the host's kvm_amd has avic=1 with x2AVIC, and L2 runs",
            "L1 reads and writes x2APIC MSRs of the host",
        ),
        host=_avic, avoided_by="avic=0",
    ),
    Advisory(
        repaired(
            "K-18", _WARNING, "x2avic-intercepts",
            "the host's kvm_amd has avic=1 with x2AVIC",
            "a guest reads and writes x2APIC MSRs of the host",
        ),
        host=_avic, avoided_by="avic=0",
    ),
    Advisory(
        repaired(
            "K-19", _INFO, "vmcb02-dirty", "nested state is set again in guest mode",
            "the processor may use fields of vmcb02 that it has cached",
        ),
        trace=("O-25",),
    ),
    Advisory(
        repaired(
            "K-20", _WARNING, "pages-retried",
            "KVM_RUN fails because L1's MSR bitmap cannot be read",
            "the next KVM_RUN runs L2 without L1's MSR intercepts",
        ),
        lambda k: k.saved.guest_mode
        and c.intercepts(k.saved, "MSR_PROT")
        and not k.backed(k.saved.control().get("msrpm_base_pa"), _MSRPM_SIZE),
    ),
    Advisory(
        repaired(
            "K-21", _INFO, "failed-vmrun-controls",
            "L2's registers make VMRUN fail, and an event is pending for it",
            "pending events of L2 are lost",
        ),
        lambda k: _vmrun_of_l2_fails(k) and c.event_pending(k.saved),
        vmruns="INVALID",
    ),
    Advisory(
        repaired(
            "K-22", _INFO, "failed-vmrun-tlb",
            "L2's registers make VMRUN fail, and L1 asks for a TLB flush",
            "a pending TLB flush is lost",
        ),
        lambda k: _vmrun_of_l2_fails(k) and bool(k.saved.control().get("tlb_ctl")),
        vmruns="INVALID",
    ),
    Advisory(
        repaired(
            "K-23", _INFO, "cr3-failure-warn",
            "KVM_SET_NESTED_STATE fails at L2's CR3 (SV-16)",
            "the host prints a WARN, and panics with panic_on_warn",
        ),
        lambda k: k.saved.guest_mode and not is_legal_gpa(k.cpuid, k.saved.sregs.get("cr3")),
    ),
    Advisory(
        repaired(
            "K-24", _INFO, "tsc-of-l1", "L1 scales L2's TSC",
            "L1's TSC is wrong after #VMEXIT",
        ),
        lambda k: k.saved.guest_mode and _scaled_tsc(k),
    ),
    Advisory(
        repaired(
            "K-25", _INFO, "guest-mode-before-mmu", "L1 uses nested paging for L2",
            "L2's MMU may get the wrong role",
        ),
        lambda k: k.saved.guest_mode and c.nested_paging(k.saved),
        common=True,
    ),
    Advisory(
        repaired(
            "K-26", _INFO, "lma-ignored-at-vmrun", "vmcb12 has EFER.LMA without LME",
            "KVM's MMU gets a mode that does not exist",
        ),
        _lma_without_lme,
    ),
    Advisory(
        repaired(
            "K-27", _WARNING, "injected-with-gif-clear",
            "an interrupt was being injected while GIF is clear",
            "the host stops with a BUG at the next KVM_RUN",
        ),
        lambda k: not k.vcpu.gif
        and c.has_svm(k.vcpu)
        and k.vcpu.section.number("env.interrupt_injected", -1) >= 0,
    ),
    Advisory(
        repaired(
            "K-28", _WARNING, "soft-exception-replaced",
            "INT3 or INTO is injected into L2, and memory has another instruction at its RIP",
            "KVM skips that instruction",
        ),
        _replaced,
    ),
    Advisory(
        repaired(
            "K-29", _INFO, "smm-left-at-shutdown", "the vCPU is in SMM",
            "the host prints a WARN if it then shuts down, and panics with panic_on_warn",
        ),
        lambda k: k.vcpu.smm,
    ),
    Advisory(
        repaired(
            "K-30", _INFO, "rsm-run-pending", "the source was in SMM, perhaps entered from L2",
            "RSM may enter L2 with stale fields, or leave it before it ran",
        ),
        lambda k: k.vcpu.smm and not k.saved.guest_mode,
    ),
    Advisory(
        repaired(
            "K-31", _WARNING, "guests-without-npt", "the host has npt=0 and the vCPU runs L2",
            "L2 does not run: it gets page faults that are not its own",
        ),
        lambda k: k.saved.guest_mode and not k.npt,
        host=lambda p: p.get("npt") in ("0", "N", "n"),
        avoided_by="npt=1",
    ),
    Advisory(
        repaired(
            "K-32", _WARNING, "npt-root-level",
            "L1 uses nested paging for L2 and is not in long mode",
            "L2's shadow pages have the wrong number of levels",
        ),
        lambda k: k.saved.guest_mode
        and c.nested_paging(k.saved)
        and not k.saved.l1().get("efer") & _LMA,
    ),
    Advisory(
        repaired(
            "K-33", _INFO, "pages-cancelled",
            "an event is pending that may end L2 before its first instruction",
            "L1 runs with L2's MSR bitmap, or the host prints a WARN",
        ),
        lambda k: k.saved.guest_mode
        and not c.run_pending(k.saved)
        and _pending_before_entry(k),
    ),
    Advisory(
        repaired(
            "K-34", _INFO, "cr3-mbz", "L2 uses long mode and its CR3 has low bits set",
            "L1's next VMRUN of it fails",
        ),
        lambda k: k.saved.guest_mode
        and bool(k.saved.sregs.get("efer") & _LMA and k.saved.sregs.get("cr3") & 0xFE7),
    ),
    Advisory(
        repaired(
            "K-35", _INFO, "pdptr-encryption-bit",
            "L2 uses PAE paging without nested paging",
            "on hosts with SME its PDPTEs are read from the wrong address",
        ),
        lambda k: k.saved.guest_mode and _l2_uses_pae(k) and not c.nested_paging(k.saved),
    ),
    Advisory(
        repaired(
            "K-36", _WARNING, "int-vector-kept",
            "L1 has a virtual interrupt pending for L2 (V_IRQ)",
            "its vector may be lost: L2 gets vector 0",
        ),
        lambda k: k.saved.guest_mode
        and bool(k.saved.control().get("int_ctl") & _V_IRQ and k.saved.control().get("int_vector")),
    ),
    Advisory(
        repaired(
            "K-37", _INFO, "virt-ext-kept", "virt_ext of vmcb12 is not 0",
            "L2 runs with features of virt_ext that KVM does not offer to L1",
        ),
        lambda k: k.saved.guest_mode and bool(k.saved.control().get("virt_ext")),
    ),
    Advisory(
        repaired(
            "K-38", _INFO, "gif-after-failed-vmrun", "L2's registers make VMRUN fail",
            "GIF stays set after the failed VMRUN",
        ),
        _vmrun_of_l2_fails,
        vmruns="INVALID",
    ),
    Advisory(
        repaired(
            "K-39", _INFO, "failed-vmrun-map", "vmcb12 is outside the guest's RAM",
            "L1's next VMRUN of it is skipped, or KVM_RUN fails, instead of #GP",
        ),
        lambda k: k.saved.guest_mode and not k.backed(k.saved.nested.vmcb_pa, 0x1000),
    ),
    Advisory(
        repaired(
            "K-40", _INFO, "exit-without-vmcb12", "vmcb12 is outside the guest's RAM",
            "the next #VMEXIT leaves L2's state in L1",
        ),
        lambda k: k.saved.guest_mode and not k.backed(k.saved.nested.vmcb_pa, 0x1000),
    ),
    Advisory(
        repaired(
            "K-41", _INFO, "invlpga-ud", "the guest has SVM and EFER.SVME clear",
            "INVLPGA is executed instead of #UD",
        ),
        lambda k: (
            c.has_svm(k.vcpu) and k.knows_registers and not k.saved.sregs.get("efer") & _SVME
        ),
        common=True,
    ),
    Advisory(
        repaired(
            "K-42", _INFO, "event-inj-cleared",
            "event_inj of vmcb12 is valid although L2 has run",
            "L1 finds it valid after #VMEXIT and may inject it again",
        ),
        lambda k: k.saved.guest_mode and c.event_pending(k.saved) and not c.run_pending(k.saved),
    ),
    Advisory(
        repaired(
            "K-43", _INFO, "event-tracking-cleared",
            "L1 injects an NMI or a soft interrupt with the VMRUN that is pending",
            "it is taken for L1's own if L2 exits before it is delivered",
        ),
        lambda k: k.saved.guest_mode
        and c.run_pending(k.saved)
        and c.event_of(k.saved, c.NMI, c.SOFT_INTERRUPT),
    ),
    Advisory(
        repaired(
            "K-44", _INFO, "cr2-at-exit", "a #PF of L2 is pending",
            "L1 gets an old CR2 of L2 at #VMEXIT",
        ),
        lambda k: k.saved.guest_mode
        and k.vcpu.section.number("env.exception_nr", -1) == _PAGE_FAULT,
    ),
    Advisory(
        repaired(
            "K-45", _INFO, "vmload-of-l1", "L1 does not intercept VMLOAD or VMSAVE of L2",
            "VMLOAD and VMSAVE of L2 act on the wrong VMCB",
        ),
        lambda k: k.saved.guest_mode
        and not (c.intercepts(k.saved, "VMLOAD") and c.intercepts(k.saved, "VMSAVE")),
        common=True,
    ),
    Advisory(
        repaired(
            "K-46", _INFO, "selective-cr0",
            "L1 intercepts selective writes of CR0",
            "a write that KVM emulates may end in the wrong #VMEXIT, or in none",
        ),
        lambda k: k.saved.guest_mode and c.intercepts(k.saved, "SELECTIVE_CR0"),
        common=True,
    ),
    Advisory(
        repaired(
            "K-47", _INFO, "exit-code-cleared",
            "the upper half of exit_code in vmcb12 is neither 0 nor all ones",
            "L1 sees an exit code that does not exist",
        ),
        _stale_exit_code,
    ),
    Advisory(
        repaired(
            "K-48", _INFO, "clean-bits-at-vmrun",
            "L1 changes nested_cr3 or its permission maps between two VMRUNs",
            "the processor may use the old ones",
        ),
        unseen="two VMRUNs of L1 are needed, and a stream has one; logs of VMRUNs show what KVM "
        "wrote, not what the processor had cached",
    ),
    Advisory(
        repaired(
            "K-49", _INFO, "lbr-nested", "L1 or L2 uses LBR virtualization",
            "LBR MSRs of L1 and L2 are mixed up",
        ),
        _lbr,
    ),
    Advisory(
        repaired(
            "K-50", _INFO, "avic-after-leaving",
            "the host's kvm_amd has avic=1, and a vCPU leaves guest mode by force",
            "AVIC stays inhibited",
        ),
        host=_avic, avoided_by="avic=0",
    ),
    Advisory(
        repaired(
            "K-51", _WARNING, "tpr-with-avic", "the host's kvm_amd has avic=1",
            "the TPR of a restored guest is 0: interrupts that it blocks are delivered",
        ),
        host=_avic, avoided_by="avic=0",
    ),
    Advisory(
        repaired(
            "K-52", _INFO, "avic-fields-at-create", "the host's kvm_amd has avic=1",
            "a vCPU may run with AVIC half on",
        ),
        host=_avic, avoided_by="avic=0",
    ),
    Advisory(
        repaired(
            "K-53", _INFO, "tsc-ratio-checked", "MSR TSC_RATIO is not 1.0",
            "hosts without TSC scaling accept it, print a WARN and do not scale",
        ),
        _scaled_tsc,
    ),
    Advisory(
        repaired(
            "K-54", _INFO, "svme-cleared-by-l2",
            "L1 does not intercept MSRs: L2 can clear EFER.SVME",
            "L1 goes on with L2's registers",
        ),
        lambda k: _lacks(k, "MSR_PROT"),
        common=True,
    ),
    Advisory(
        repaired(
            "K-55", _INFO, "asid-of-both", "a vCPU moves to another CPU of the host",
            "the processor may use old translations of L1 or L2",
        ),
        unseen="it depends on which CPU a thread runs, which nothing that is recorded says",
    ),
)  # fmt: skip
"""Bugs that a change of the table repaired and that no other rule tells."""


CHANGE_OF: dict[str, str] = {
    "A-01": "msr-bitmap-merged",
    "A-02": "next-rip",
    "A-03": "hsave-needed",
    "C-03b": "ncr3-checked",
    "C-06": "tlb-control",
    "C-07": "vnmi",
    "C-08": "event-inj-checked",
    "O-10": "next-rip-at-run",
    "O-17": "smm-toggle-leaves",
    "O-19": "gif-restored",
    "O-20": "gif-without-svme",
    "O-21": "run-pending-restored",
    "O-28": "nested-migration-null",
    "R-04": "sregs-cr0",
    "R-05": "sregs-efer",
    "S-09": "cs-checked",
    "SV-12": "svme-kept",
    "SV-18": "lma-without-lme",
}
"""The change that brought a check or repaired what another rule tells."""


_ALSO: Mapping[str, tuple[str, ...]] = {"lma-without-pae-bug": ("SV-18", "K-26")}
"""Rules about what a change makes of a state, where others brought or repaired them."""


def rules_of(change: str) -> tuple[str, ...]:
    """Ids of the rules that a change brought or repaired, or that tell what it is about."""
    own = [one.rule.id for one in FIXES if one.rule.change == change]
    named = (rule for rule, of in CHANGE_OF.items() if of == change)
    return (*own, *named, *_ALSO.get(change, ()))
