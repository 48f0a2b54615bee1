"""Two kernels beside each other: what differs, what only accident makes different."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from qemu_svm.lab.box import boot
from qemu_svm.lab.kvm import InBox
from qemu_svm.lab.suites import cache
from qemu_svm.lab.suites.catalogue import of_kernel
from qemu_svm.lab.trial import trial as trials
from qemu_svm.lab.trial.differ import Difference, Tally, difference, kinds
from qemu_svm.lab.trial.patches import Patch, read_patch
from qemu_svm.lab.trial.sides import CRASHES, Crash, Sides
from qemu_svm.lab.trial.trial import PLANS, Trial
from qemu_svm.lab.trial.workshop import Module
from qemu_svm.model import plans
from qemu_svm.model.kvm.vcpu import RunEnd
from qemu_svm.nested.layout import CONTROL, VMCB_SIZE
from qemu_svm.render.text.lab_patch import render
from qemu_svm.replay.conform import Guest
from qemu_svm.replay.job import ReplayJob, ReplayOptions, ReplayResult
from qemu_svm.replay.memory import STOP, STUB_BYTES, patches
from qemu_svm.replay.replay import against_model, perform
from tests.conftest import ROOT, STREAMS, Run

FILE = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"
PLAN = "cpuid,sregs,nested,regs,msrs,run"


def jobs(guest: Guest, *texts: str) -> list[ReplayJob]:
    options = ReplayOptions(seconds=30, shorten=True, emulated=True)
    return [ReplayJob(text, guest.saved, plans.parse(text), options) for text in texts]


@pytest.fixture(scope="module")
def replayed(in_box: InBox, plain: Guest) -> ReplayResult:
    job = jobs(plain, PLAN)
    return next(perform(in_box, plain.ram, job, in_box.probe(), in_box.layout()))


def test_one_kernel_does_not_differ_from_itself(in_box: InBox, plain: Guest) -> None:
    with ThreadPoolExecutor(1) as pool:  # one box: one side after the other
        sides = Sides(in_box, in_box, pool)
        assert list(sides.run(plain, jobs(plain, *PLANS[:2]))) == [None] * 2
    assert sides.tally.steps > 15
    assert sides.tally.differing == set()
    assert {"errno", "run", "l1", "inside.vmcb02.save", "inside.nested.ctl"} <= sides.tally.seen
    assert sides.crashes == []


def compared(plain: Guest, one: ReplayResult, other: ReplayResult) -> Difference | None:
    (job,) = jobs(plain, PLAN)
    return difference(plain, job, one, other, Tally())


def changed(result: ReplayResult, number: int, **inside: int) -> ReplayResult:
    """The result of a kernel that differs in its memory after a step."""
    step = result.steps[number - 1]
    assert step.inside is not None
    wrong = replace(step, inside=step.inside | {f"nested.save.{k}": v for k, v in inside.items()})
    steps = (*result.steps[: number - 1], wrong, *result.steps[number:])
    return replace(result, steps=steps)


def test_the_first_step_that_differs_in_the_words_of_the_field(
    plain: Guest, replayed: ReplayResult
) -> None:
    found = compared(plain, replayed, changed(replayed, 3, cr3=0x101000, cr4=0x20))
    assert found is not None
    assert (found.step, found.text, found.inside_only) == (3, "nested", True)
    cr3, cr4 = found.changes
    assert (cr3.name, cr3.without, cr3.with_patch) == ("inside.nested.save.cr3", 0, 0x101000)
    assert (cr3.owner, cr4.owner) == ("L1's", "")
    assert compared(plain, replayed, replayed) is None


def test_the_model_has_nothing_in_a_save_cache_that_nobody_filled(
    in_box: InBox, plain: Guest, replayed: ReplayResult
) -> None:
    (job,) = jobs(plain, PLAN)
    for result, names in (
        (replayed, []),
        (changed(replayed, 3, cr3=0x101000), ["inside.nested.save.cr3"]),
    ):
        _, found = against_model(job, plain.ram, in_box.probe(), result)
        assert [one.name for step in found.steps for one in step.mismatches] == names


def test_what_only_the_clock_changes_is_no_difference(plain: Guest, replayed: ReplayResult) -> None:
    step = replayed.steps[2]
    assert step.inside is not None
    other = {"vmcb02.control.tsc_offset": 1, "vmcb01.control.asid": 77}
    other["requests"] = step.inside["requests"] ^ 1 << 12
    late = replace(step, inside=step.inside | other)
    result = replace(replayed, steps=(*replayed.steps[:2], late, *replayed.steps[3:]))
    assert compared(plain, replayed, result) is None


def test_until_when_the_memory_differs(plain: Guest, replayed: ReplayResult) -> None:
    """A member that only memory has: refilled by a later step, or shown by one."""
    wrong = changed(replayed, 3, cr3=0x101000)
    found = compared(plain, replayed, wrong)
    assert found is not None
    assert (found.until, found.shown, found.outside) == ((4, "regs"), None, False)
    assert found.plan == "cpuid,sregs,nested"
    last = wrong.steps[-1]
    late = replace(last, state=last.state | {"sregs.cr3": 0x999000})
    found = compared(plain, replayed, replace(wrong, steps=(*wrong.steps[:-1], late)))
    assert found is not None
    assert found.shown is not None
    assert (found.shown.step, [one.name for one in found.shown.changes]) == (6, ["sregs.cr3"])
    assert (found.inside_only, found.outside, found.plan) == (True, True, PLAN)


def test_differences_of_one_kind_are_one(plain: Guest, replayed: ReplayResult) -> None:
    (job,) = jobs(plain, PLAN)
    found = []
    for members in ({"cr3": 1, "cr4": 2}, {"cr3": 1, "cr4": 2, "efer": 3}, {"dr7": 1}):
        one = compared(plain, replayed, changed(replayed, 3, **members))
        assert one is not None
        found.append((plain, job, one))
    assert [len(kind) for kind in kinds(found)] == [2, 1]


def made(*found: Difference, crashes: tuple[Crash, ...] = ()) -> Trial:
    patch = Patch(b"x", ("arch/x86/kvm/svm/nested.c",), ("tools/x.c",))
    remarks = ("a.c: Hunk #1 succeeded at 7 with fuzz 2.",)
    files = {"kvm-amd.ko": b""}
    module = Module(files, b"", {}, remarks, ("a.c:1: unused",), "linux-source-6.1 1")
    places = {"BUG: NULL": "svm_set_nested_state, arch/x86/kvm/svm/nested.c:1669"}
    same = ("errno", "inside.vmcb01.save")
    return Trial(
        "v3.patch", patch, module, "6.1.176", 1, 10, 20, 130, found, crashes, same, (), places
    )


def shown(trial: Trial) -> str:
    return "\n".join(line.plain for line in render(trial, verbose=False))


def test_the_report(plain: Guest, replayed: ReplayResult) -> None:
    found = compared(plain, replayed, changed(replayed, 3, cr3=0x101000))
    assert found is not None
    text = shown(made(found))
    assert "patch: a.c: Hunk #1 succeeded at 7 with fuzz 2." in text
    assert "compiler: a.c:1: unused" in text
    assert "not built: tools/x.c" in text
    assert "built: kvm-amd.ko, linux-source-6.1 1" in text
    assert (
        "after step 3, KVM_SET_NESTED_STATE: nested.save with registers of L1 in the kernel's "
        "memory only until step 4, KVM_SET_REGS; no ioctl shows it" in text
    )
    assert "nested.save.cr3  without 0x0, with 0x101000, L1's" in text
    assert "errno and every answer of the ioctls are the same" in text
    assert "does not differ: the errno of every ioctl\nnor inside: vmcb01.save" in text
    document = json.loads(json.dumps(made(found).to_json()))
    assert document["differences"][0]["changes"] == [
        {"name": "inside.nested.save.cr3", "without": "0x0", "with": "0x101000", "owner": "L1's"}
    ]
    assert document["differences"][0]["until"] == {"step": 4, "text": "regs"}
    assert made().good
    assert "nothing differs" in shown(made())


def test_a_crash_in_the_report() -> None:
    crash = Crash("g", "cpuid,sregs,nested", True, "BUG: NULL", 3, "nested", "RIP: 0010:f+0x1/0x2")
    trial = made(crashes=(crash, replace(crash, plan="cpuid,nested")))
    text = shown(trial)
    assert (
        "in step 3, KVM_SET_NESTED_STATE, the kernel with the patch crashes: BUG: NULL\n"
        "     in svm_set_nested_state, arch/x86/kvm/svm/nested.c:1669\n"
        "     cpuid,nested  (g, and 1 more plan)" in text
    )
    assert "changes what KVM does in 1 way" in text
    assert not trial.good
    assert trial.to_json()["crashes"][0]["place"].endswith("nested.c:1669")


def test_a_module_takes_the_place_of_the_kernels_own() -> None:
    built = cache.find(of_kernel("6.1"))
    assert built is not None
    own, other = (boot.initrd(built, built, one) for one in ({}, {"kvm-amd.ko": b"\x7fELF other"}))
    try:
        assert own != other
        assert b"\x7fELF other" in other.read_bytes()
        assert b"\x7fELF other" not in own.read_bytes()
    finally:
        other.unlink()


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("no patch\n", 3, b"has no change"),
        ("--- a/mm/mmap.c\n+++ b/mm/mmap.c\n@@ -1 +1 @@\n-a\n+b\n", 5, b"changes mm/mmap.c"),
        ("--- a/../etc/passwd\n+++ b/../etc/passwd\n@@ -1 +1 @@\n-a\n+b\n", 5, b"not one inside"),
    ],
)
def test_what_is_refused_starts_nothing(
    text: str, status: int, words: bytes, svmstream: Run, tmp_path: Path
) -> None:
    path = tmp_path / "p.patch"
    path.write_text(text)
    done = svmstream("lab", "patch", path, FILE)
    assert (done.returncode, done.stdout) == (status, b"")
    assert words in done.stderr


def test_the_patches_of_the_documentation_can_be_read() -> None:
    found = sorted((ROOT / "docs/patches").glob("*.patch"))
    assert len(found) >= 5
    for path in found:
        assert read_patch(path.read_bytes(), path.name).files == ("arch/x86/kvm/svm/nested.c",)


@pytest.mark.parametrize(("bit", "differs"), [(4, False), (8, False), (24, True), (26, True)])
def test_requests_that_come_by_themselves(
    plain: Guest, replayed: ReplayResult, bit: int, differs: bool
) -> None:
    """KVM_REQ_CLOCK_UPDATE and STEAL_UPDATE do; a flush of the TLB does not."""
    step = replayed.steps[2]
    assert step.inside is not None
    other = {"requests": step.inside["requests"] ^ 1 << 8 + bit}
    late = replace(step, inside=step.inside | other)
    result = replace(replayed, steps=(*replayed.steps[:2], late, *replayed.steps[3:]))
    found = compared(plain, replayed, result)
    assert (found is not None) == differs


def test_whose_register_it_is(plain: Guest, replayed: ReplayResult) -> None:
    """Those that KVM_SET_REGS loads have owners as well."""
    step = replayed.steps[2]
    assert step.inside is not None
    other = {"vmcb02.save.rip": plain.saved.l1().get("rip"),
             "vmcb02.save.rsp": plain.saved.regs["rsp"]}  # fmt: skip
    wrong = replace(step, inside=step.inside | other)
    result = replace(replayed, steps=(*replayed.steps[:2], wrong, *replayed.steps[3:]))
    found = compared(plain, replayed, result)
    assert found is not None
    assert [one.owner for one in found.changes] == ["L1's", "L2's"]


def test_what_l1_executes_in_a_plan_with_two_runs(plain: Guest) -> None:
    """After its exit L1 stops, then executes VMRUN, then stops again."""
    steps = plans.parse(PLAN + ",run")
    found = {
        vmrun: dict(patches(plain.ram.read, plain.saved, steps, shorten=True, vmrun=vmrun))
        for vmrun in (False, True)
    }
    place = plain.saved.l1().get("rip")  # L1's paging is one to one
    stop = STOP[:2]
    assert found[False][place].startswith(stop * 3)
    assert found[True][place].startswith(stop + b"\x0f\x01\xd8" + stop)
    assert all(len(stub) <= STUB_BYTES for stub in (found[True][place], found[False][place]))


def test_the_step_in_which_l1_executes_vmrun_is_named(plain: Guest, replayed: ReplayResult) -> None:
    (job,) = jobs(plain, PLAN + ",run")
    runs = (*replayed.steps, replace(replayed.steps[-1], number=7))
    result = replace(replayed, steps=runs)
    late = runs[-1]
    assert late.inside is not None
    wrong = replace(late, inside=late.inside | {"nested.save.cr3": 0x999000})
    found = difference(plain, job, result, replace(result, steps=(*runs[:-1], wrong)), Tally())
    assert found is not None
    assert "after step 7, KVM_RUN, in which L1 executes VMRUN: nested.save.cr3" in shown(
        made(found)
    )


def test_what_l1_finds_in_its_memory(plain: Guest, replayed: ReplayResult) -> None:
    """A #VMEXIT that writes another exit code to vmcb12 is seen by nobody else."""
    last = replayed.steps[-1]
    assert last.run is not None
    assert len(last.run.vmcb12) == VMCB_SIZE
    code = CONTROL.member("exit_code").offset
    page = bytearray(last.run.vmcb12)
    page[code : code + 4] = b"\xff" * 4
    wrong = replace(last, run=replace(last.run, vmcb12=bytes(page)))
    found = compared(plain, replayed, replace(replayed, steps=(*replayed.steps[:-1], wrong)))
    assert found is not None
    assert found.outside
    assert [one.name for one in found.changes] == ["vmcb12.control.exit_code"]
    text = shown(made(found))
    assert "after step 6, KVM_RUN: L1 finds vmcb12.control.exit_code" in text
    assert "errno and every answer" not in text


def test_a_hang_that_cannot_be_tried_again_does_not_count(
    in_box: InBox, plain: Guest, replayed: ReplayResult
) -> None:
    """Time limits end runs on a busy machine; a kernel that crashed is not asked again."""
    last = replayed.steps[-1]
    assert last.run is not None
    hung = replace(last, run=replace(last.run, result=RunEnd.HANG.value))
    late = compared(plain, replayed, replace(replayed, steps=(*replayed.steps[:-1], hung)))
    other = compared(plain, replayed, changed(replayed, 3, cr3=0x101000))
    assert late is not None
    assert other is not None
    assert (late.hung, other.hung) == (True, False)
    crash = Crash("g", PLAN, True, "BUG: NULL", 3, "nested", "RIP: 0010:f+0x1/0x2")
    with ThreadPoolExecutor(1) as pool:
        sides = Sides(in_box, in_box, pool, crashes=[crash] * CRASHES)
        (job,) = jobs(plain, PLAN)
        assert trials._confirmed(sides, [(plain, job, late), (plain, job, other)]) == [other]
