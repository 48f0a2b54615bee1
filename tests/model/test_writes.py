"""Single writes of the model: where they land, what they say, what refuses them."""

from __future__ import annotations

import pytest

from qemu_svm.findings.verdict import Verdict, judge_restore
from qemu_svm.model import plans
from qemu_svm.model.kvm.run import Outcome
from qemu_svm.model.kvm.vcpu import Host, RunEnd
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.saved import Saved
from qemu_svm.model.simulate import Result, Simulation, simulate
from qemu_svm.x86.segments import Segment
from tests.model.conftest import Run
from tests.model.recorded import guests

LME, LMA, SVME, NX, PG, ET = 1 << 8, 1 << 10, 1 << 12, 1 << 11, 1 << 31, 0x10
LOST = (
    "EFER.SVME was cleared in guest mode: the vCPU left guest mode, and what this call had "
    "written to L2's VMCB is lost"
)
IGNORED = "this kernel ignores RUN_PENDING: an event that VMRUN injects may be lost"


def last(simulation: Simulation) -> Result:
    return simulation.results[-1]


# svm.c


@pytest.mark.parametrize("kernel", ["5.10", "6.1", "7.2"])
@pytest.mark.parametrize("step", ["msrs:efer=0x500", "sregs:efer=0x500"])
def test_clearing_svme_in_guest_mode_is_told(run: Run, kernel: str, step: str) -> None:
    result = last(run(kernel, f"cpuid,sregs,nested,{step}"))
    assert LOST in result.notes
    assert not result.state.guest_mode
    assert result.state.gif


def test_clearing_svme_outside_of_guest_mode_is_not(run: Run) -> None:
    result = last(run("6.1", "cpuid,sregs,msrs:efer=0x500"))
    assert result.notes == ()
    assert result.state.areas["vmcb01"].get("efer") == 0x500 | SVME  # the hardware keeps it


@pytest.mark.parametrize(("kernel", "gif"), [("5.10", True), ("6.1", True), ("7.2", False)])
def test_clearing_svme_sets_gif_up_to_6(run: Run, kernel: str, gif: bool) -> None:
    assert not last(run(kernel, "cpuid,sregs,nested:flags=0")).state.gif
    assert last(run(kernel, "cpuid,sregs,nested:flags=0,msrs:efer=0x500")).state.gif is gif


def test_lma_follows_paging_in_both_copies(run: Run) -> None:
    on = last(run("6.1", "cpuid,msrs:efer=0x1100,sregs:efer=0x1500")).state
    assert on.areas["arch"].get("efer") == 0x1500
    # KVM_SET_SREGS sets EFER first and CR0 second: PG 0 to 1 with LME makes LMA.
    off = last(run("6.1", "cpuid,sregs,sregs:cr0=0x11:efer=0x1100:cs.l=0")).state
    assert off.areas["arch"].get("efer") == 0x1100
    assert off.areas["vmcb01"].get("efer") & (LMA | LME) == 0
    again = last(run("6.1", "cpuid,sregs,sregs:cr0=0x11:efer=0x1100:cs.l=0,sregs")).state
    assert again.areas["vmcb01"].get("efer") == 0x1500
    legacy = last(run("6.1", "cpuid,sregs:efer=0x1000:cs.l=0")).state
    assert legacy.areas["arch"].get("efer") == 0x1000  # PG without LME leaves LMA alone
    assert legacy.areas["vmcb01"].get("efer") == 0x1000


def test_a_host_without_npt_forces_bits_into_the_vmcb_only(run: Run) -> None:
    state = last(run("6.1", "cpuid,sregs:cr0=0x11:cr4=0:efer=0x1100:cs.l=0",
                     host=Host(npt=False))).state  # fmt: skip
    arch, vmcb = state.areas["arch"], state.areas["vmcb01"]
    assert (arch.get("cr0"), arch.get("cr4"), arch.get("efer")) == (0x11, 0, 0x1100)
    assert vmcb.get("cr0") == 0x80010011
    assert vmcb.get("cr4") == 0x60  # PAE, and MCE of the host
    assert vmcb.get("efer") == NX | SVME  # LME without LMA is taken away


def test_cd_and_nw_never_reach_the_vmcb(run: Run) -> None:
    state = last(run("6.1", "cpuid,sregs:cr0=0xe0000011")).state
    assert state.areas["arch"].get("cr0") == 0xE0000011
    assert state.areas["vmcb01"].get("cr0") == 0x80000011


