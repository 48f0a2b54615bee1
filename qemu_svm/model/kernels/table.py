"""The changes of KVM's nested SVM since Linux 5.8, fix by fix.

Boundaries of 5.10, 6.1, 6.12, 7.2 and 7.3 were read in the changelogs of Debian's
linux 5.10.262-1, 6.1.192-3, 6.12.118-1, 7.2.13-1 and 7.3.4-1 (package linux-libc-dev)
and in the sources of 5.10.223, 5.10.262, 6.1.170, 6.1.192, 6.12.107 to 6.12.118, 7.2.13
and 7.3.4; those of 5.15, 6.6 and 6.18 in the announcements of stable updates; those of
changes with a CVE number in its record (CVEProject/cvelistV5) as well, which for 7.0 is
the only source: 7.0.4 is in the records of CVE-2026-45987, -46014, -46032, -46059, -46071,
-46076 and -46082, and what else 6.18.27 has is taken to be in 7.0.4 too.  5.10.60 is in
the list of commits of linux-5.10.y (c0883f693187 and 3dc5666baf2a, before v5.10.60).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qemu_svm.model.kernels.changes import Change, Evidence, Side, numbers
from qemu_svm.model.profile import LateCpuid, RunPending, Shutdown, SysenterCut

_READ, _MEASURED, _DERIVED = Evidence.READ, Evidence.MEASURED, Evidence.DERIVED
_DEBIAN = "Debian's changelogs"
_REVIEWS = "Debian's changelogs; stable review lists"
_LISTS = "Debian's changelogs; announcements of stable updates"
_RECORD = "Debian's changelogs; the CVE's record"

_SIX = frozenset({"efer", "cr0", "cr3", "cr4", "dr6", "dr7"})
_EVERYTHING = _SIX | {
    *("es", "cs", "ss", "ds", "gdtr", "idtr", "cpl", "rflags", "rip", "rsp", "rax", "cr2"),
    "g_pat",
}
_PAGE = (1 << 64) - 1 & ~0xFFF
_MP_STATES = frozenset({1, 2, 3, 4, 9})  # uninitialised, INIT, halted, SIPI, reset hold

_JANUARY = ("5.10.248", "5.15.198", "6.1.160", "6.6.120", "6.12.64", "6.18.3")
"""Updates of 29 December 2025 to 19 January 2026."""
_MAY_7 = ("7.0.4", "6.18.27")
_MAY_6_12 = (*_MAY_7, "6.12.86")
_MAY_6_6 = (*_MAY_6_12, "6.6.140")
_MAY_6_1 = (*_MAY_6_6, "6.1.175")
_MAY_5_15 = (*_MAY_6_1, "5.15.209")
_MAY_5_10 = (*_MAY_5_15, "5.10.258")

_BEHAVIOUR: tuple[Change, ...] = (
    Change(
        "msr-bitmap-merged", "L1's MSR bitmap is merged when nested state is restored",
        "5.9", ("772b81bb2f9b",), source="commit",
    ),
    Change(
        "gif-lost", "the GIF flag is ignored when guest mode is restored",
        "5.10", until="5.13", evidence=_MEASURED, source="5.10.223, 5.10.262",
        sets={"ignores_gif": True},
    ),
    Change(
        "run-pending-restored", "RUN_PENDING is restored",
        "5.11", ("81f76adad560",), source="commit; absent in 5.10.262",
        sets={"run_pending": RunPending.KEPT},
    ),
    Change(
        "controls-cached-first", "VMRUN checks its copy of the control area",
        "5.12", ("a58d9166a756",), ("5.10.28", "5.11.12"), cve=("CVE-2021-29657",),
        evidence=_READ, source=_DEBIAN, sets={"vmrun.controls_cached": True},
    ),
    Change(
        "svme-kept", "EFER.SVME cannot be cleared by VMRUN's second read or by the blob",
        "5.12", ("3c346c0c60ab",), ("5.10.28", "5.11.12"),
        evidence=_READ, source=f"{_DEBIAN}; source of 5.10.262",
        gains=("SV-12",), sets={"vmrun.svme_forced": True},
    ),
    Change(
        "gp-intercepted", "#GP of the guest is intercepted, so that KVM sees a triple fault "
        "before the processor does and keeps the vCPU's state",
        "5.12", ("82a11e9c6fa2",), source="measured on 6.1; commit",
        sets={"shutdown": Shutdown.KEPT},
    ),
    Change(
        "vmcb-split", "L1 and L2 have a VMCB each",
        "5.13", ("4995a3685f1b",), source="commit",
        sets={
            "split": True, "vmrun.save_checks": (), "sysenter": SysenterCut.ALWAYS, "l1_dr7": 0x400,
            "init_intercept_blocks": False,
        },
    ),
    Change(
        "l1-state-checked", "L1's registers in the blob are checked",
        "5.13", ("6906e06db9b0",), evidence=_MEASURED,
        source="commit"
        "; without it 5.10.262; with it 6.1.174",
        gains=(
            "SV-13", "SV-14", "S-01", "S-02", "S-03", "S-04", "S-05", "S-06", "S-07", "S-10",
            "S-11",
        ),
        loses=("SV-12",),
    ),
    Change(
        "bitmap-addresses", "addresses of the MSR and I/O permission maps are checked",
        "5.13", ("ee695f22b54a",), source="commit", gains=("C-04", "C-05"),
    ),
    Change(
        "gif-restored", "the GIF flag is restored in guest mode as well",
        "5.13", ("063ab16c14db",), source="commit", sets={"ignores_gif": False},
    ),
    Change(
        "nested-mmu-initialised", "nested paging of L2 is set up after a restore",
        "5.13", ("232f75d3b4b5",), source="commit; absent in 5.10.262", sets={"mmu_ready": True},
    ),
    Change(
        "svm-vmload-fields-kept", "VMLOAD state of L1 is not overwritten by the blob",
        "5.13", ("c08f390a75c1",), source="commit",
    ),
    Change(
        "l2-cr3-checked", "L2's CR3 is loaded and checked, but before the switch to L2: nested "
        "paging is not set up",
        "5.14", source="source of 5.14", gains=("SV-16",), sets={"mmu_ready": False},
    ),
    Change(
        "sregs2", "KVM_SET_SREGS2 exists", "5.14", ("6dba94035203",), source="commit",
        sets={"has_sregs2": True},
    ),
    Change(
        "hsave-needed", "VMRUN needs VM_HSAVE_PA; SMM entry keeps L1's state there",
        "5.14", ("fb79f566e4c8", "37be407b2ce8"), source="commits",
        sets={"vmrun.hsave_needed": True},
    ),
    Change(
        "cpuid-resets-mmu", "KVM_SET_CPUID2 resets the roles of the MMUs, that of L2 wrongly",
        "5.14", ("49c6f8756cdf",), source="measured on 6.1; the first release is derived",
        sets={"late_cpuid": LateCpuid.EFAULT},
    ),
    Change(
        "int-ctl-bits", "AVIC_ENABLE and other bits of L1's int_ctl do not reach vmcb02",
        "5.14", ("0f923e07124d",), ("5.10.60", "5.13.12"), cve=("CVE-2021-3653",),
        evidence=_READ, source="commits of v5.10.60; Debian's 5.10.46-5 has it as a patch",
    ),
    Change(
        "vmload-intercepted", "VMLOAD and VMSAVE of L2 are always intercepted",
        "5.14", ("c7dfa4009965",), ("5.10.60", "5.13.12"), cve=("CVE-2021-3656",),
        evidence=_READ, source="commits of v5.10.60; Debian's 5.10.46-5 has it as a patch",
    ),
    Change(
        "reset-rdx", "a fresh vCPU without CPUID has RDX 0x600", "5.15", ("49d8665cc20b",),
        source="measured on 6.1; the first release is derived", sets={"reset_rdx": 0x600},
    ),
    Change(
        "bsp-flag", "without an APIC in the kernel, the APIC base is what user space wrote, "
        "without the BSP flag added", "5.15",
        source="measured on 5.10.223, absent in 6.1.176; the first release is derived",
        sets={"forces_bsp": False},
    ),
    Change(
        "virt-ext-kept", "virt_ext of vmcb12 is not copied into vmcb02", "5.15",
        ("faf6b7556296",), ("5.10.71", "5.14.10"), evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "tlb-control", "tlb_ctl other than 0 and 1 is refused, though the values are legal",
        "5.16", ("174a921b6975", "a484755ab252"), until="6.8",
        reverted=("6.1.76", "6.6.14", "6.7.2"), evidence=_READ, source=_DEBIAN,
        gains=("C-06",),
    ),
    Change(
        "cpuid-fixed", "KVM_SET_CPUID2 of a vCPU that has run changes nothing", "5.16",
        ("feb627e8d6f6", "c6617c61e8fe"), evidence=_READ, source="commits",
        sets={"cpuid_fixed": True},
    ),
    Change(
        "tsc-ratio", "KVM_SET_MSRS knows TSC_RATIO", "5.16", ("5228eb96a487",), source="commit",
        sets={"tsc_ratio_msr": True},
    ),
    Change(
        "save-cache", "VMRUN copies the registers that it checks, and uses the copy",
        "5.17", ("f2740a8d851a", "355d0473b1a1"), source="commits; source of 6.1",
        sets={"vmrun.cached": _SIX, "has_save_cache": True},
    ),
    Change(
        "nested-migration-null", "L2's CR3 is loaded after the switch to L2, so that nested "
        "paging is set up",
        "5.17", ("e1779c2714c3",), ("5.15.25", "5.16.11"), cve=("CVE-2022-48793",),
        evidence=_READ, source=_LISTS, sets={"mmu_ready": True, "late_cr3_check": True},
    ),
    Change(
        "smm-toggle-leaves", "a change of SMM by KVM_SET_VCPU_EVENTS leaves guest mode",
        "5.17", ("f7e570780efc",), ("5.10.97", "5.15.19", "5.16.5"), cve=("CVE-2022-48763",),
        evidence=_READ, source=_LISTS, sets={"smm_leaves": True},
    ),
    Change(
        "cr0-writes-cr4", "without NPT a change of CR0.PG writes CR4 as well",
        "5.17", ("c53bbe2145f5",), ("5.15.25", "5.16.11"), evidence=_READ, source=_LISTS,
        sets={"paging_writes_cr4": True},
    ),
    Change(
        "next-rip", "NextRIP of vmcb12 is kept", "5.19", ("00f08d99dd7d",), source="commit",
        side=Side.BOTH, adds={"control_fields": frozenset({"next_rip"})},
    ),
    Change(
        "triple-fault-event", "KVM_SET_VCPU_EVENTS knows a pending triple fault",
        "6.0", ("ed2351174e38",), source="commit", sets={"triple_fault": True},
    ),
    Change(
        "leave-on-reset", "a reset or the end of a vCPU leaves guest mode before vmcb02 is freed",
        "6.1", ("16ae56d7e052", "917401f26a6a", "ed129ec9057f"), ("5.10.157", "5.15.81", "6.0.11"),
        cve=("CVE-2022-3344",), evidence=_READ,
        source=f"{_DEBIAN}; the record of CVE-2025-37957; 5.10.157 has a part",
    ),
    Change(
        "exceptions-morphed", "an exception that L1 intercepts becomes a #VMEXIT when it is raised",
        "6.1", ("7709aba8f716",), source="measured on 5.10.223 and 6.12.117; commit",
        sets={"exceptions_morphed": True},
    ),
    Change(
        "mp-states", "KVM_SET_MP_STATE refuses states that are not x86's", "6.1",
        source="source of 6.1; the first release is derived", sets={"mp_states": _MP_STATES},
    ),
    Change(
        "vnmi", "virtual NMI: V_NMI_ENABLE needs the NMI intercept", "6.4", ("0977cfac6e76",),
        source="commit", gains=("C-07",),
    ),
    Change(
        "sregs-cr0", "KVM_SET_SREGS refuses an impossible CR0", "6.5", ("26a0652cb453",),
        ("5.15.124", "6.1.43", "6.4.8"), evidence=_MEASURED,
        source=f"{_LISTS}"
        "; without it 5.10.262; with it 6.1.174",
        sregs=("R-04",),
    ),
    Change(
        "tsc-of-l1", "L1's TSC ratio, not L2's, is loaded at #VMEXIT; no WARN without scaling",
        "6.6", ("0c94e2468491", "7cafe9b8e22b"), ("6.1.54", "6.5.4"), broken=("5.16",),
        evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "x2avic-intercepts", "x2AVIC's MSR intercepts follow the APIC's mode",
        "6.6", ("b65235f6e102",), ("6.1.62", "6.5.11"), broken=("6.0",), cve=("CVE-2023-5090",),
        evidence=_READ,
        source=_DEBIAN,
    ),
    Change(
        "cpuid-hang", "the wrong role of L2's MMU makes KVM_RUN spin instead of fail", "6.7",
        source="measured on 6.12; the first release is derived",
        sets={"late_cpuid": LateCpuid.HANG},
    ),
    Change(
        "sysenter-by-vendor", "the SYSENTER addresses are cut to 32 bits once the CPUID is AMD's",
        "6.10", ("fd706c9b1674",), source="measured on 6.12; the first release is derived",
        sets={"sysenter": SysenterCut.CPUID},
    ),
    Change(
        "base-msrs", "KVM_SET_MSRS knows FS_BASE and GS_BASE", "6.11", ("dad1613e0533",),
        ("5.15.167", "6.1.110", "6.6.51", "6.10.10"), evidence=_READ, source=_LISTS,
        sets={"base_msrs": True},
    ),
    Change(
        "ncr3-low-bits", "the low bits of nested_cr3 are ignored when PDPTEs are read",
        "6.12", ("f559b2e9c5c5",), ("5.10.229", "5.15.170", "6.1.115", "6.6.59", "6.11.6"),
        cve=("CVE-2024-50115",), evidence=_READ, source=_RECORD,
    ),
    Change(
        "apic-base-unchanged", "an APIC base that stays as it is is not checked", "6.13",
        ("d7d770bed98f",), evidence=_MEASURED,
        source="measured on 7.2; absent in 6.12.118"
        "; without it 6.12.118; with it 6.16.3",
        sets={"same_apic_base": True},
    ),
    Change(
        "guest-mode-before-mmu", "guest mode is entered before L2's MMU is set up",
        "6.14", ("46d6c6f3ef0e",), ("6.1.129", "6.12.16"), evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "blank-cpuid", "CR4 is held against the guest's CPUID even before one is set", "6.14",
        ("85e5ba83c016",), evidence=_MEASURED,
        source="measured on 7.2; the first release is derived"
        "; without it 6.12.111; with it 6.16.3",
        sets={"blank_cpuid_counts": True},
    ),
    Change(
        "init-at-run", "INIT and SIPI with GIF clear are accepted by KVM_SET_MP_STATE", "6.17",
        ("0fe3e8d804fd",), evidence=_MEASURED,
        source="commit"
        "; without it 6.16.3; with it 6.17.8",
        sets={"gif_blocks_init": False},
    ),
    Change(
        "exit-code-64", "a failed VMRUN's exit code is all ones in 64 bits", "6.19",
        commits=("f402ecd7a8b6",), stable=_JANUARY, evidence=_MEASURED,
        source=f"{_REVIEWS}"
        "; without it 6.12.57; with it 6.12.69",
    ),
    Change(
        "gif-without-svme", "flags 0 are accepted without SVME; clearing SVME keeps GIF",
        "7.0", ("6f4d3ebc24c6", "8312f1b9dd71"), evidence=_MEASURED,
        source="measured on 7.2"
        "; without it 6.18.15; with it 7.2.6",
        gains=("SV-03b",), loses=("SV-03",),
        sets={"leave_sets_gif": True, "svme_clear_sets_gif": False},
    ),
    Change(
        "cr3-failure-warn", "a late failure of L2's CR3 does not WARN in the host", "7.0",
        ("fc3ba56385d0",), ("6.1.165", "6.6.128", "6.12.75", "6.18.16", "6.19.6"),
        evidence=_MEASURED,
        source=f"{_REVIEWS}; 6.6.128 is derived"
        "; without it 6.12.74; with it 6.12.85",
    ),
    Change(
        "cpuid-frozen", "KVM_SET_CPUID2 in guest mode is refused if it changes anything",
        "7.0", evidence=_MEASURED,
        source="measured on 7.2; the first release is derived"
        "; without it 6.18.15; with it 7.2.6",
        sets={"late_cpuid": LateCpuid.REFUSED},
    ),
    Change(
        "pat-with-npt", "PAT reaches the VMCB with NPT only", "7.0",
        source="measured on 7.2; the first release is derived", sets={"pat_needs_npt": True},
    ),
    Change(
        "erap", "erap_ctl is kept", "7.0", source="measured on 7.2; the first release is derived",
        adds={"control_fields": frozenset({"erap_ctl"})},
    ),
    Change(
        "shadow-synced", "L2's interrupt shadow is saved in the blob", "7.1", ("03bee264f8eb",),
        _MAY_5_10, cve=("CVE-2026-45987",), side=Side.SOURCE, evidence=_READ, source=_LISTS,
    ),
    Change(
        "next-rip-synced", "NextRIP after L2 ran is saved in the blob", "7.1",
        ("778d8c1b2a6f",), _MAY_6_1, side=Side.SOURCE, evidence=_READ, source=_LISTS,
    ),
    Change(
        "avic-inhibited", "AVIC is inhibited for a vCPU that is restored into guest mode",
        "7.1", ("24f7d36b824b",), _MAY_5_10, evidence=_READ, source=_LISTS,
    ),
    Change(
        "vmcb02-dirty", "all of vmcb02 is marked dirty by a restore", "7.1", (), _MAY_5_15,
        evidence=_READ, source=_LISTS,
    ),
    Change(
        "ncr3-checked", "nested_cr3 above MAXPHYADDR is refused", "7.1", ("b71138fcc362",),
        _MAY_5_15, evidence=_MEASURED,
        source=f"{_LISTS}; without it 6.1.174, 6.12.85; with it 6.1.176, 6.12.86",
        gains=("C-03b",),
    ),
    Change(
        "cs-checked", "L in CS with D in long mode is refused", "7.1", ("96bd3e76a171",),
        _MAY_6_1, evidence=_MEASURED,
        source=f"{_LISTS}; without it 6.1.174, 6.12.85; with it 6.1.176, 6.12.86",
        gains=("S-09",),
        adds={"vmrun.cached": frozenset({"cs"}), "vmrun.checked": frozenset({"cs"})},
    ),
    Change(
        "npt-bit-dropped", "NP_ENABLE without host NPT is dropped instead of refused", "7.1",
        ("e0b6f031d64c",), _MAY_7, evidence=_READ, source=_LISTS, loses=("C-03",),
    ),
    Change(
        "event-inj-checked", "an event_inj with a reserved type or vector is refused", "7.1",
        ("7e79f71bca5c",), evidence=_MEASURED,
        source="measured on 7.2; the first release is derived"
        "; without it 6.18.15; with it 7.2.6",
        gains=("C-08",),
    ),
    Change(
        "everything-cached", "VMRUN copies all of vmcb12 once", "7.1", ("84dc9fd0354d",),
        source="source of 7.2.13; commit",
        sets={"vmrun.cached": _EVERYTHING, "vmrun.svme_forced": False},
    ),
    Change(
        "controls-masked", "reserved bits of tlb_ctl, event_inj, int_vector, int_state are dropped",
        "7.1", ("30a1d2fa8190", "c8123e827256"), source="measured on 7.2; commits",
        sets={
            "control_masks": MappingProxyType(
                {
                    "iopm_base_pa": _PAGE, "msrpm_base_pa": _PAGE, "int_vector": 0xFF,
                    "int_state": 1, "tlb_ctl": 7, "event_inj": 0x8000_0FFF,
                }
            )
        },
    ),
    Change(
        "intercepts-sanitised", "intercepts of instructions that L1 lacks are dropped", "7.1",
        source="measured on 7.2; the first release is derived",
        sets={
            "sanitises": (
                ("XSETBV", "xsave"), ("INVPCID", "invpcid"), ("RDTSCP", "rdtscp"),
                ("SKINIT", "skinit"), ("RDPRU", "rdpru"),
            )
        },
    ),
    Change(
        "run-pending-untrusted", "RUN_PENDING from user space is not trusted", "7.1",
        source="measured on 7.2; the first release is derived",
        sets={"run_pending": RunPending.UNTRUSTED},
    ),
    Change(
        "exit-without-vmcb12", "a #VMEXIT whose vmcb12 is not mapped loads L1, then triple faults",
        "7.1", ("1b30e7551767",), _MAY_7, evidence=_READ, source=_LISTS,
        sets={"exit_without_vmcb12": True},
    ),
    Change(
        "l1-cr3-triple-fault", "L1's CR3 that cannot be loaded at #VMEXIT is a triple fault", "7.1",
        ("5d291ef0585e",), ("7.0.4", "6.12.114", "6.1.191"), cve=("CVE-2026-46032",),
        evidence=_MEASURED,
        source=f"{_RECORD}; without it 6.1.190, 6.12.113; with it 6.1.192, 6.12.115",
    ),
    Change(
        "next-rip-after-run", "vmcb02's NextRIP is its own after the first VMRUN", "7.1",
        ("8d397582f6b5",), (*_MAY_7, "6.12.114", "6.1.191"), broken=("5.19",),
        cve=("CVE-2026-46059",),
        evidence=_READ, source=_LISTS,
    ),
    Change(
        "next-rip-at-run", "the return address of a soft event is taken when the vCPU runs", "7.1",
        ("a0592461f39c", "c64bc6ed1764"), _MAY_7, evidence=_READ, source=_LISTS,
    ),
    Change(
        "lbr-msrs-saved", "KVM_GET_MSRS and KVM_SET_MSRS know the LBR MSRs", "7.1",
        ("3700f0788da6",), (*_MAY_7, "6.12.114"), broken=("5.19",), cve=("CVE-2026-46014",),
        side=Side.BOTH,
        evidence=_READ, source=_LISTS,
    ),
    Change(
        "lbr-clean-bit", "the LBR clean bit of vmcb12 is left alone", "7.1", ("b53ab5167a81",),
        (*_MAY_7, "6.12.114", "6.1.191"), broken=("5.19",), cve=("CVE-2026-46071",),
        evidence=_READ, source=_LISTS,
    ),
    Change(
        "vmmcall-intercepted", "VMMCALL of L2 is intercepted; #UD if L1 does not handle it", "7.1",
        ("33d3617a52f9", "c36991c6f8d2"), _MAY_6_12, cve=("CVE-2026-46076",), evidence=_READ,
        source=f"{_LISTS}; source of 6.12.107", sets={"l2_vmmcall": True},
    ),
    Change(
        "hyperv-flush", "Hyper-V flush hypercalls of L2 without nested paging use L1's addresses",
        "7.1", ("464af6fc2b1d",), ("7.0.7", "6.18.30", "6.12.88", "6.6.140"), broken=("6.2",),
        cve=("CVE-2026-46131",), evidence=_READ, source=_RECORD,
    ),
    Change(
        "rsm-checks-controls", "RSM into L2 checks the controls of vmcb12", "7.1",
        ("be5fa8737d42",), ("6.12.88",), evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "invlpga-ud", "INVLPGA without SVME is #UD", "7.1", (), _MAY_6_1,
        cve=("CVE-2026-46082",), evidence=_READ, source=_RECORD,
    ),
    Change(
        "failed-vmrun-map", "VMRUN of a vmcb12 whose page the host cannot map is #GP, as it was "
        "where there is no memory", "7.1",
        ("01ddcdc55e09",), _MAY_5_15, evidence=_READ, source=_LISTS,
    ),
    Change(
        "gif-after-failed-vmrun", "a failed VMRUN clears GIF", "7.1", ("f85a6ce06e4a",),
        _MAY_5_10, evidence=_MEASURED,
        source=f"{_LISTS}"
        "; without it 5.10.257, 6.1.174, 6.12.85; with it 5.10.259, 6.1.176, 6.12.86",
    ),
    Change(
        "own-pat", "with the quirk disabled L2 has a PAT of its own", "7.2",
        source="measured on 7.2; announced for 7.2", gains=("SV-17",),
    ),
    Change(
        "sregs-efer", "KVM_SET_SREGS refuses an EFER that CPUID does not allow", "7.2",
        ("184bd464bdb6",), ("6.12.112",), evidence=_MEASURED,
        source=f"{_DEBIAN}; sources; without it 6.12.111; with it 6.12.113",
        sregs=("R-05",),
    ),
    Change(
        "x2apic-intercepts", "x2APIC's MSRs stay intercepted if AVIC is inhibited while L2 runs",
        "7.2", ("7d3aae206663",), ("6.1.183", "6.6.151", "6.12.103", "6.18.44", "7.1.8"),
        broken=("6.0",), cve=("CVE-2026-74516",), evidence=_READ, source=_RECORD,
    ),
    Change(
        "active-msr-bitmap", "the MSR bitmap of the VMCB in use is consulted", "7.3",
        ("9e06bbb9ade7",), ("6.1.191", "6.12.113", "7.2.10"), cve=("CVE-2026-98716",),
        evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "pages-retried", "a failed merge of the MSR bitmap is tried again at the next KVM_RUN",
        "7.3", ("10180a277549", "c1214f293d77"), ("6.12.117", "6.18.56", "7.2.10"),
        cve=("CVE-2026-98863",), evidence=_MEASURED,
        source=f"{_DEBIAN}; stable review lists"
        "; without it 6.12.116, 7.2.9; with it 6.12.117, 7.2.11",
        sets={"pages_rearmed": True},
    ),
    Change(
        "failed-vmrun-controls", "control fields are taken over only after a VMRUN that succeeded",
        "7.3", ("e27fc915c8f5",), ("6.12.117", "7.2.10"), cve=("CVE-2026-98714",),
        evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "failed-vmrun-tlb", "a pending TLB flush survives a failed VMRUN", "7.3",
        ("60d93c27859f",), ("6.12.117", "7.2.10"), cve=("CVE-2026-98715",), evidence=_READ,
        source=_DEBIAN,
    ),
    Change(
        "lma-ignored-at-vmrun", "VMRUN ignores EFER.LMA without LME", "7.4", ("1c4c84a643b7",),
        ("6.12.117", "7.3.2"), evidence=_READ, source=f"{_DEBIAN}; sources",
    ),
    Change(
        "lma-without-pae-bug", "the VM is killed (EIO) if EFER.LMA meets CR4.PAE clear", "7.4",
        ("34dacbe7ae93", "115f9405a2ed"), ("6.12.117", "7.3.2"), evidence=_MEASURED,
        source="without it 6.12.116; with it 6.12.117", sets={"lma_needs_pae": True},
    ),
    Change(
        "lma-without-lme", "a blob whose L1 has EFER.LMA without LME is refused", "7.4",
        ("5dc500a354cc",), ("6.12.118", "7.3.2"), cve=("CVE-2026-99345",), evidence=_MEASURED,
        source=f"{_DEBIAN}; sources of 6.12.118 and 7.3.4"
        "; without it 6.12.117, 7.3-rc7; with it 6.12.118, 7.3.4",
        gains=("SV-18",),
    ),
)  # fmt: skip

# Bugs of state handling whose repair changes nothing that the model shows.  Titles and updates
# are those of the changelogs; where no mainline commit is named, none was found.
_REPAIRS: tuple[Change, ...] = (
    Change(
        "cr3-mbz", "only bits 63:52 of L2's CR3 are refused as reserved", "5.10", ("fb0f33fdefe9",),
        ("5.9.2",), evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "pages-cancelled", "a #VMEXIT before the first entry cancels the merge of the MSR bitmap",
        "5.11", ("f2c7ef3ba955",), ("5.10.13",), broken=("5.10",), evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "guests-without-npt", "L2 runs on hosts with npt=0", "5.12", ("a04aead144fd",),
        ("5.10.20",),
        evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "pdptr-encryption-bit", "PDPTEs of L2 are read with the whole of CR3 on hosts with SME",
        "5.12", ("2732be902353",), ("5.10.20",), evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "npt-root-level", "shadow pages of L2's nested paging have the host's number of levels",
        "5.13", ("a3322d5cd87f",), ("5.10.37",), evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "int-vector-kept", "the end of an interrupt window keeps L1's int_vector", "5.15",
        ("aee77e1169c1",), ("5.10.72", "5.14.11"), broken=("5.14", "5.10.60", "5.13.12"),
        evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "rsm-run-pending", "RSM into L2 counts as a VMRUN, and vmcb01 is marked dirty", "5.17",
        ("759cbd59674a", "e8efa4ff0037"), ("5.15.25", "5.16.11"), evidence=_READ,
        source=f"{_DEBIAN}; 5.15.25 is derived",
    ),
    Change(
        "tsc-ratio-checked", "a TSC_RATIO other than 1.0 is refused if the guest has no scaling",
        "5.17", ("e910a53fb4f2",), ("5.16.12",), broken=("5.16",), evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "injected-with-gif-clear", "an interrupt that user space injects while GIF is clear is "
        "no BUG of the host", "6.0", ("f17c31c48e5c",),
        ("5.10.137", "5.15.61", "5.18.18", "5.19.2"), cve=("CVE-2022-50228",), evidence=_READ,
        source=_RECORD,
    ),
    Change(
        "avic-after-leaving", "AVIC is allowed again when guest mode is left by force", "6.6",
        ("3fdc6087df3b",), ("6.1.60", "6.5.9"), broken=("6.0",), evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "smm-left-at-shutdown", "a SHUTDOWN in SMM leaves SMM before the vCPU is reset", "6.15",
        ("a2620f8932fa",), ("6.1.191", "6.12.29", "6.14.7"), broken=("6.1", "5.15.81", "6.0.11"),
        cve=("CVE-2025-37957",), evidence=_READ, source=_RECORD,
    ),
    Change(
        "tpr-with-avic", "the TPR that KVM_SET_LAPIC sets reaches the VMCB with AVIC as well",
        "6.17", ("d02e48830e3f",),
        ("5.10.245", "5.15.194", "6.1.154", "6.6.108", "6.12.49", "6.16.9"), evidence=_READ,
        source=f"{_DEBIAN}; 5.15.194, 6.6.108 and 6.16.9 are derived",
    ),
    Change(
        "lbr-nested", "LBR MSRs are switched between L1 and L2 as the two have it enabled", "6.18",
        ("8a4821412cf2", "fbe5e5f030c2"), ("6.12.61",), broken=("5.19",), evidence=_READ,
        source=_DEBIAN,
    ),
    Change(
        "soft-exception-replaced", "INT3 or INTO that another vCPU has replaced in memory is not "
        "skipped", "6.19", ("4da3768e1820",), ("6.1.160", "6.12.62", "6.17.12", "6.18.1"),
        broken=("6.0",), cve=("CVE-2025-68259",), evidence=_READ, source=_RECORD,
    ),
    Change(
        "selective-cr0", "a write of CR0 that L1 intercepts is no selective one; LMSW may be",
        "6.19", ("3d80f4c93d3d",), _JANUARY, evidence=_READ,
        source=f"{_REVIEWS}; 5.10.248 has a part",
    ),
    Change(
        "exit-code-cleared", "the upper half of the exit code that KVM makes up is 0", "6.19",
        ("da01f64e7470",), _JANUARY[1:], evidence=_READ, source=_REVIEWS,
    ),
    Change(
        "clean-bits-at-vmrun", "VMRUN marks nested_cr3 and the permission maps of vmcb02 dirty",
        "6.19", ("93c9e107386d", "7c8b465a1c91"), _JANUARY[2:], evidence=_READ, source=_REVIEWS,
    ),
    Change(
        "vmload-of-l1", "VMLOAD and VMSAVE of L2 are emulated with vmcb01", "7.0",
        ("127ccae2c185",), ("5.15.202", "6.1.165", "6.6.128", "6.12.75", "6.18.16", "6.19.6"),
        broken=("5.13",), cve=("CVE-2026-43133",), evidence=_READ, source=_RECORD,
    ),
    Change(
        "avic-fields-at-create", "AVIC's fields and the CR8 intercept follow AVIC's state",
        "7.0", (), ("6.1.167", "6.12.78"), evidence=_READ, source=_DEBIAN,
    ),
    Change(
        "cr2-at-exit", "#VMEXIT writes L2's current CR2 into vmcb12", "7.1", ("5c247d08bc81",),
        _MAY_6_1, evidence=_READ, source=f"{_DEBIAN}; 6.6.140, 6.18.27 and 7.0.4 are derived",
    ),
    Change(
        "event-tracking-cleared", "#VMEXIT forgets that L1 injected an NMI or a soft interrupt",
        "7.1", ("8998e1d012f3",), _MAY_6_1, broken=("5.19",), evidence=_READ,
        source=f"{_REVIEWS}; 6.6.140 and 6.18.27 are derived",
    ),
    Change(
        "event-inj-cleared", "#VMEXIT clears EVENTINJ in vmcb12", "7.1", ("69b721a86d0d",),
        _MAY_6_12, evidence=_READ, source=f"{_DEBIAN}; 6.18.27 and 7.0.4 are derived",
    ),
    Change(
        "svme-cleared-by-l2", "an L2 that clears EFER.SVME ends in a triple fault of L1",
        "7.1", ("cdc69269b18a",), evidence=_READ, source="commit; the release is derived",
    ),
    Change(
        "asid-of-both", "a move to another CPU renews the ASIDs of vmcb01 and vmcb02", "7.4", (),
        ("6.12.117", "7.3.2"), evidence=_READ, source=_DEBIAN,
    ),
)  # fmt: skip

CHANGES: tuple[Change, ...] = tuple(
    sorted((*_BEHAVIOUR, *_REPAIRS), key=lambda change: numbers(change.since))
)
"""All changes, in the order of mainline."""

BY_ID: Mapping[str, Change] = MappingProxyType({change.id: change for change in CHANGES})
"""The same by id."""


def find(word: str) -> tuple[Change, ...]:
    """Changes with that id, CVE number or commit (at least seven digits of it)."""
    wanted = word.strip().casefold()
    if wanted in BY_ID:
        return (BY_ID[wanted],)
    cve = wanted if wanted.startswith("cve-") else f"cve-{wanted}"
    return tuple(
        change
        for change in CHANGES
        if any(one.casefold() == cve for one in change.cve)
        or (len(wanted) >= _ABBREVIATED and _is_commit(wanted, change))
    )


_ABBREVIATED = 7


def _is_commit(word: str, change: Change) -> bool:
    # The table has 12 digits; what is given may be shorter or longer.
    return any(
        one.startswith(word[: len(one)]) and word.startswith(one[: len(word)])
        for one in change.commits
    )
