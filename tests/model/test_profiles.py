"""Every field of a profile decides something: with another value something else comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest

from qemu_svm.findings.results import SimulationReport
from qemu_svm.findings.verdict import judge_restore
from qemu_svm.model import plans
from qemu_svm.model.area import Area
from qemu_svm.model.kvm.checks import SET_NESTED_STATE, SET_SREGS
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.kvm.vmcb02 import vmcb02_control
from qemu_svm.model.profile import LEAVE, Profile
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.saved import Saved
from qemu_svm.model.simulate import simulate
from tests.model.conftest import PLAIN, machine_of
from tests.model.recorded import backed

MACHINE = machine_of(PLAIN)
RESTORE = "cpuid,sregs,nested,regs,run"
TWICE = "cpuid,sregs,nested,regs,msrs,run,vmrun"


@dataclass(frozen=True)
class Shown:
    """A plan whose outcome depends on a field."""

    plan: str = RESTORE
    npt: bool = True
    paged: bool = False
    race: Mapping[str, int] | None = None
    irqchip: bool = True


SHOWN_BY: dict[str, Shown] = {
    "name": Shown(),
    "about": Shown(),
    "measured": Shown(),
    "numbers": Shown(),
    "row": Shown(),
    "read": Shown(),
    "split": Shown(),
    "set_nested_state": Shown(npt=False, paged=True),
    "sregs": Shown("cpuid,sregs:cr0=0x80000000"),
    "live_validation": Shown("cpuid,sregs,nested,nested:@0x58/4=0"),
    "save_cache": Shown(),
    "has_save_cache": Shown(),
    "ignores_gif": Shown("cpuid,sregs,nested:flags=0x1"),
    "run_pending": Shown("cpuid,sregs,nested:flags=0x103"),
    "late_cr3_check": Shown(
        "cpuid:maxphyaddr=52,sregs:cr3=0x200000000000,cpuid:maxphyaddr=40,nested"
    ),
    "mmu_ready": Shown(paged=True),
    "leave_sets_gif": Shown("cpuid,sregs,nested:flags=0x1,sregs:efer=0x500"),
    "svme_clear_sets_gif": Shown("cpuid,sregs,nested:flags=0x0,sregs:efer=0x500"),
    "smm_leaves": Shown("cpuid,sregs,nested,events:smm=1"),
    "blank_cpuid_counts": Shown("sregs:cr4=0x100020"),
    "late_cpuid": Shown("cpuid,sregs,nested,cpuid,regs,run", paged=True),
    "cpuid_fixed": Shown("cpuid,sregs,nested,regs,run,cpuid:maxphyaddr=36"),
    "pages_rearmed": Shown("cpuid,sregs,nested:@0xc/4=0x10040000:@0x48=0x3000000,regs,run,run"),
    "exit_without_vmcb12": Shown("cpuid,sregs,nested:vmcb_pa=0x3000000,regs,run"),
    "exceptions_morphed": Shown(
        "cpuid,sregs:idt.limit=0xfff,nested:vmcb_pa=0x3000000:@0x8/4=0x2000,regs,run"
    ),
    "shutdown": Shown("cpuid,sregs,nested:vmcb_pa=0x3000000,regs,run"),
    "lma_needs_pae": Shown("cpuid,sregs,nested:@0x4d0=0x1400:@0x548=0x0,regs,run", paged=True),
    "l1_dr7": Shown(),
    "l2_vmmcall": Shown(),
    "has_sregs2": Shown("cpuid,sregs2"),
    "base_msrs": Shown("msrs:fs_base=1"),
    "tsc_ratio_msr": Shown("msrs:tsc_ratio=0"),
    "same_apic_base": Shown("cpuid:maxphyaddr=31,sregs:apic_base=0xfee00900"),
    "forces_bsp": Shown("cpuid,sregs:apic_base=0x0", irqchip=False),
    "paging_writes_cr4": Shown(
        "cpuid,sregs:cr0=0x11:efer=0x1000:cs.l=0:cr4=0x0,nested,regs,run", npt=False
    ),
    "pat_needs_npt": Shown("cpuid,msrs", npt=False),
    "reset_rdx": Shown("cpuid"),
    "gif_blocks_init": Shown("cpuid,sregs,nested:flags=0x1,mpstate:2"),
    "init_intercept_blocks": Shown("cpuid,sregs,nested:@0xc/4=0x18,mpstate:2"),
    "mp_states": Shown("cpuid,mpstate:8"),
    "triple_fault": Shown("cpuid,events:flags=0x20:triple_fault=1"),
    "sysenter": Shown("msrs:sysenter_esp=0x1234567812345678,cpuid"),
    "control_fields": Shown(),
    "control_masks": Shown("cpuid,sregs,nested:@0x64/4=0x1ff"),
    "sanitises": Shown("cpuid,sregs,nested:@0x10/4=0x4001"),
    "vmrun.hsave_needed": Shown("cpuid,sregs,nested,regs,run,vmrun"),
    "vmrun.cached": Shown(TWICE),
    "vmrun.checked": Shown(TWICE, race={"cr3": 0x999000}),
    "vmrun.svme_forced": Shown(TWICE, race={"efer": 0}),
    "vmrun.controls_cached": Shown(TWICE, race={"intercepts": 0}),
    "vmrun.save_checks": Shown("cpuid,sregs,nested,sregs:cr0=0xa0000031,regs,msrs,run,vmrun"),
}
"""A plan for each field, of which the field decides what comes out."""


def outcome(profile: Profile, saved: Saved, shown: Shown) -> object:
    """Everything that is said of a simulation, and what vmcb02 would hold."""
    simulation = simulate(
        profile, saved, plans.parse(shown.plan), host=Host(npt=shown.npt, irqchip=shown.irqchip),
        backed=backed, race=shown.race,
    )  # fmt: skip
    everything = Area("control", {"intercepts": (1 << 192) - 1})
    merged = vmcb02_control(profile, everything, Area("control"))
    report = SimulationReport(MACHINE, shown.plan, (simulation,), (judge_restore(simulation),))
    return report.to_json(), merged


def value_of(profile: Profile, field: str) -> Any:
    part, _, inner = field.rpartition(".")
    return getattr(profile.vmrun if part else profile, inner)


def variants(profile: Profile, field: str) -> Iterator[Profile]:
    """The profile with the other values that the field has anywhere, and with an empty set."""
    part, _, inner = field.rpartition(".")
    values = [value_of(one, field) for one in PROFILES.values()]
    values += [frozenset()] if isinstance(values[0], frozenset) else []
    for value in values:
        if value != value_of(profile, field):
            change = {inner: value}
            yield replace(profile, **{part: replace(profile.vmrun, **change)} if part else change)


def test_each_field_is_shown_by_a_plan() -> None:
    names = {one.name for one in fields(Profile)} - {"vmrun"}
    assert set(SHOWN_BY) == names | {f"vmrun.{one.name}" for one in fields(PROFILES["6.1"].vmrun)}


@pytest.mark.parametrize("field", SHOWN_BY)
def test_each_field_is_read(field: str, saved: Saved, saved_npt: Saved) -> None:
    shown = SHOWN_BY[field]
    guest = saved_npt if shown.paged else saved
    assert any(
        outcome(one, guest, shown) != outcome(profile, guest, shown)
        for profile in PROFILES.values()
        for one in variants(profile, field)
    )


def test_profiles_name_only_checks_that_exist() -> None:
    for kernel in PROFILES.values():
        for check in kernel.set_nested_state:
            assert check == LEAVE or check in SET_NESTED_STATE, (kernel.name, check)
        assert set(kernel.sregs) <= set(SET_SREGS)
        assert kernel.set_nested_state.count(LEAVE) == 1
        assert kernel.measured or kernel.read
    used = {check for kernel in PROFILES.values() for check in kernel.checks}
    assert used == set(SET_NESTED_STATE) | set(SET_SREGS)