@pytest.mark.parametrize("name", ["fs", "gs", "tr", "ldtr"])
def test_vmload_segments_live_in_vmcb01_whoever_runs(run: Run, name: str) -> None:
    step = f"sregs:{name.removesuffix('r') if name == 'ldtr' else name}.base=0x7000"
    state = last(run("6.1", f"cpuid,sregs,nested,{step}")).state
    assert state.guest_mode
    assert state.areas["vmcb01"].segment(name).base == 0x7000
    assert state.areas["vmcb02"].segment(name).base != 0x7000


@pytest.mark.parametrize("name", ["es", "cs", "ss", "ds"])
def test_other_segments_are_those_of_who_runs(run: Run, name: str) -> None:
    state = last(run("6.1", f"cpuid,sregs,nested,sregs:{name}.selector=0x70")).state
    assert state.areas["vmcb02"].segment(name).selector == 0x70
    assert state.areas["vmcb01"].segment(name).selector != 0x70


def test_ss_brings_cpl(run: Run) -> None:
    state = last(run("6.1", "cpuid,sregs,nested,sregs:ss.dpl=3:cs.dpl=2")).state
    assert state.areas["vmcb02"].get("cpl") == 3


def test_a_fresh_vcpus_task_register() -> None:
    state = simulate(PROFILES["6.1"], guests()["nested"], plans.parse("cpuid")).start
    assert state.areas["vmcb01"].segment("tr") == Segment(0, 0, 0xFFFF, 0x83)


# nested.c


@pytest.mark.parametrize("kernel", ["5.8", "5.10", "5.10.262"])
def test_an_ignored_run_pending_is_told(run: Run, kernel: str) -> None:
    result = last(run(kernel, "cpuid,sregs,nested:flags=0x103"))
    assert IGNORED in result.notes
    assert result.state.run_pending == 0
    assert result.state.nested.flags == 0x101
    assert IGNORED not in last(run(kernel, "cpuid,sregs,nested:flags=0x101")).notes


@pytest.mark.parametrize(("kernel", "kept"), [("5.11", 1), ("5.13", 1), ("6.1", 1), ("7.2", 2)])
def test_run_pending_is_kept_without_a_word(run: Run, kernel: str, kept: int) -> None:
    result = last(run(kernel, "cpuid,sregs,nested:flags=0x103"))
    assert IGNORED not in result.notes
    assert (result.state.run_pending, result.state.nested.flags) == (kept, 0x103)
    after = last(run(kernel, "cpuid,sregs,nested:flags=0x103,regs,run"))
    assert after.state.run_pending == 0


NO_VMCB12 = "cpuid,sregs{},nested:vmcb_pa=0x7ff000000{},regs,run"
GP = ":@0x8/4=0x2000"  # L1 intercepts #GP
SHUTDOWN = ":@0xc/4=0x80040000"  # and SHUTDOWN, besides CPUID
IDT = ":idt.limit=0xfff"


@pytest.mark.parametrize(
    ("kernel", "sregs", "nested", "ends", "guest_mode"),
    [
        ("5.10", "", "", "SHUTDOWN", False),  # the reset of the VMCB ends guest mode
        ("6.1", "", "", "SHUTDOWN", True),
        ("6.12", "", "", "SHUTDOWN", True),
        ("7.2", "", "", "SHUTDOWN", False),
        ("5.10", IDT, "", "l2", True),
        ("6.1", IDT, "", "l2", True),
        ("6.12.118", IDT, "", "l2", True),
        ("7.2", IDT, "", "SHUTDOWN", False),
        ("6.1", "", GP, "hang", True),
        ("6.1", IDT, GP, "hang", True),
        ("5.10", "", GP, "SHUTDOWN", True),
        ("5.10", IDT, GP, "l2", True),  # as #DF
        ("5.10", IDT, ":@0x8/4=0x2100", "SHUTDOWN", True),  # L1 intercepts that, too
        ("5.10", "", SHUTDOWN, "SHUTDOWN", True),
        ("6.1", "", SHUTDOWN, "SHUTDOWN", True),
    ],
)
def test_a_vmcb12_that_is_no_memory(
    run: Run, kernel: str, sregs: str, nested: str, ends: str, guest_mode: bool
) -> None:
    result = last(
        run(kernel, NO_VMCB12.format(sregs, nested),
            backed=lambda address, _size: address < 1 << 30)
    )  # fmt: skip
    assert "vmcb12 is not in guest memory, so L2's state cannot be written to it" in result.notes
    assert result.outcome is not None
    assert result.outcome.result == ends
    assert result.state.guest_mode is guest_mode
    loaded = kernel == "7.2"  # L1 is loaded first
    assert (result.outcome.l1 is not None) is loaded


