"""The story of ``svm->nested.save``, on a real capture (``docs/save-cache.md``).

The blob's save area is L1's.  L1 has CR3 0x101000, L2 0x104000.
"""

from __future__ import annotations

import pytest

from qemu_svm.model.kvm import nested
from qemu_svm.model.kvm.vcpu import KvmVcpu
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.saved import Saved
from qemu_svm.model.simulate import Simulation
from tests.model.conftest import Run
from tests.model.recorded import backed

L1_CR3, L2_CR3 = 0x101000, 0x104000
RESTORE = "cpuid,sregs,nested,regs,msrs"
BAD = "nested:@0x58/4=0:@0x550=0x111000"  # ASID 0 is refused; another CR3


def cache(simulation: Simulation, step: int) -> int:
    return simulation.results[step - 1].state.areas["save_cache"].get("cr3")


def test_the_blobs_save_area_is_l1s(saved: Saved) -> None:
    assert saved.l1().get("cr3") == L1_CR3
    assert saved.sregs.get("cr3") == L2_CR3


def test_v3_caches_l1s_cr3(run: Run) -> None:
    assert cache(run("v3", RESTORE), 3) == L1_CR3


def test_review_caches_l2s_cr3(run: Run) -> None:
    simulation = run("review", RESTORE)
    assert cache(simulation, 3) == L2_CR3
    assert any("review" in note for note in simulation.results[2].notes)


def test_review_leaves_the_cache_alone_in_guest_mode(run: Run) -> None:
    simulation = run("review", f"{RESTORE},sregs:cr3=0x105000,nested")
    assert cache(simulation, 7) == L2_CR3
    assert simulation.results[6].state.areas["arch"].get("cr3") == 0x105000


@pytest.mark.parametrize("kernel", ["5.17", "6.1", "6.12", "7.2"])
def test_merged_kernels_do_not_fill_it(run: Run, kernel: str) -> None:
    simulation = run(kernel, f"{RESTORE},run")
    for result in simulation.results:
        assert list(result.state.areas["save_cache"]) == []
        assert not result.state.save_cache_valid


@pytest.mark.parametrize("kernel", ["v3", "review", "5.17", "6.1", "6.12", "7.2"])
@pytest.mark.parametrize("then", ["run,vmrun", "smi,rsm"])
def test_nothing_reads_it_before_it_is_refilled(run: Run, kernel: str, then: str) -> None:
    simulation = run(kernel, f"{RESTORE},{then}")
    notes = [note for result in simulation.results for note in result.notes]
    assert not [note for note in notes if "nothing refilled it" in note]
    last = simulation.results[-1].state
    assert last.guest_mode
    assert last.save_cache_valid
    assert last.areas["save_cache"].get("cr3") == L2_CR3
    assert last.areas["arch"].get("cr3") == L2_CR3


def test_a_stale_read_is_reported() -> None:
    vcpu = KvmVcpu(PROFILES["6.1"])
    vcpu.save_cache(("cr3",), "somebody")
    assert vcpu.notes == ["somebody reads the save cache although nothing refilled it"]


def test_a_failing_call_pollutes_the_live_caches_of_v3_only(run: Run) -> None:
    for kernel in ("v3", "review", "6.1", "7.2"):
        simulation = run(kernel, f"{RESTORE},{BAD}")
        before, after = simulation.results[-2].state, simulation.results[-1].state
        assert simulation.results[-1].failed == "C-02"
        polluted = after.areas["ctl_cache"].get("asid") == 0
        assert polluted is (kernel == "v3")
        if kernel == "v3":
            assert cache(simulation, len(simulation.results)) == 0x111000
            assert any("caches in use for L2" in n for n in simulation.results[-1].notes)
        else:
            for name in ("ctl_cache", "save_cache"):
                one, two = before.areas[name], after.areas[name]
                assert {k: one.content(k) for k in one} == {k: two.content(k) for k in two}


def entered(simulation: Simulation) -> int:
    return simulation.results[-1].state.areas["arch"].get("efer")


