"""What one kernel does when nested SVM state is restored, as data.

A profile says which checks run in which order and which transitions follow; the model
consults it and never compares versions.  It is derived from the table of changes
(:mod:`qemu_svm.model.kernels.table`).

Source: Linux ``arch/x86/kvm/svm/nested.c``, ``svm.c``, ``arch/x86/kvm/x86.c``,
``cpuid.c`` of the versions named; the patch series "nSVM: introduce
svm->nested.save to cache save area fields" (v3 of 11 October 2021, its review
of 22 October, v4 and v5 of 3 November).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

LEAVE = "leave"
"""Marks the place in ``set_nested_state`` where a call without GUEST_MODE returns."""

SREGS2_CHECK = "R-08"
"""The check that KVM_SET_SREGS2 makes before those of KVM_SET_SREGS."""

_ORDER = (
    *("SET-03", "SET-04", "SET-05", "SV-01", "SV-02", "SV-03", "SV-03b", "SV-04", LEAVE),
    *("SV-05", "SV-06", "C-01", "C-02", "C-03", "C-03b", "C-04", "C-05", "C-06", "C-07", "C-08"),
    *("SV-10", "SV-11", "SV-12", "SV-13", "SV-14", "SV-18", "S-01", "S-02", "S-03", "S-04", "S-05"),
    *("S-06", "S-07", "S-09", "S-10", "S-11", "SV-17", "SV-16"),
)


def in_order(*groups: str | Iterable[str]) -> tuple[str, ...]:
    """Return checks in the order in which every kernel makes those that it has."""
    wanted = {one for group in groups for one in ([group] if isinstance(group, str) else group)}
    return tuple(check for check in _ORDER if check in wanted)


class SaveCacheFill(StrEnum):
    """What KVM_SET_NESTED_STATE copies into ``nested.save``."""

    NONE = "none"
    BLOB = "blob"
    """L1's values."""
    VMCB02 = "vmcb02"
    """L2's, unless the vCPU was in guest mode already."""


class RunPending(StrEnum):
    """What KVM_SET_NESTED_STATE does with RUN_PENDING."""

    IGNORED = "ignored"
    KEPT = "kept"
    UNTRUSTED = "untrusted"
    """Kept, and marked as coming from user space (7.2)."""


class LateCpuid(StrEnum):
    """What KVM_SET_CPUID2 does in guest mode."""

    HARMLESS = "harmless"
    EFAULT = "efault"
    """The next KVM_RUN fails, with nested paging of an L1 in long mode."""
    HANG = "hang"
    """The next KVM_RUN does not return, in the same case."""
    REFUSED = "refused"
    """EINVAL if it changes anything."""


class Shutdown(StrEnum):
    """What a triple fault of the guest does to the vCPU."""

    RESET = "reset"
    """The processor reports it (intercept SHUTDOWN): the VMCB is as after a reset."""
    KEPT = "kept"
    """KVM intercepts #GP and sees it first: nothing changes."""


class SysenterCut(StrEnum):
    """When the SYSENTER addresses are cut to 32 bits."""

    NEVER = "never"
    ALWAYS = "always"
    CPUID = "cpuid"
    """Once there is a CPUID, which is AMD's."""


@dataclass(frozen=True, slots=True)
class Vmrun:
    """How VMRUN reads vmcb12.

    :param hsave_needed: #GP if VM_HSAVE_PA is 0.
    :param cached: save fields that are copied first, then checked, then used.
    :param checked: save fields that are checked.
    :param controls_cached: the control area is copied before it is checked.
    :param svme_forced: EFER.SVME is set again when memory is read a second time.
    :param save_checks: checks of the save area that KVM_SET_NESTED_STATE does not make.
    """

    hsave_needed: bool
    cached: frozenset[str]
    checked: frozenset[str]
    svme_forced: bool
    save_checks: tuple[str, ...] = ()
    controls_cached: bool = False


_SIX = frozenset({"efer", "cr0", "cr3", "cr4", "dr6", "dr7"})


