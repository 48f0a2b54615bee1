"""Entering and leaving L2, as in ``arch/x86/kvm/svm/nested.c``.

The functions have the kernel's names.  Read in 5.10.262, 6.1.192, 6.12.117 and
7.2.12; where kernels differ, the profile decides.
"""

from __future__ import annotations

from collections.abc import Mapping

from qemu_svm.model.area import Area, Writer
from qemu_svm.model.kvm import svm
from qemu_svm.model.kvm.checks import SET_NESTED_STATE, Argument, Stage
from qemu_svm.model.kvm.leave import svm_leave_nested
from qemu_svm.model.kvm.vcpu import (
    PAGES,
    RUNNABLE,
    VMRUN_FIELDS,
    KvmVcpu,
    Mmu,
    MmuFault,
)
from qemu_svm.model.profile import LEAVE, RunPending, SaveCacheFill
from qemu_svm.model.race import CHECKED, CONTROL
from qemu_svm.nested import NestedState, bits, layout
from qemu_svm.nested.groups import VMLOAD_GROUP
from qemu_svm.x86.cpuid import is_legal_gpa
from qemu_svm.x86.registers import CR0, CR4, EFER, uses_pae

_IN_GUEST_MODE = NestedState(bits.GUEST_MODE, layout.FORMAT_SVM, layout.NESTED_STATE_SIZE)
_SAVE_CACHE = ("efer", "cr0", "cr3", "cr4", "dr6", "dr7")


def nested_copy_vmcb_control_to_cache(vcpu: KvmVcpu, control: Area) -> Area:
    """Copy the control fields that this kernel caches, masked as it does."""
    kernel = vcpu.kernel
    cache = Area("ctl cache")
    cache.copy_from(control, (name for name in control if name in kernel.control_fields))
    for name, mask in kernel.control_masks.items():
        cache.set(name, cache.get(name) & mask, cache.writer(name))
    intercepts = cache.get("intercepts")
    for instruction, feature in kernel.sanitises:
        if not vcpu.cpuid.has(feature):
            intercepts &= ~bits.INTERCEPTS.mask(instruction)
    cache.set("intercepts", intercepts, cache.writer("intercepts"))
    if kernel.sanitises:
        allowed = {"npt": 1 << 0, "gmet": 1 << 3}
        paging = cache.get("nested_ctl")
        for feature, bit in allowed.items():
            if not vcpu.cpuid.has(feature):
                paging &= ~bit
        cache.set("nested_ctl", paging, cache.writer("nested_ctl"))
    return cache


def nested_npt_enabled(vcpu: KvmVcpu) -> bool:
    """Whether L1 uses nested paging for L2."""
    return bool(vcpu.nested.ctl.get("nested_ctl") & 1)


def first_failure(vcpu: KvmVcpu, argument: Argument, *, late: bool = False) -> str | None:
    """Return the id of the first check that fails, in the kernel's order, or None.

    :param late: run the checks that come after the switch to L2 instead.
    """
    kernel = vcpu.kernel
    for name in kernel.set_nested_state:
        if name == LEAVE:
            if not argument.guest_mode:
                return None
            continue
        check = SET_NESTED_STATE[name]
        comes_late = kernel.late_cr3_check and check.stage is Stage.LOAD_CR3
        if comes_late is late and check.fails(vcpu, argument):
            return name
    return None


def svm_set_nested_state(vcpu: KvmVcpu, argument: Argument) -> str | None:
    """KVM_SET_NESTED_STATE (``kvm_arch_vcpu_ioctl`` and ``svm_set_nested_state``).

    :returns: the id of the check that failed, or None.
    """
    kernel, nested = vcpu.kernel, vcpu.nested
    writer = vcpu.writer("svm_set_nested_state")
    cached = argument.ctl
    failed = first_failure(vcpu, argument)
    if kernel.live_validation and argument.guest_mode and _reached_caches(failed):
        # v3: what is checked has been loaded into the live caches already.
        nested.ctl = cached.copy("ctl cache")
        _fill_save_cache(vcpu, argument.save)
        if failed and vcpu.guest_mode:
            vcpu.note("the call failed, but the caches in use for L2 now hold its values")
    if failed is not None:
        return failed
    if not argument.guest_mode:
        svm_leave_nested(vcpu)
        svm.svm_set_gif(vcpu, argument.nested.flags & bits.GIF_SET)
        return None
    if kernel.split:
        _enter_split(vcpu, argument, writer)
    else:
        _enter_single(vcpu, argument, writer)
    late = first_failure(vcpu, argument, late=True)
    if late is not None:
        vcpu.note("the call failed after the vCPU had entered guest mode; it stays in guest mode")
        return late
    _prepare_mmu(vcpu)
    vcpu.requests.add(PAGES)
    return None


