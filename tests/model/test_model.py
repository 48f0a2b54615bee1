"""Transitions and verdicts that the recordings do not show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import PlanError
from qemu_svm.findings.verdict import Verdict, judge_restore
from qemu_svm.model import plans
from qemu_svm.model.area import Area, Writer
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.observed import flat
from qemu_svm.model.profiles import PROFILES, RELEASED
from qemu_svm.model.saved import Saved
from qemu_svm.model.simulate import simulate
from qemu_svm.x86.cpuid import Cpuid, infer, valid_efer
from qemu_svm.x86.segments import Segment
from tests.model.conftest import Run

RESTORE = "cpuid,sregs,nested,regs,msrs,events,debugregs,run"


@pytest.mark.parametrize("kernel", PROFILES)
@pytest.mark.parametrize("order", ["qemu", "selftests", "qemu-7.2", "qemu-11.1"])
def test_real_orders_are_right_everywhere(run: Run, kernel: str, order: str) -> None:
    simulation = run(kernel, order)
    judgement = judge_restore(simulation)
    assert judgement.verdict is Verdict.RIGHT
    assert all(result.failed is None for result in simulation.results)


@pytest.mark.parametrize("kernel", RELEASED)
def test_qemu_before_5_1_fails(run: Run, kernel: str) -> None:
    judgement = judge_restore(run(kernel, "qemu-5.0"))
    assert judgement.verdict is Verdict.WRONG
    assert judgement.lines[0].startswith("Step 3 (nested) fails with EINVAL: EFER.SVME is clear")
    assert "L2's code would run in L1's context" in judgement.lines[1]


def test_the_verdict_says_whose_and_who_wrote_it(run: Run) -> None:
    judgement = judge_restore(run("6.1", "cpuid,sregs:l1,nested,regs,run"))
    assert judgement.verdict is Verdict.WRONG
    assert judgement.lines[0] == (
        "L2 would run with L1's page tables: CR3 0x101000 instead of 0x104000, "
        "written by step 2 (sregs:l1)"
    )
    first = judgement.differences[0]
    assert (first.level, first.register, first.step, first.whose) == ("L2", "cr3", 2, "L1")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("cpuid,sregs,nested,run", "RIP 0xfff0 instead of 0x100288, left from the vCPU's reset"),
        ("cpuid,sregs,nested,regs:l1,run", "L1's instruction pointer: RIP 0x100238"),
        ("cpuid,sregs,nested,regs,sregs:efer=0x500,run", "L1's context"),
        ("cpuid,sregs,nested,regs,msrs:efer=0x500,run", "L1's context"),
        ("cpuid,sregs,nested,regs,events:smm=1,run", "L1's context"),
        ("cpuid,sregs,nested,regs,nested:flags=0x100,run", "L1's context"),
        ("cpuid,sregs,nested:vmcb_pa=0x3000000,regs,run", "shutdown"),
        ("cpuid,sregs,nested:@0xc/4=0x10040000:@0x48=0x3000000,regs,run", "MSR bitmap"),
    ],
)
@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12", "7.2"])
def test_silent_failures_are_told(run: Run, kernel: str, plan: str, words: str) -> None:
    judgement = judge_restore(
        run(kernel, plan, backed=lambda address, size: address + size <= 32 << 20)
    )
    assert judgement.verdict in (Verdict.WRONG, Verdict.BROKEN)
    assert words in " ".join(judgement.lines)


def test_no_run_no_verdict(run: Run) -> None:
    assert judge_restore(run("6.1", "cpuid,sregs,nested")).verdict is Verdict.OPEN
    assert judge_restore(run("6.1", "cpuid,nested")).verdict is Verdict.REFUSED


def test_a_refusal_that_is_repaired(run: Run) -> None:
    judgement = judge_restore(run("6.1", "cpuid,nested,sregs,nested,regs,run"))
    assert judgement.verdict is Verdict.REFUSED
    assert "SV-03" in judgement.lines[0]


@pytest.mark.parametrize(
    ("kernel", "verdict", "words"),
    [
        ("6.1", Verdict.BROKEN, "EFAULT"),
        ("6.12", Verdict.BROKEN, "never returns"),
        ("7.2", Verdict.RIGHT, "its own registers"),
        ("5.10", Verdict.RIGHT, "its own registers"),
    ],
)
def test_cpuid_after_nested_state(
    run: Run, saved_npt: Saved, kernel: str, verdict: Verdict, words: str
) -> None:
    judgement = judge_restore(run(kernel, "cpuid,sregs,nested,cpuid,regs,run", saved=saved_npt))
    assert judgement.verdict is verdict
    assert words in " ".join(judgement.lines)


def test_nested_paging_on_old_kernels(run: Run, saved_npt: Saved) -> None:
    for kernel in ("5.8", "5.10", "5.11", "5.15"):
        simulation = run(kernel, "cpuid,sregs,nested", saved=saved_npt)
        assert simulation.results[-1].state.mmu_broken == "uninitialised"
        repaired = run(kernel, "cpuid,sregs,nested,sregs:cr4=0x30,sregs", saved=saved_npt)
        assert repaired.results[-1].state.mmu_broken is None
        same = run(kernel, "cpuid,sregs,nested,sregs,nested", saved=saved_npt)
        assert same.results[-1].state.mmu_broken == "uninitialised"
    for kernel in ("5.13", "5.17", "6.1", "7.2"):
        assert run(kernel, RESTORE, saved=saved_npt).results[2].state.mmu_broken is None


def test_sv_16_fails_after_the_switch(run: Run) -> None:
    # Reached by shrinking MAXPHYADDR, as it was measured.
    plan = "cpuid:maxphyaddr=52,sregs:cr3=0x200000000000,cpuid:maxphyaddr=40,nested"
    for kernel, left in (("5.10", None), ("5.15", False), ("6.1", True), ("7.2", True)):
        last = run(kernel, plan).results[-1]
        assert last.failed == (None if left is None else "SV-16")
        if left is not None:
            assert last.state.guest_mode is left


def test_separate_pat(run: Run, saved_npt: Saved) -> None:
    host = Host(separate_pat=True)
    bad = run("7.2", "cpuid,sregs,nested:gpat=0x2", saved=saved_npt, host=host)
    assert bad.results[-1].failed == "SV-17"
    good = run("7.2", "cpuid,sregs,nested:gpat=0x0606060606060606,msrs", saved=saved_npt, host=host)
    assert good.results[-1].state.areas["vmcb02"].get("g_pat") == 0x0606060606060606
    assert run("7.2", "cpuid,sregs,nested:gpat=0x2,msrs", saved=saved_npt).results[2].failed is None


def test_host_without_npt(run: Run, saved_npt: Saved) -> None:
    host = Host(npt=False)
    for kernel in ("5.10", "6.1", "6.12"):
        refused = run(kernel, "cpuid,sregs,nested", saved=saved_npt, host=host)
        assert refused.results[-1].failed == "C-03"
        fine = run(kernel, RESTORE, host=host)
        assert judge_restore(fine).verdict is Verdict.RIGHT
    assert run("7.2", "cpuid,sregs,nested", saved=saved_npt, host=host).results[-1].failed is None


def test_gif_and_run_pending(run: Run) -> None:
    plan = "cpuid,sregs,nested:flags=0x3"
    for kernel, gif, pending in (
        ("5.8", False, 0),
        ("5.10", True, 0),
        ("5.11", True, 1),
        ("5.13", False, 1),
        ("6.1", False, 1),
        ("7.2", False, 2),
    ):
        last = run(kernel, plan).results[-1]
        assert (last.state.gif, last.state.run_pending) == (gif, pending), kernel
    cleared = "cpuid,sregs,nested:flags=0x1,sregs:efer=0x500"
    assert run("6.1", cleared).results[-1].state.gif
    assert run("7.2", cleared).results[-1].state.gif  # leaving guest mode sets it
    outside = "cpuid,sregs,nested:flags=0x0,sregs:efer=0x500"
    assert run("6.1", outside).results[-1].state.gif
    assert not run("7.2", outside).results[-1].state.gif


def test_5_10_loses_l1s_controls_on_a_second_call(run: Run) -> None:
    twice = "cpuid,sregs,nested,nested"
    assert any("L1's own controls" in n for n in run("5.10", twice).results[-1].notes)
    assert run("6.1", twice).results[-1].notes == ()


def test_older_kernels_keep_guest_mode_in_smm(run: Run) -> None:
    last = run("5.15", "cpuid,sregs,nested,events:smm=1").results[-1]
    assert (last.state.guest_mode, last.state.smm) == (True, True)
    assert any("inconsistent" in note for note in last.notes)


def test_sregs2_and_msrs(run: Run) -> None:
    assert run("5.10", "cpuid,sregs2").results[-1].failed == "R-06"
    assert run("6.1", "cpuid,sregs2,msrs:efer=0x8000000000000000").results[-1].failed == "U-02"
    assert run("6.1", "msrs:lstar=0x8000000000000000").results[-1].failed == "U-02"
    assert run("6.1", "msrs:pat=0x2").results[-1].failed == "U-02"
    found = run("6.1", "cpuid,sregs,nested,msrs:pat=0x6:tsc=5:vm_hsave_pa=0x109fff").results[-1]
    assert found.state.areas["vmcb02"].get("g_pat") == 6
    assert found.state.areas["arch"].get("vm_hsave_pa") == 0x109000
    assert found.state.areas["arch"].get("tsc") == 5


def test_pae_l2_reads_its_pdptes(saved: Saved) -> None:
    sregs = saved.sregs.copy()
    sregs.set("efer", 0x1000, Writer(0, "test"))
    code = sregs.segment("cs")
    sregs.set("cs", replace(code, attrib=code.attrib & ~0x200), Writer(0, "test"))
    pae = replace(saved, sregs=sregs)
    for settings_, said in (("", True), (":pdptr0=0x1000", False)):
        steps = plans.parse(f"cpuid,sregs2{settings_},nested,regs,run")
        notes = simulate(PROFILES["6.1"], pae, steps).results[-1].notes
        assert any("PDPTEs" in note for note in notes) is said


@pytest.mark.parametrize(
    ("step", "failed"),
    [
        ("events:flags=0x40", "U-04"),
        ("events:flags=0x1f", "U-04"),
        ("events:exc_injected=1:exc_nr=40", "U-04"),
        ("events:exc_injected=1:exc_nr=2", "U-04"),
        ("events:exc_injected=1:exc_nr=14", None),
        ("debugregs:dr6=0x100000000", "U-03"),
        ("debugregs:flags=1", "U-03"),
        ("mpstate:2", None),
        ("sregs:cr0=0x80000000", "R-04"),
        ("sregs:cr3=0x10000000000", "R-02"),
        ("sregs:cr4=0x80000020", "R-03"),
        ("sregs:efer=0x1100", "R-01"),
        ("sregs:cs.l=0:efer=0x1000", None),
        ("sregs:efer=0x1000", "R-01"),
        ("sregs:apic_base=0xfee00d00", None),
        ("sregs:apic_base=0xfee00500", "R-07"),
        ("sregs:apic_base=0x10000000900", "R-07"),
        ("sregs:apic_base=0xfee00901", "R-07"),
        ("sregs2:pdptr0=0x1", "R-08"),
        ("sregs:pdptr0=0x1", None),
        ("msrs:fs_base=0x800000000000", "U-02"),
        ("msrs:tsc_ratio=0", None),
        ("msrs:tsc_ratio=0x200000000", "U-02"),
        ("msrs:vm_cr=0x10", None),
        ("msrs:efer=0x1000:vm_cr=0x10", "U-02"),
    ],
)
def test_other_ioctls_check_too(run: Run, step: str, failed: str | None) -> None:
    assert run("6.1", f"cpuid,{step}").results[-1].failed == failed


def test_an_msr_that_is_not_known(run: Run) -> None:
    with pytest.raises(PlanError, match="no MSR 'lstra'"):
        run("6.1", "msrs:lstra=1")


def test_init_at_the_next_run(run: Run) -> None:
    init = "events:latched_init=1:flags=8"
    plans_ = {
        f"cpuid,sregs,nested,regs,{init},run": "reset",
        f"cpuid,sregs,nested:flags=0x1,regs,{init},run": "exit",
        f"cpuid,sregs,nested:@0xc/4=0x80040008,regs,{init},run": "exit",
        "cpuid,sregs,mpstate:2,nested:flags=0x1,regs,run": "waits",
    }
    for plan, result in plans_.items():
        simulation = run("6.1", plan)
        outcome = simulation.results[-1].outcome
        assert outcome is not None
        assert outcome.result == result, plan
        assert (judge_restore(simulation).verdict is Verdict.BROKEN) == (result == "reset")
    waiting = run("7.2", "cpuid,sregs,mpstate:2,nested:flags=0x1,regs,run").results[-1].outcome
    assert waiting is not None
    assert waiting.result == "EINVAL"


def test_smi_before_the_run(run: Run, saved_npt: Saved) -> None:
    smi = "events:smm_pending=1:flags=8"
    plans_ = {
        f"cpuid,sregs,nested,regs,{smi},run": "smi",
        f"cpuid,sregs,nested,cpuid,regs,{smi},run": "smi",  # 6.1.176: not EFAULT
        f"cpuid,sregs,nested:flags=0x1,regs,{smi},run": "exit",
        f"cpuid,sregs,nested:@0xc/4=0x80040004,regs,{smi},run": "exit",
    }
    for plan, result in plans_.items():
        simulation = run("6.1", plan, saved=saved_npt)
        outcome = simulation.results[-1].outcome
        assert outcome is not None
        assert outcome.result == result, plan
        assert judge_restore(simulation).verdict is Verdict.RIGHT


def test_another_processor_waits_until_it_is_told_to_run(run: Run) -> None:
    other = Host(bsp=False)
    for plan, result in (("", "waits"), ("mpstate:0,", "exit")):
        outcome = run("6.1", f"cpuid,sregs,nested,regs,{plan}run", host=other).results[-1].outcome
        assert outcome is not None
        assert outcome.result == result


@pytest.mark.parametrize("npt", [True, False])
def test_pat_of_a_fresh_vmcb(run: Run, npt: bool) -> None:
    """Seen on 6.1.176 and 7.2.12 with npt=0."""
    state = run("6.1", "cpuid,sregs,nested", host=Host(npt=npt)).results[-1].state
    assert flat(state, split=True)["shared.g_pat"] == (0x0007040600070406 if npt else 0)


@pytest.mark.parametrize(("kernel", "found"), [("6.1", 0x6), ("7.2", 0)])
def test_pat_without_nested_paging_on_the_host(run: Run, kernel: str, found: int) -> None:
    """Seen on 6.1.176 and 7.2.12 with npt=0."""
    plan = "cpuid,sregs,msrs:pat=0x6,nested"
    state = run(kernel, plan, host=Host(npt=False)).results[-1].state
    assert (flat(state, split=True)["shared.g_pat"], state.areas["arch"].get("pat")) == (found, 6)


@pytest.mark.parametrize(
    ("kernel", "failed"), [("6.1", None), ("6.12.117", "U-02"), ("7.2", "U-02")]
)
def test_tsc_aux_before_any_cpuid(run: Run, kernel: str, failed: str | None) -> None:
    """Seen on 6.1.176 and 7.2.12, read in 6.12.117."""
    assert run(kernel, "msrs:tsc_aux=0x100000000").results[-1].failed == failed
    assert run(kernel, "cpuid,msrs:tsc_aux=0x100000000").results[-1].failed is None


def test_mp_state(run: Run) -> None:
    no_apic = Host(irqchip=False)
    assert run("6.1", "mpstate:2", host=no_apic).results[-1].failed == "U-05"
    plan = "cpuid,sregs,nested:flags=0x1,mpstate:2"
    assert run("6.1", plan).results[-1].failed == "U-05"
    assert run("7.2", plan).results[-1].failed is None
    held = "mpstate:2,events:smm=1"
    assert run("6.1", held).results[-1].failed == "U-04"


@pytest.mark.parametrize(
    ("size", "outside", "inside"),
    [
        (0, "E2BIG", "E2BIG"),
        (127, "E2BIG", "E2BIG"),
        (128, None, "E2BIG"),
        (4223, None, "E2BIG"),
        (4224, None, None),
        (8192, None, None),
    ],
)
def test_get_nested_state(run: Run, size: int, outside: str | None, inside: str | None) -> None:
    found = run("6.1", f"cpuid,sregs,get:size={size},nested,get:size={size}")
    assert found.results[2].errno == outside
    assert found.results[4].errno == inside
    assert run("6.1", "get").results[0].errno is None


def test_cpuid_is_frozen_after_a_run(run: Run) -> None:
    plan = "cpuid,sregs,nested,regs,run,cpuid:nosvm"
    assert run("6.1", plan).results[-1].failed == "U-01"
    assert run("5.10", plan).results[-1].failed is None
    assert run("7.2", "cpuid,sregs,nested,cpuid:nosvm").results[-1].failed == "U-01"
    assert run("6.1", "cpuid:no=lm:with=umip,cpuid").results[-1].failed is None


# Plans.


@pytest.mark.parametrize("name", plans.NAMED)
def test_named_plans_parse(name: str) -> None:
    source = plans.SOURCES.get(name, "")
    assert source or name == "qemu"
    nested = 0 if "no nested state" in source else 1
    assert [step.name for step in plans.parse(name)].count("nested") == nested


def test_a_vmm_without_nested_state_lets_l2_go_on_as_l1(run: Run) -> None:
    for name, source in plans.SOURCES.items():
        if name == "qemu-5.0":  # refused: NESTED_STATE comes before SREGS
            continue
        done = run("6.1", name)
        assert all(one.failed is None for one in done.results), name
        dropped = "no nested state" in source
        assert judge_restore(done).verdict is (Verdict.WRONG if dropped else Verdict.RIGHT), name


def test_flags_of_events_need_a_capability_only_with_an_event() -> None:
    """QEMU 7.2 puts 0x39 (tests/recording has the recording)."""
    step = next(step for step in plans.parse("qemu-7.2") if step.name == "events")
    assert dict(step.settings) == {"flags": 0x39}
    old = next(step for step in plans.parse("qemu-5.2") if step.name == "events")
    assert dict(old.settings) == {"flags": 0x19}


def test_plan_language() -> None:
    (step,) = plans.parse("nested:flags=0x1:@0x550=0x104000:@0x5c/1=3")
    assert step.settings == (("flags", 1), ("@0x550", 0x104000), ("@0x5c/1", 3))
    assert plans.parse(" cpuid , sregs:l1 ")[1].flags == ("l1",)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("", "qemu"),
        (",,", "qemu"),
        ("cpuid,sreg", "sregs"),
        ("nested:flag=1", "flags"),
        ("sregs:l2", "l1"),
        ("regs:rip=zz", ""),
        ("regs:rip=0x10000000000000000", ""),
        ("events:smn=1", "smm"),
    ],
)
def test_wrong_plans(text: str, near: str) -> None:
    with pytest.raises(PlanError) as caught:
        plans.parse(text)
    assert near == "" or near in caught.value.near


@pytest.mark.parametrize(
    "step",
    [
        "sregs:zz=1",
        "sregs:cs.zz=1",
        "regs:zz=1",
        "nested:@zz=1",
        "nested:@0x1000=1",
        "nested:@0/3=1",
        "cpuid:no=zz",
    ],
)
def test_settings_that_name_nothing(run: Run, step: str) -> None:
    with pytest.raises(PlanError):
        run("6.1", step)


STEP = st.sampled_from(
    [
        "cpuid",
        "cpuid:nosvm",
        "sregs",
        "sregs:l1",
        "sregs:efer=0x500",
        "nested",
        "nested:flags=0x103",
    ]
    + ["nested:flags=0x100", "nested:@0x58/4=0", "nested:@0x90=1", "regs", "regs:l1", "msrs"]
    + ["msrs:efer=0x500", "msrs:efer=0x1500", "events", "events:smm=1", "events:shadow=1"]
    + ["debugregs", "mpstate:2", "mpstate:0", "run", "vmrun", "smi", "rsm", "xsave"]
)


@settings(max_examples=400)
@given(st.lists(STEP, min_size=1, max_size=10), st.sampled_from(list(PROFILES)))
def test_invariants_hold_in_any_order(steps: list[str], kernel: str) -> None:
    from tests.model.recorded import backed, guests

    model = simulate(
        PROFILES[kernel], guests()["nested-x"], plans.parse(",".join(steps)), backed=backed
    )
    judge_restore(model)
    previous = model.start
    for result in model.results:
        state = result.state
        assert (state.nested.size == 4224) is state.guest_mode
        if not PROFILES[kernel].leave_sets_gif and not state.guest_mode:
            assert state.run_pending == 0
        # An ioctl that fails changes nothing; MSRs stop at the bad one.
        clean = result.failed != "SV-16" and kernel != "v3" and result.step.name != "msrs"
        if result.failed and clean:
            assert state.guest_mode == previous.guest_mode
            for name, area in state.areas.items():
                old = previous.areas[name]
                assert {k: area.content(k) for k in area} == {k: old.content(k) for k in old}
        previous = state


# The data.


def test_cpuid_of_a_saved_vcpu() -> None:
    assert infer(0x20, 0x20, 0x1500) == Cpuid()
    assert infer(1 << 12, 0, 0).has("la57")
    assert not infer(0, 1 << 12, 0).has("la57")
    assert infer(0, 1 << 11, 0).has("umip")
    assert infer(0, 0, 1 << 14).has("fxsr_opt")
    host = Cpuid(Cpuid().features | {"fxsr_opt", "autoibrs"})
    assert valid_efer(host, host, 0x205501)
    assert not valid_efer(host, Cpuid(), 0x4000)


def test_areas_remember_their_writers() -> None:
    one, two = Area("one", {"a": 1}), Area("two")
    one.set("b", 2, Writer(3, "f"))
    two.copy_from(one, ["b", "zz"])
    assert (two.get("b"), two.writer("b")) == (2, Writer(3, "f"))
    assert (two.get("zz"), two.segment("b"), two.writer("zz").step) == (0, Segment(0, 0, 0, 0), 0)
    with pytest.raises(KeyError):
        two.content("a")


def test_simulation_is_repeatable(run: Run) -> None:
    one: Any = run("6.1", RESTORE)
    two: Any = run("6.1", RESTORE)
    for left, right in zip(one.results, two.results, strict=True):
        assert left.notes == right.notes
        assert left.state.nested == right.state.nested