def test_5_10_resets_the_vcpu_at_a_shutdown(run: Run) -> None:
    result = last(
        run("5.10", NO_VMCB12.format("", ""), backed=lambda address, _size: address < 1 << 30)
    )
    arch = result.state.areas["arch"]
    assert [arch.get(name) for name in ("cr0", "cr4", "efer", "rip")] == [0x60000010, 0, 0, 0xFFF0]
    assert arch.get("cr3") == 0x104000
    assert arch.get("rsp") == 0x10C000
    assert result.state.gif


@pytest.mark.parametrize("kernel", ["5.13", "6.1", "6.12", "7.2"])
def test_cr0_after_leaving_guest_mode_is_that_of_the_vmcb(run: Run, kernel: str) -> None:
    """svm_handle_exit takes CR0 from vmcb01, which has L1's."""
    done = run(kernel, "cpuid,sregs:cr0=0x80010011,nested,regs,nested:flags=0x100,run")
    before, after = (one.state.areas["arch"].get("cr0") for one in done.results[-2:])
    assert (before, after) == (0x80010011, 0x80000011)


def test_cr0_stays_where_its_writes_are_intercepted(run: Run) -> None:
    """CD never reaches the VMCB, so KVM intercepts writes of CR0 from then on."""
    done = run("6.1", "cpuid,sregs:cr0=0xc0010011,nested,regs,nested:flags=0x100,run")
    assert last(done).state.areas["arch"].get("cr0") == 0xC0010011


@pytest.mark.parametrize(("kernel", "killed"), [("6.1", 0), ("6.12.117", 4), ("7.3.2", 0)])
def test_a_killed_vm_answers_eio(run: Run, kernel: str, killed: int, saved_npt: Saved) -> None:
    """7.3.2 refuses L1's state before its paging is worked out."""
    plan = "cpuid,sregs,nested:@0x4d0=0x1400:@0x548=0x0,regs,run"
    done = run(kernel, plan, saved=saved_npt)
    failed = [one.number for one in done.results if one.errno == "EIO"]
    assert failed == ([killed] if killed else [])
    outcome = last(done).outcome
    assert outcome is not None
    assert (outcome.result == "EIO") is bool(killed)


@pytest.mark.parametrize(("kernel", "ends"), [("5.10", "exit"), ("6.1", "SHUTDOWN")])
def test_an_l1_whose_cr3_is_no_address(run: Run, kernel: str, ends: str) -> None:
    """Outside of long mode nothing checks L1's CR3 before the #VMEXIT loads it."""
    plan = "cpuid,sregs,nested:@0x4d0=0x1000:@0x550=0x10000000000,regs,run"
    result = last(run(kernel, plan))
    told = "L1's CR3 is not a legal address: L1 continues with L2's page tables"
    assert result.outcome is not None
    assert result.outcome.result == ends
    assert (told in result.notes) is (kernel == "5.10")
    cr3 = result.state.areas["arch"].get("cr3")
    assert cr3 == 0x104000  # L2's


def test_l1s_own_cr3_is_loaded_where_it_is_legal(run: Run) -> None:
    for kernel in ("5.10", "6.1"):
        result = last(run(kernel, "cpuid,sregs,nested,regs,run"))
        assert result.notes == ()
        assert result.state.areas["arch"].get("cr3") == 0x101000


# x86.c


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
def test_the_same_cpuid_may_be_set_again_after_a_run(run: Run, kernel: str) -> None:
    ran = "cpuid,sregs,nested,regs,run"
    assert last(run(kernel, f"{ran},cpuid")).failed is None
    assert last(run(kernel, f"{ran},cpuid:no=smep")).failed == "U-01"
    assert last(run(kernel, "cpuid,cpuid:no=smep")).failed is None
    assert last(run("5.10", f"{ran},cpuid:no=smep")).failed is None