def _reached_caches(failed: str | None) -> bool:
    return failed is None or SET_NESTED_STATE[failed].stage is not Stage.HEADER


def _fill_save_cache(vcpu: KvmVcpu, source: Area) -> None:
    vcpu.nested.save.copy_from(source, _SAVE_CACHE)


def _l2_cr3_into_cache(vcpu: KvmVcpu) -> None:
    # The review means L2's values.  With NPT KVM_SET_SREGS leaves CR3 in
    # vcpu->arch, and a VMCB gets it at KVM_RUN only (svm_load_mmu_pgd), so the
    # code as sketched would have cached what was in vmcb01 before.
    if vcpu.vmcb02.get("cr3") != vcpu.arch.get("cr3"):
        vcpu.note(
            f"the review means L2's CR3 {vcpu.arch.get('cr3'):#x}; taken literally, it would cache "
            f"{vcpu.vmcb02.get('cr3'):#x}, since KVM_SET_SREGS does not write CR3 to the VMCB"
        )
    vcpu.nested.save.copy_from(vcpu.arch, ("cr3",))


def _enter_split(vcpu: KvmVcpu, argument: Argument, writer: Writer) -> None:
    # vmcb01 and vmcb02: 5.13 and later.
    kernel, nested = vcpu.kernel, vcpu.nested
    if vcpu.guest_mode:
        svm_leave_nested(vcpu)
    else:
        # L2's registers, as far as user space has set them already.
        vcpu.vmcb02.copy_from(vcpu.vmcb01)
        if kernel.save_cache is SaveCacheFill.VMCB02:
            _fill_save_cache(vcpu, vcpu.vmcb02)
            _l2_cr3_into_cache(vcpu)
    svm.svm_set_gif(vcpu, argument.nested.flags & bits.GIF_SET)
    _set_run_pending(vcpu, argument)
    nested.vmcb12_gpa = argument.nested.vmcb_pa
    svm_copy_vmrun_state(vcpu.vmcb01, argument.save, writer)
    nested.ctl = argument.ctl.copy("ctl cache")
    if kernel.save_cache is SaveCacheFill.BLOB:
        _fill_save_cache(vcpu, argument.save)
    vcpu.guest_mode = True
    nested_vmcb02_prepare_control(vcpu, writer)
    if vcpu.host.separate_pat and nested_npt_enabled(vcpu):
        vcpu.vmcb02.set("g_pat", argument.nested.gpat, writer)


def _enter_single(vcpu: KvmVcpu, argument: Argument, writer: Writer) -> None:
    # One VMCB and hsave: up to 5.12.
    nested = vcpu.nested
    vcpu.hsave_control.clear()
    vcpu.hsave_control.copy_from(vcpu.control01)
    vcpu.hsave.clear()
    vcpu.hsave.copy_from(argument.save)
    if vcpu.guest_mode:
        vcpu.note("called in guest mode: L1's own controls are replaced by those merged for L2")
        svm_leave_nested(vcpu)
    if not vcpu.kernel.ignores_gif:
        svm.svm_set_gif(vcpu, argument.nested.flags & bits.GIF_SET)
    elif not argument.nested.flags & bits.GIF_SET:
        vcpu.note("this kernel ignores a clear GIF flag in guest mode")
    _set_run_pending(vcpu, argument)
    nested.vmcb12_gpa = argument.nested.vmcb_pa
    nested.ctl = argument.ctl.copy("ctl cache")
    vcpu.guest_mode = True
    nested_vmcb02_prepare_control(vcpu, writer)


_RUN_PENDING = {RunPending.IGNORED: 0, RunPending.KEPT: 1, RunPending.UNTRUSTED: 2}
"""Values of ``nested.run_pending``."""


