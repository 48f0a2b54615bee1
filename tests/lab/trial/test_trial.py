"""Two kernels beside each other: what differs, what only accident makes different."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qemu_svm.lab.box import boot
from qemu_svm.lab.kvm import InBox
from qemu_svm.lab.suites import cache
from qemu_svm.lab.suites.catalogue import of_kernel
from qemu_svm.lab.trial import trial as trials
from qemu_svm.lab.trial.patches import Patch
from qemu_svm.lab.trial.trial import PLANS, Difference, Trial
from qemu_svm.lab.trial.workshop import Module
from qemu_svm.model import plans
from qemu_svm.render.text.lab_patch import render
from qemu_svm.replay.conform import Guest
from qemu_svm.replay.job import ReplayJob, ReplayOptions, ReplayResult
from qemu_svm.replay.replay import perform
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
    sides = trials._Sides(in_box, in_box)
    assert list(sides.run(plain, jobs(plain, *PLANS[:4]))) == [None] * 4
    assert sides.steps > 30
    assert sides.crashes == []


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
    (job,) = jobs(plain, PLAN)
    found = trials._difference(plain, job, replayed, changed(replayed, 3, cr3=0x101000, cr4=0x20))
    assert found is not None
    assert (found.step, found.text, found.inside_only) == (3, "nested", True)
    cr3, cr4 = found.changes
    assert (cr3.name, cr3.without, cr3.with_patch) == ("inside.nested.save.cr3", 0, 0x101000)
    assert (cr3.owner, cr4.owner) == ("L1's", "")
    assert trials._difference(plain, job, replayed, replayed) is None


def test_what_only_the_clock_changes_is_no_difference(plain: Guest, replayed: ReplayResult) -> None:
    (job,) = jobs(plain, PLAN)
    step = replayed.steps[2]
    assert step.inside is not None
    other = {"vmcb02.control.tsc_offset": 1, "vmcb01.control.asid": 77, "requests": 4}
    late = replace(step, inside=step.inside | other)
    result = replace(replayed, steps=(*replayed.steps[:2], late, *replayed.steps[3:]))
    assert trials._difference(plain, job, replayed, result) is None


def test_a_kernel_that_crashes_differs_at_its_step(plain: Guest, replayed: ReplayResult) -> None:
    (job,) = jobs(plain, PLAN)
    dead = replace(replayed, steps=replayed.steps[:4], end="host", host="BUG: kernel NULL pointer")
    found = trials._difference(plain, job, replayed, dead)
    assert found is not None
    assert (found.step, found.text) == (5, "msrs")
    assert found.changes[0].with_patch == "BUG: kernel NULL pointer"


def made(difference: Difference | None) -> Trial:
    patch = Patch(b"x", ("arch/x86/kvm/svm/nested.c",), ("tools/x.c",))
    remarks = ("a.c: Hunk #1 succeeded at 7 with fuzz 2.",)
    module = Module({"kvm-amd.ko": b""}, b"", remarks, ("a.c:1: unused",), "linux-source-6.1 1")
    found = () if difference is None else (difference,)
    return Trial("v3.patch", patch, module, "6.1.176", 1, 10, 20, 130, found, ())


def test_the_report(plain: Guest, replayed: ReplayResult) -> None:
    (job,) = jobs(plain, PLAN)
    found = trials._difference(plain, job, replayed, changed(replayed, 3, cr3=0x101000))
    text = "\n".join(line.plain for line in render(made(found), verbose=False))
    assert "patch: a.c: Hunk #1 succeeded at 7 with fuzz 2." in text
    assert "compiler: a.c:1: unused" in text
    assert "not built: tools/x.c" in text
    assert "after step 3, nested: in the kernel's memory only, no ioctl shows it" in text
    assert "nested.save.cr3  without 0x0, with 0x101000, L1's" in text
    assert "errno and every answer of the ioctls are the same" in text
    document = json.loads(json.dumps(made(found).to_json()))
    assert document["differences"][0]["changes"] == [
        {"name": "inside.nested.save.cr3", "without": "0x0", "with": "0x101000", "owner": "L1's"}
    ]
    assert made(None).good
    assert "nothing differs" in "\n".join(line.plain for line in render(made(None), verbose=False))


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
    from qemu_svm.lab.trial.patches import read_patch

    found = sorted((ROOT / "docs/patches").glob("*.patch"))
    assert len(found) >= 5
    for path in found:
        assert read_patch(path.read_bytes(), path.name).files == ("arch/x86/kvm/svm/nested.c",)