def test_l1_changing_vmcb12_between_check_and_use(run: Run) -> None:
    plan = f"{RESTORE},run,vmrun"
    old = run("5.10", plan, race={"efer": 0x0, "cr3": 0x999000})
    assert entered(old) == 0x1000  # forced back to SVME, the rest unchecked
    assert old.results[-1].state.areas["arch"].get("cr3") == 0x999000
    assert any("never checked" in note for note in old.results[-1].notes)
    for kernel in ("5.17", "6.1", "6.12", "7.2"):
        new = run(kernel, plan, race={"efer": 0x0, "cr3": 0x999000})
        assert entered(new) == 0x1500
        assert new.results[-1].state.areas["arch"].get("cr3") == L2_CR3
        assert any("no effect" in note for note in new.results[-1].notes)


def test_the_oldest_kernels_could_lose_the_nested_state(run: Run) -> None:
    simulation = run("5.8", f"{RESTORE},run,vmrun", race={"efer": 0x0})
    assert any("freed in use" in note for note in simulation.results[-1].notes)
    assert not simulation.results[-1].state.guest_mode


def test_which_fields_each_kernel_uses_unchecked(run: Run) -> None:
    # Before 5.17 everything that is checked is read twice.
    checked = PROFILES["5.10"].vmrun.checked
    for field in sorted(checked - {"efer"}):
        simulation = run("5.10", f"{RESTORE},run,vmrun", race={field: 0x70})
        assert any(f"{field} 0x70" in note for note in simulation.results[-1].notes), field
    for kernel in ("5.17", "6.1", "7.2"):
        rules = PROFILES[kernel].vmrun
        assert rules.checked <= rules.cached


@pytest.mark.parametrize("kernel", ["5.10", "6.1"])
def test_vmrun_checks_the_save_area(run: Run, kernel: str) -> None:
    """5.10 does that at VMRUN only.  Seen on 5.10.223 and 6.1.176, with a vmcb12 in memory."""
    plan = "cpuid,sregs,nested,regs,msrs,run"
    simulation = run(kernel, f"{plan},vmrun,run,vmrun")
    assert not any("INVALID" in note for result in simulation.results for note in result.notes)
    bad = run("5.10", "cpuid,sregs,nested,sregs:cr0=0xa0000031,regs,msrs,run,vmrun").results[-1]
    assert bad.notes == ("exit INVALID: check S-02",)


def test_vmrun_needs_the_msr_bitmap_at_once(run: Run) -> None:
    """At a restore it is wanted at the next KVM_RUN; 6.1 asks for it once only."""
    plan = "cpuid,sregs,nested:@0xc/4=0x90040000:@0x48=0x2000000,regs,msrs,run,run,vmrun"
    *_, first, _second, vmrun = run("6.1", plan, backed=backed).results
    assert first.outcome is not None
    assert first.outcome.result == "INTERNAL_ERROR"
    assert vmrun.notes[-1] == "exit INVALID: L1's MSR bitmap is not in guest memory"


def test_vmrun_needs_what_it_needs(run: Run) -> None:
    no_hsave = run("6.1", "cpuid,sregs,nested,regs,run,vmrun")
    assert any("VM_HSAVE_PA" in note for note in no_hsave.results[-1].notes)
    assert not no_hsave.results[-1].state.guest_mode
    too_early = run("6.1", f"{RESTORE},vmrun")
    assert any("add 'run' before" in note for note in too_early.results[-1].notes)
    in_smm = run("6.1", f"{RESTORE},smi,vmrun")
    assert any("#UD" in note for note in in_smm.results[-1].notes)
    assert any("#UD" in n for n in run("6.1", f"{RESTORE},rsm").results[-1].notes)


@pytest.mark.parametrize("kernel", ["5.10", "5.15", "6.1", "7.2"])
def test_smm_goes_out_of_l2_and_back(run: Run, kernel: str) -> None:
    simulation = run(kernel, f"{RESTORE},smi,rsm")
    inside, back = simulation.results[-2].state, simulation.results[-1].state
    assert (inside.guest_mode, inside.smm) == (False, True)
    assert inside.areas["arch"].get("cr3") == L1_CR3
    assert (back.guest_mode, back.smm) == (True, False)
    assert back.areas["arch"].get("cr3") == L2_CR3
    assert "NESTED_STATE_PAGES" in back.requests


def test_vmexit_does_not_touch_the_cache() -> None:
    names = nested.nested_svm_vmexit.__code__.co_names
    assert "save_cache" not in names