def _set_run_pending(vcpu: KvmVcpu, argument: Argument) -> None:
    pending = bool(argument.nested.flags & bits.RUN_PENDING)
    vcpu.nested.run_pending = _RUN_PENDING[vcpu.kernel.run_pending] if pending else 0
    if pending and not vcpu.nested.run_pending:
        vcpu.note("this kernel ignores RUN_PENDING: an event that VMRUN injects may be lost")


def svm_copy_vmrun_state(target: Area, source: Area, writer: Writer) -> None:
    """Copy what VMRUN saves and #VMEXIT loads of L1 (5.13 to 7.2)."""
    for name in VMRUN_FIELDS:
        if name in source:
            target.set(name, source.content(name), writer)
    target.set("rflags", target.get("rflags") | 2, writer)
    target.set("cpl", 0, writer)


def nested_vmcb02_prepare_control(vcpu: KvmVcpu, writer: Writer) -> None:
    """Merge vmcb12's controls with those of vmcb01 (``nested_prepare_vmcb_control``)."""
    control, ctl = vcpu.current_control, vcpu.nested.ctl
    for name in ("int_vector", "int_state", "event_inj", "event_inj_err", "tsc_offset"):
        control.set(name, ctl.get(name), writer)
    merged = vcpu.control01.get("intercepts") | ctl.get("intercepts")
    control.set("intercepts", merged, writer)


def kvm_calc_cpu_role(vcpu: KvmVcpu, area: Area) -> None:
    """Work out the paging that an area selects; kills the VM if that is impossible (mmu.c).

    :param area: EFER, CR0 and CR4 of the level that pages.
    """
    paging = area.get("cr0") & CR0.mask("PG")
    lma, pae = area.get("efer") & EFER.mask("LMA"), area.get("cr4") & CR4.mask("PAE")
    if vcpu.kernel.lma_needs_pae and paging and lma and not pae:
        vcpu.dead = True
        vcpu.note("EFER.LMA is set and CR4.PAE clear: KVM kills the VM (KVM_BUG_ON)")


def _prepare_mmu(vcpu: KvmVcpu) -> None:
    if not nested_npt_enabled(vcpu):
        return
    kvm_calc_cpu_role(vcpu, vcpu.l1_save)
    vcpu.mmu = Mmu.GUEST
    if not vcpu.kernel.mmu_ready:
        vcpu.mmu_broken = MmuFault.UNINITIALISED
        vcpu.note(
            "KVM_SET_NESTED_STATE of this kernel does not set up the MMU for nested paging: the "
            "first access of L2 that KVM must emulate crashes the host kernel, unless "
            "KVM_SET_SREGS changes CR0, CR3, CR4 or EFER first"
        )


def nested_svm_load_cr3(vcpu: KvmVcpu, cr3: int, writer: Writer) -> bool:
    """Load CR3 of the level that is entered; return False if it is not a legal address."""
    if not is_legal_gpa(vcpu.cpuid, cr3):
        return False
    vcpu.arch.set("cr3", cr3, writer)
    return True


def nested_svm_vmrun_msrpm(vcpu: KvmVcpu) -> bool:
    """Merge L1's MSR bitmap (``nested_svm_merge_msrpm`` since 7.x); False if unreadable."""
    ctl = vcpu.nested.ctl
    if not ctl.get("intercepts") & bits.INTERCEPTS.mask("MSR_PROT"):
        return True
    return vcpu.backed(ctl.get("msrpm_base_pa"), 0x2000)


def svm_get_nested_state_pages(vcpu: KvmVcpu) -> bool:
    """Do what KVM_SET_NESTED_STATE left to the first run; False ends KVM_RUN."""
    pae = uses_pae(vcpu.arch.get("cr0"), vcpu.arch.get("cr4"), vcpu.arch.get("efer"))
    if pae and not vcpu.pdptrs_from_userspace:
        vcpu.note("L2 uses PAE paging: its PDPTEs are read from memory at the first run")
    return nested_svm_vmrun_msrpm(vcpu)