@dataclass(frozen=True, slots=True)
class Profile:
    """One kernel, or all kernels of a span that behave alike.

    :param measured: releases whose answers to real ioctls were compared with this behaviour.
    :param read: sources and changelogs in which it was read.
    :param numbers: the release; zeros for a proposal.
    :param row: name of the span of releases that it is in.
    :param split: vmcb01 and vmcb02; otherwise one VMCB and an ``hsave`` page.
    :param set_nested_state: ids of the checks of KVM_SET_NESTED_STATE, in order.
    :param sregs: ids of the checks of KVM_SET_SREGS.
    :param live_validation: the checks fill the live caches, so a call that
        fails pollutes them.
    :param save_cache: what KVM_SET_NESTED_STATE copies into ``nested.save``.
    :param has_save_cache: ``nested.save`` exists.
    :param ignores_gif: KVM_SET_NESTED_STATE with GUEST_MODE leaves GIF as it is.
    :param run_pending: what it does with RUN_PENDING.
    :param late_cr3_check: L2's CR3 is checked after the switch to L2, so a call that
        fails there leaves the vCPU in guest mode; otherwise before it, if at all.
    :param mmu_ready: nested paging works for L2 right after the call.
    :param leave_sets_gif: leaving guest mode by force sets GIF.
    :param svme_clear_sets_gif: clearing EFER.SVME sets GIF.
    :param smm_leaves: toggling SMM by KVM_SET_VCPU_EVENTS leaves guest mode.
    :param blank_cpuid_counts: KVM_SET_SREGS checks CR4 against the guest's CPUID even
        before it is set.
    :param late_cpuid: what KVM_SET_CPUID2 does in guest mode.
    :param cpuid_fixed: once a vCPU has run, KVM_SET_CPUID2 does nothing if it changes nothing,
        and is refused otherwise.
    :param pages_rearmed: a failed merge of the MSR bitmap is repeated by the next KVM_RUN.
    :param exit_without_vmcb12: a #VMEXIT whose vmcb12 is not mapped loads L1 first.
    :param lma_needs_pae: KVM kills the VM (``KVM_BUG_ON`` in ``kvm_calc_cpu_role``) if EFER.LMA
        meets CR4.PAE clear with paging.
    :param exceptions_morphed: an exception that L1 intercepts becomes a #VMEXIT when it is
        raised; otherwise when it is injected, after a second one has made it a double fault.
    :param shutdown: what is left of a vCPU whose guest has had a triple fault.
    :param l1_dr7: DR7 after a #VMEXIT.
    :param l2_vmmcall: KVM intercepts VMMCALL while L2 runs even if L1 does not.
    :param has_sregs2: KVM_SET_SREGS2 exists.
    :param base_msrs: KVM_SET_MSRS accepts FS_BASE and GS_BASE.
    :param tsc_ratio_msr: it accepts TSC_RATIO.
    :param same_apic_base: an APIC base that does not change is not checked.
    :param forces_bsp: without an APIC in the kernel, the BSP flag is added to the APIC base.
    :param pat_needs_npt: PAT does not reach the VMCB without NPT.
    :param paging_writes_cr4: without NPT, a CR0 that changes paging writes CR4 as well, and
        on a #VMEXIT L1 gets that of an L2 without paging.
    :param reset_rdx: RDX of a fresh vCPU.
    :param gif_blocks_init: KVM_SET_MP_STATE refuses INIT and SIPI while GIF is clear,
        in SMM or with an SMI pending, and KVM_SET_VCPU_EVENTS refuses SMM while INIT or
        SIPI is pending; otherwise KVM_RUN refuses.
    :param init_intercept_blocks: it refuses them as well while L2 runs and L1 intercepts INIT.
    :param mp_states: states that KVM_SET_MP_STATE accepts besides 0; None for any.
    :param triple_fault: KVM_SET_VCPU_EVENTS has a flag for a triple fault; as its
        capability is not enabled, the call fails after everything else is set.
    :param sysenter: when the SYSENTER addresses are cut to 32 bits.
    :param control_fields: control fields that are cached and returned.
    :param control_masks: the bits of some of them that are kept.
    :param sanitises: intercepts that are cleared unless L1's CPUID has the feature.
    """

    name: str
    about: str
    measured: tuple[str, ...]
    read: tuple[str, ...]
    split: bool
    set_nested_state: tuple[str, ...]
    sregs: tuple[str, ...]
    vmrun: Vmrun
    live_validation: bool = False
    save_cache: SaveCacheFill = SaveCacheFill.NONE
    has_save_cache: bool = True
    ignores_gif: bool = False
    run_pending: RunPending = RunPending.KEPT
    late_cr3_check: bool = False
    mmu_ready: bool = True
    leave_sets_gif: bool = False
    svme_clear_sets_gif: bool = True
    smm_leaves: bool = True
    blank_cpuid_counts: bool = False
    late_cpuid: LateCpuid = LateCpuid.HARMLESS
    cpuid_fixed: bool = True
    pages_rearmed: bool = False
    exit_without_vmcb12: bool = False
    lma_needs_pae: bool = False
    exceptions_morphed: bool = False
    shutdown: Shutdown = Shutdown.RESET
    l1_dr7: int = 0x400
    l2_vmmcall: bool = False
    has_sregs2: bool = True
    base_msrs: bool = True
    tsc_ratio_msr: bool = True
    same_apic_base: bool = False
    forces_bsp: bool = True
    paging_writes_cr4: bool = False
    pat_needs_npt: bool = False
    reset_rdx: int = 0x600
    gif_blocks_init: bool = True
    init_intercept_blocks: bool = False
    mp_states: frozenset[int] | None = None
    triple_fault: bool = False
    sysenter: SysenterCut = SysenterCut.ALWAYS
    control_fields: frozenset[str] = frozenset()
    control_masks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    sanitises: tuple[tuple[str, str], ...] = ()
    numbers: tuple[int, int, int] = (0, 0, 0)
    row: str = ""

    @property
    def checks(self) -> frozenset[str]:
        """Ids of everything that this kernel checks on a restore."""
        second = {SREGS2_CHECK} if self.has_sregs2 else set()
        return frozenset(self.set_nested_state) - {LEAVE} | set(self.sregs) | second