def test_7_2_freezes_cpuid_in_guest_mode(run: Run) -> None:
    assert last(run("7.2", "cpuid,sregs,nested,cpuid")).failed is None
    assert last(run("7.2", "cpuid,sregs,nested,cpuid:no=smep")).failed == "U-01"
    assert last(run("6.1", "cpuid,sregs,nested,cpuid:no=smep")).failed is None


@pytest.mark.parametrize("flags", ["0x10", "0x1f"])
def test_a_payload_needs_its_capability(run: Run, flags: str) -> None:
    result = last(run("6.1", f"cpuid,sregs,events:flags={flags}:shadow=1"))
    assert result.failed == "U-04"
    assert result.state.shadow == 0


@pytest.mark.parametrize(("kernel", "done"), [("5.10", 0), ("6.1", 1), ("6.12", 1), ("7.2", 1)])
def test_a_triple_fault_without_its_capability_fails_late(run: Run, kernel: str, done: int) -> None:
    result = last(run(kernel, "cpuid,sregs,events:flags=0x2c:shadow=1:smm=1"))
    assert result.failed == "U-04"
    assert (result.state.shadow, int(result.state.smm)) == (done, done)


@pytest.mark.parametrize(
    ("kernel", "broken"), [("5.10", ""), ("6.1", "EIO"), ("6.12", ""), ("7.2", "")]
)
def test_a_late_cpuid_and_nested_paging_without_long_mode(
    run: Run, kernel: str, broken: str
) -> None:
    plan = "cpuid,sregs,nested:@0x4d0=0x1000,cpuid,regs,run"
    result = last(run(kernel, plan, saved=guests()["nested-npt"]))
    assert result.outcome is not None
    assert result.outcome.result == (broken or "exit")


@pytest.mark.parametrize("state", [1, 2])
def test_a_vcpu_that_was_not_started_waits(run: Run, state: int) -> None:
    simulation = run("6.1", f"cpuid,sregs,nested,regs,mpstate:{state},run")
    result = last(simulation)
    assert result.outcome == Outcome(RunEnd.WAITS)
    assert result.state.guest_mode
    assert judge_restore(simulation).verdict is Verdict.RIGHT
    assert judge_restore(simulation).lines == (
        "KVM_RUN waits for INIT or SIPI: nothing was entered.",
    )


def test_a_halted_vcpu_goes_on_once_it_is_woken(run: Run) -> None:
    simulation = run("6.1", "cpuid,sregs,nested,regs,mpstate:3,run")
    result = last(simulation)
    assert result.notes == ("the vCPU is halted: KVM_RUN waits for an event first",)
    assert result.outcome is not None
    assert (result.outcome.result, result.outcome.halted) == ("exit", True)
    assert judge_restore(simulation).verdict is Verdict.RIGHT


@pytest.mark.parametrize("gif", [True, False])
def test_a_sipi_starts_at_vector_0_if_gif_allows(run: Run, gif: bool) -> None:
    result = last(run("6.1", f"cpuid,sregs,mpstate:4,nested:flags={int(gif) << 8:#x},regs,run"))
    assert result.outcome is not None
    if not gif:
        assert result.outcome.result == "waits"
        return
    entry = result.outcome.entry
    assert entry is not None
    assert (result.outcome.level, entry.get("rip")) == ("L1", 0)
    assert (entry.segment("cs").selector, entry.segment("cs").base) == (0, 0)


@pytest.mark.parametrize(
    ("kernel", "npt", "cr4"),
    [
        ("5.10", False, 0xA0),
        ("6.1", False, 0x260),
        ("6.1", True, 0xA0),
        ("6.12.117", False, 0x260),
        ("7.2", False, 0x260),
    ],
)
def test_l1_gets_cr4_of_an_l2_without_paging(run: Run, kernel: str, npt: bool, cr4: int) -> None:
    """Seen on 5.10.223, 6.1.176 and 7.2.12 with npt=0 and npt=1; read in 6.12.117."""
    plan = "cpuid,sregs:cr0=0x31:cr4=0x200:efer=0x1000:cs.l=0,nested:@0x548=0xa0,regs,run"
    simulation = run(kernel, plan, host=Host(npt=npt))
    assert last(simulation).state.areas["arch"].get("cr4") == cr4
    assert any("replaces L1's CR4" in note for note in last(simulation).notes) == (cr4 != 0xA0)