def nested_sync_control_from_vmcb02(vcpu: KvmVcpu) -> None:
    """Take over what changed in L2's controls.

    The processor clears the event to inject; KVM may have injected another one, and left its
    error code.  Before 5.13 ``sync_nested_vmcb_control``.
    """
    writer = vcpu.writer("nested_sync_control_from_vmcb02")
    for control in (vcpu.current_control, vcpu.nested.ctl):
        control.set("event_inj", 0, writer)
    error = vcpu.current_control.get("event_inj_err")
    if error != vcpu.nested.ctl.get("event_inj_err"):
        vcpu.nested.ctl.set("event_inj_err", error, writer)


def nested_svm_vmexit(vcpu: KvmVcpu) -> bool:
    """#VMEXIT from L2 to L1; return False if L1 does not run afterwards.

    Writes L2's state to vmcb12 in memory and loads L1's from where it was kept.
    Neither reads nor writes the save cache.  Without vmcb12 the vCPU stays in guest mode, or
    a triple fault follows, by kernel; it does as well if L1's CR3 cannot be loaded.
    """
    kernel, nested = vcpu.kernel, vcpu.nested
    writer = vcpu.writer("nested_svm_vmexit")
    mapped = vcpu.backed(nested.vmcb12_gpa, 4096)
    if not mapped:
        vcpu.note("vmcb12 is not in guest memory, so L2's state cannot be written to it")
        if not kernel.exit_without_vmcb12:
            return False
    else:
        _write_vmcb12(vcpu)
    vcpu.guest_mode = False
    nested.vmcb12_gpa = 0
    vcpu.requests.discard(PAGES)
    vcpu.mp_state = RUNNABLE
    if not kernel.split:
        vcpu.control01.clear()
        vcpu.control01.copy_from(vcpu.hsave_control)
    svm.svm_set_gif(vcpu, 0)
    nested.ctl.set("nested_cr3", 0, writer)
    source = vcpu.l1_save.copy()
    if not kernel.split:
        vcpu.vmcb01.copy_from(source, ("es", "cs", "ss", "ds", "gdtr", "idtr"))
        vcpu.vmcb01.set("cpl", 0, writer)
    svm.svm_set_rflags(vcpu, source.get("rflags"), source.writer("rflags"))
    svm.svm_set_efer(vcpu, source.get("efer"), source.writer("efer"))
    svm.svm_set_cr0(vcpu, source.get("cr0") | CR0.mask("PE"), source.writer("cr0"))
    _load_l1_cr4(vcpu, source)
    vcpu.arch.copy_from(source, ("rax", "rsp", "rip"))
    vcpu.vmcb01.copy_from(source, ("rax", "rsp", "rip"))
    vcpu.vmcb01.set("dr7", kernel.l1_dr7, writer)
    if kernel.split:
        vcpu.arch.set("dr7", kernel.l1_dr7, writer)
    vcpu.mmu, vcpu.mmu_broken = Mmu.ROOT, None
    loaded = nested_svm_load_cr3(vcpu, source.get("cr3"), source.writer("cr3"))
    kvm_calc_cpu_role(vcpu, vcpu.arch)
    nested.save_valid = False
    if not kernel.split and not loaded:
        vcpu.note("L1's CR3 is not a legal address: L1 continues with L2's page tables")
        return mapped
    vcpu.vmcb01.copy_from(source, ("cr3",))
    return loaded and mapped


def _load_l1_cr4(vcpu: KvmVcpu, source: Area) -> None:
    # svm_set_cr0 may just have written L2's CR4 over the one that is read here.
    kept = vcpu.vmcb01 if vcpu.kernel.split else source
    value = kept.get("cr4")
    if value != source.get("cr4"):
        vcpu.note(
            f"without nested paging on the host, leaving an L2 without paging replaces L1's CR4 "
            f"{source.get('cr4'):#x} with {value:#x}: L2's, with PAE and MCE set"
        )
    svm.svm_set_cr4(vcpu, value, kept.writer("cr4"))


_FROM_VMCB02 = ("es", "cs", "ss", "ds", "gdtr", "idtr", "rflags", "dr7", "cpl")
_FROM_ARCH = ("efer", "cr0", "cr3", "cr2", "cr4", "rip", "rsp", "rax", "dr6")