_CONTROL_5_8 = frozenset(
    {"intercepts", "iopm_base_pa", "msrpm_base_pa", "tsc_offset", "asid", "tlb_ctl", "int_ctl"}
    | {"int_vector", "int_state", "exit_code", "exit_info_1", "exit_info_2", "exit_int_info"}
    | {"exit_int_info_err", "nested_ctl", "event_inj", "event_inj_err", "nested_cr3", "virt_ext"}
    | {"pause_filter_count", "pause_filter_thresh"}
)
_PAGE = (1 << 64) - 1 & ~0xFFF
_BITMAPS = MappingProxyType({"iopm_base_pa": _PAGE, "msrpm_base_pa": _PAGE})
_FIRST = (
    *("SET-03", "SET-04", "SET-05", "SV-01", "SV-02", "SV-03", "SV-04", LEAVE),
    *("SV-05", "SV-06", "C-01", "C-02"),
)
FIRST = Profile(
    name="5.8",
    about="first kernel that restores nested SVM; also 5.9",
    measured=(),
    read=("commits of the 5.8 and 5.9 cycles",),
    split=False,
    set_nested_state=in_order(_FIRST, "C-03", "SV-10", "SV-11"),
    sregs=("R-01", "R-02", "R-03", "R-07"),
    vmrun=Vmrun(
        hsave_needed=False,
        cached=frozenset(),
        checked=_SIX,
        svme_forced=False,
        save_checks=("S-01", "S-02", "S-04", "S-05", "S-06", "S-07", "S-10"),
    ),
    has_save_cache=False,
    run_pending=RunPending.IGNORED,
    mmu_ready=False,
    sysenter=SysenterCut.NEVER,
    smm_leaves=False,
    l1_dr7=0,
    has_sregs2=False,
    cpuid_fixed=False,
    base_msrs=False,
    init_intercept_blocks=True,
    tsc_ratio_msr=False,
    reset_rdx=0,
    control_fields=_CONTROL_5_8,
    control_masks=_BITMAPS,
    numbers=(5, 8, 0),
)
"""The first kernel that restores nested SVM; the table of changes begins with it."""