@pytest.mark.parametrize("state", [5, 6, 7, 8, 10])
def test_mp_states_of_other_machines(run: Run, state: int) -> None:
    assert last(run("5.10", f"cpuid,mpstate:{state}")).failed is None
    assert last(run("6.1", f"cpuid,mpstate:{state}")).failed == "U-05"


@pytest.mark.parametrize("state", [2, 4])
def test_smm_while_init_or_sipi_waits(run: Run, state: int) -> None:
    for kernel, failed in (("5.10", "U-04"), ("6.1", "U-04"), ("7.2", None)):
        assert last(run(kernel, f"cpuid,mpstate:{state},events:smm=1")).failed == failed
    assert last(run("6.1", f"cpuid,mpstate:{state},events:smm=0")).failed is None
    assert last(run("6.1", "cpuid,mpstate:3,events:smm=1")).failed is None


def test_sysenter_addresses(run: Run) -> None:
    """Made canonical, then cut to 32 bits: at once, once there is a CPUID, or never."""
    wide, cut = 0x0000_1234_5678_9ABC, 0x5678_9ABC
    for kernel, plan, kept in (
        ("5.10", "cpuid,msrs", wide),
        ("6.1", "cpuid,msrs", cut),
        ("6.1", "msrs", cut),
        ("6.12", "msrs", wide),
        ("7.2", "cpuid,msrs", cut),
    ):
        step = plan.replace("msrs", f"msrs:sysenter_eip={wide:#x}")
        found = last(run(kernel, step)).state.areas["vmcb01"].get("sysenter_eip")
        assert found == kept, (kernel, plan)
    late = last(run("7.2", f"msrs:sysenter_eip={wide:#x},cpuid")).state
    assert late.areas["vmcb01"].get("sysenter_eip") == cut
    odd = last(run("5.10", "msrs:sysenter_esp=0x8000000000000000")).state
    assert odd.areas["vmcb01"].get("sysenter_esp") == 0


# the processor


def test_what_the_processor_does_to_l1(run: Run) -> None:
    plan = "cpuid,sregs,nested:@0x558=0x80000001:@0x570=0:@0x428=0x2000000000001000,regs,run"
    for kernel in ("5.10", "6.1", "7.2"):
        state = last(run(kernel, plan)).state
        assert state.areas["arch"].get("cr0") == PG | ET | 1
        assert state.areas["vmcb01"].get("rflags") == 2
        assert state.areas["vmcb01"].segment("ss").base == 0x1000


def test_cr0_is_not_read_back_where_its_writes_are_intercepted(run: Run) -> None:
    state = last(run("6.1", "cpuid,sregs,nested:@0x558=0xc0000001,regs,run")).state
    assert state.areas["arch"].get("cr0") == 0xC0000001


def test_the_saved_vcpu_is_never_changed() -> None:
    saved = guests()["nested-x"]
    before = saved.sregs.copy()
    simulate(PROFILES["6.1"], saved, plans.parse("cpuid,sregs:cr3=0x1000,nested,regs,run"))
    assert {name: saved.sregs.content(name) for name in saved.sregs} == {
        name: before.content(name) for name in before
    }


# What random sequences against real kernels showed.


@pytest.mark.parametrize(("kernel", "refused"), [("6.12.117", None), ("7.2", "R-03")])
def test_cr4_before_any_cpuid(run: Run, kernel: str, refused: str | None) -> None:
    smep = "sregs:efer=0:cr0=0x10:cs.l=0:cr4=0x100000"
    assert last(run(kernel, smep)).failed == refused
    assert last(run(kernel, f"cpuid,{smep}")).failed is None


def test_vmrun_fails_before_it_needs_the_lost_mmu(run: Run, saved_npt: Saved) -> None:
    plan = "cpuid,sregs2:efer={},nested,cpuid,run"
    for efer, result in (("0x1500", "EFAULT"), ("0x1700", "exit")):
        outcome = last(run("6.1", plan.format(efer), saved=saved_npt)).outcome
        assert outcome is not None
        assert outcome.result == result


def test_rflags_of_l1_have_32_bits_once_it_ran(run: Run) -> None:
    before, after = run("6.1", "cpuid,sregs,nested:@0x570=0x8000000000,regs,run").results[-2:]
    assert before.state.areas["vmcb01"].get("rflags") == 0x80_0000_0002
    assert after.state.areas["vmcb01"].get("rflags") == 2