def _write_vmcb12(vcpu: KvmVcpu) -> None:
    vcpu.vmcb12.copy_from(vcpu.current, _FROM_VMCB02)
    vcpu.vmcb12.copy_from(vcpu.arch, _FROM_ARCH)
    vcpu.vmcb12_control.copy_from(vcpu.nested.ctl)
    vcpu.vmcb12_control.copy_from(vcpu.current_control, ("int_state",))


def nested_svm_vmrun(vcpu: KvmVcpu, race: Mapping[str, int] | None = None) -> str | None:
    """VMRUN executed by L1 on the vmcb12 that the last #VMEXIT wrote.

    :param race: fields of vmcb12 that another vCPU of L1 changes in memory after KVM checked
        them and before it uses them.
    :returns: why VMRUN failed, or None.
    """
    kernel, rules = vcpu.kernel, vcpu.kernel.vmrun
    if rules.hsave_needed and not vcpu.arch.get("vm_hsave_pa"):
        return "#GP: VM_HSAVE_PA is 0"
    if vcpu.smm:
        return "#UD: VMRUN in SMM"
    writer = vcpu.writer("nested_svm_vmrun")
    memory = vcpu.vmcb12
    vcpu.nested.ctl = nested_copy_vmcb_control_to_cache(vcpu, vcpu.vmcb12_control)
    if kernel.has_save_cache:
        vcpu.nested.save.copy_from(memory, (name for name in memory if name in rules.cached))
        vcpu.nested.save_valid = True
    checked = memory.copy("vmcb12 as checked")
    argument = Argument(_IN_GUEST_MODE, vcpu.nested.ctl, checked)
    for name in (*rules.save_checks, *kernel.set_nested_state):
        if name == LEAVE:
            continue
        check = SET_NESTED_STATE[name]
        if check.stage.in_vmrun and check.fails(vcpu, argument):
            return f"exit INVALID: check {name}"
    _race_controls(vcpu, race or {})
    for name, value in (race or {}).items():
        if name not in CONTROL:
            memory.set(name, value, Writer(vcpu.step, "race"))
    _save_l1(vcpu)
    used = memory.copy("vmcb12 as used")
    used.copy_from(vcpu.save_cache(rules.cached, "nested_svm_vmrun") if rules.cached else Area(""))
    for name in race or {}:
        if name not in CONTROL:
            _note_race(vcpu, name, checked.get(name), used.get(name))
    failed = enter_svm_guest_mode(vcpu, used, writer)
    if failed is not None and race:
        vcpu.unchecked.append(failed)
    return failed


def _race_controls(vcpu: KvmVcpu, race: Mapping[str, int]) -> None:
    # Before 5.12 the control area in memory is checked, then copied (CVE-2021-29657).
    names = [name for name in race if name in CONTROL]
    checked = vcpu.nested.ctl
    for name in names:
        vcpu.vmcb12_control.set(name, race[name], Writer(vcpu.step, "race"))
    if names and not vcpu.kernel.vmrun.controls_cached:
        vcpu.nested.ctl = nested_copy_vmcb_control_to_cache(vcpu, vcpu.vmcb12_control)
    for name in names:
        _note_race(vcpu, name, checked.get(name), vcpu.nested.ctl.get(name))


def _note_race(vcpu: KvmVcpu, name: str, checked: int, used: int) -> None:
    rules = vcpu.kernel.vmrun
    if name == "efer" and rules.svme_forced:
        used |= 1 << 12
    if used == checked:
        vcpu.note(f"{name} was checked and used as {used:#x}: the race has no effect")
    elif name in rules.checked or name in CHECKED:
        cause = " (CVE-2021-29657)" if name in CONTROL else ""
        text = f"L2 runs with {name} {used:#x}, which was never checked: {checked:#x} was{cause}"
        vcpu.note(text)
        vcpu.unchecked.append(text)
    else:
        vcpu.note(f"{name} is not checked, and L1 may choose it: L2 runs with {used:#x}")


def _save_l1(vcpu: KvmVcpu) -> None:
    area = vcpu.l1_save
    if not vcpu.kernel.split:
        area.copy_from(vcpu.vmcb01, ("es", "cs", "ss", "ds", "gdtr", "idtr", "rsp", "rax"))
        vcpu.hsave_control.clear()
        vcpu.hsave_control.copy_from(vcpu.control01)
    area.copy_from(vcpu.arch, ("efer", "cr0", "cr3", "cr4", "rip", "rsp", "rax"))
    area.copy_from(vcpu.vmcb01, ("rflags",))


def enter_svm_guest_mode(
    vcpu: KvmVcpu, save: Area, writer: Writer, *, merged: bool = True
) -> str | None:
    """Load L2 from vmcb12; return why that failed, or None.

    :param merged: the MSR bitmap is merged at once; RSM leaves that to the next KVM_RUN.
    """
    nested = vcpu.nested
    nested.vmcb12_gpa = nested.last_vmcb12_gpa = vcpu.vmcb12.get("address")
    vcpu.guest_mode = True
    nested_vmcb02_prepare_control(vcpu, writer)
    if not nested_vmcb02_prepare_save(vcpu, save, writer):
        return "EFER.SVME was cleared while L2 was being entered: the nested state was freed in use"
    if not nested_svm_load_cr3(vcpu, save.get("cr3"), save.writer("cr3")):
        vcpu.guest_mode = False
        return "exit INVALID: L2's CR3 is not a legal address"
    if merged and not nested_svm_vmrun_msrpm(vcpu):
        vcpu.guest_mode = False
        return "exit INVALID: L1's MSR bitmap is not in guest memory"
    svm.svm_set_gif(vcpu, 1)
    nested.run_pending = 1
    return None


def nested_vmcb02_prepare_save(vcpu: KvmVcpu, save: Area, writer: Writer) -> bool:
    """Load L2's save area; return False if the vCPU left guest mode in the process."""
    target = vcpu.current
    if vcpu.kernel.split:
        target.copy_from(vcpu.vmcb01, VMLOAD_GROUP)
    target.copy_from(save, ("es", "cs", "ss", "ds", "cpl", "gdtr", "idtr"))
    svm.svm_set_rflags(vcpu, save.get("rflags") | 2, save.writer("rflags"))
    efer = save.get("efer")
    if vcpu.kernel.vmrun.svme_forced:
        efer |= 1 << 12
    svm.svm_set_efer(vcpu, efer, save.writer("efer"))
    if not vcpu.guest_mode:
        return False
    svm.svm_set_cr0(vcpu, save.get("cr0"), save.writer("cr0"))
    svm.svm_set_cr4(vcpu, save.get("cr4"), save.writer("cr4"))
    vcpu.arch.copy_from(save, ("cr2", "rax", "rsp", "rip"))
    target.copy_from(save, ("rax", "rsp", "rip"))
    target.set("dr7", save.get("dr7") | 0x400, save.writer("dr7"))
    vcpu.arch.set("dr6", save.get("dr6") | 0xFFFF0FF0, save.writer("dr6"))
    vcpu.note(f"loaded from vmcb12 by {writer.function}")
    return True


def svm_get_nested_state(vcpu: KvmVcpu) -> NestedState:
    """Return the header that KVM_GET_NESTED_STATE writes to a buffer of the full size."""
    flags = bits.GIF_SET if vcpu.gif else 0
    if vcpu.guest_mode:
        flags |= bits.GUEST_MODE
        if vcpu.nested.run_pending:
            flags |= bits.RUN_PENDING
    if not vcpu.guest_mode:
        return NestedState(flags, layout.FORMAT_SVM, layout.UAPI_HEADER_SIZE)
    return NestedState(flags, layout.FORMAT_SVM, layout.NESTED_STATE_SIZE, vcpu.nested.vmcb12_gpa)


def kvm_get_nested_state(vcpu: KvmVcpu, size: int) -> str | None:
    """KVM_GET_NESTED_STATE with a buffer whose ``size`` field has this value (x86.c).

    :returns: the id of the check that failed, or None.
    """
    if size < layout.UAPI_HEADER_SIZE:
        vcpu.note(
            f"only ``size`` is written back, as {layout.UAPI_HEADER_SIZE} even in guest mode: "
            "KVM_CAP_NESTED_STATE has the full size"
        )
        return "GET-01"
    if size < svm_get_nested_state(vcpu).size:
        whole = layout.NESTED_STATE_SIZE
        vcpu.note(f"all {whole} bytes are written although the buffer has {size}")
        return "GET-02"
    return None
