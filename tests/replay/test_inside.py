"""The kernel's memory after each step, in the shared box."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

import qemu_svm as svm
from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.layout import ADDRESSES
from qemu_svm.inside.lazy import RULES
from qemu_svm.inside.saved import apart, would_save
from qemu_svm.inside.view import Looks
from qemu_svm.lab.kvm import InBox
from qemu_svm.model import plans
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.simulate import simulate
from qemu_svm.replay.compare import Mismatch, compare
from qemu_svm.replay.conform import Guest, read_guest
from qemu_svm.replay.job import ReplayJob, ReplayOptions, ReplayResult, encode
from qemu_svm.replay.replay import against_model, perform
from tests.conftest import ROOT, STREAMS

PLAN = "cpuid,sregs,nested,regs,msrs,run"


def job(guest: Guest, plan: str = PLAN) -> ReplayJob:
    options = ReplayOptions(seconds=60, shorten=True, emulated=True)
    return ReplayJob("0", guest.saved, plans.parse(plan), options)


@pytest.fixture(scope="module")
def replayed(in_box: InBox, plain: Guest) -> ReplayResult:
    probe = in_box.probe()
    (found,) = perform(in_box, plain.ram, [job(plain)], probe, in_box.layout())
    return found


def test_both_vmcbs_and_the_caches(replayed: ReplayResult, plain: Guest) -> None:
    """KVM_SET_NESTED_STATE of 6.1: L1's registers in vmcb01, L2's in vmcb02, no save cache."""
    l1, l2 = plain.saved.l1(), plain.saved.sregs
    assert replayed.start is not None
    assert replayed.start["current"] == "vmcb01"
    assert "vmcb02.save.cr3" not in replayed.start  # not allocated before EFER.SVME is set
    nested, last = replayed.steps[2].inside, replayed.steps[-1].inside
    assert nested is not None
    assert last is not None
    assert (nested["current"], nested["guest_mode"], nested["gif"]) == ("vmcb02", 1, 1)
    assert nested["nested.vmcb12_gpa"] == plain.saved.nested.vmcb_pa
    assert nested["vmcb01.save.cr3"] == l1.get("cr3") != l2.get("cr3")
    assert nested["vmcb02.save.cr0"] == l2.get("cr0")
    assert nested["nested.ctl.asid"] == plain.saved.control().get("asid")
    saved = {name: value for name, value in nested.items() if name.startswith("nested.save.")}
    assert set(saved) >= {f"nested.save.{name}" for name in ("efer", "cr0", "cr3", "dr6", "dr7")}
    assert saved.pop("nested.save.cs") == [0, 0, 0, 0]
    assert not any(saved.values())
    assert (last["current"], last["vmcb02.save.cr3"]) == ("vmcb01", l2.get("cr3"))
    assert last["vmcb02.control.exit_code"] == 0x72


def test_the_ioctls_answer_what_memory_says(replayed: ReplayResult) -> None:
    """In every step: what would be saved, computed from memory, is what KVM returns."""
    for step in replayed.steps:
        assert step.inside is not None
        saved = would_save(step.inside)
        assert list(apart(saved, step.state)) == []
        assert len(saved.keys() & step.state.keys()) >= (100 if step.in_guest_mode else 50)


def test_the_members_of_this_kernel_and_no_others(in_box: InBox) -> None:
    places = in_box.layout().places
    assert "nested.save.cs" in in_box.layout().segments
    assert "nested.save.rip" not in places  # 7.x
    assert "guest_gif" not in places  # 6.4
    assert in_box.layout().map["pages"].keys() == {"vmcb01", "vmcb02"}


def test_no_address_of_the_host_unless_asked_for(in_box: InBox, plain: Guest,
                                                 replayed: ReplayResult) -> None:  # fmt: skip
    hidden = {f"{vmcb}.control.{name}" for vmcb in ("vmcb01", "vmcb02") for name in ADDRESSES}
    last = replayed.steps[-1].inside
    assert last is not None
    assert not hidden & set(last)
    layout = in_box.layout().with_addresses()
    (shown,) = perform(in_box, plain.ram, [job(plain, "cpuid,sregs")], in_box.probe(), layout)
    inside = shown.steps[-1].inside
    assert inside is not None
    assert hidden <= set(inside)
    assert inside["vmcb01.address"] >> 47 == 0x1FFFF
    assert inside["vmcb01.address"] != inside["vmcb02.address"]


def test_a_look_at_what_did_not_change_is_small(in_box: InBox, plain: Guest) -> None:
    steps = job(plain, "cpuid,sregs,nested,get,get")
    probe = in_box.probe()
    performed = in_box.perform(plain.ram, [encode(steps, plain.ram, probe)], in_box.layout())
    lines = next(performed).steps
    assert [len(line["inside"]) for line in lines] == [2, 1, 1, 1, 1]
    sizes = [len(json.dumps(line["inside"])) for line in lines]
    assert sizes[-1] < 200
    assert max(sizes) < 6000
    list(performed)


def test_what_only_memory_shows(in_box: InBox, plain: Guest, replayed: ReplayResult) -> None:
    """The posted patch answers every ioctl as the merged code does, and fills nested.save."""
    host = Host(cpuid=in_box.probe().features)
    v3 = simulate(PROFILES["v3"], plain.saved, job(plain).steps, host=host,
                  backed=plain.ram.backed)  # fmt: skip
    found = compare(v3, replayed, shortened=True)
    wrong = {one.name: one for one in found.steps[-1].mismatches}
    assert found.steps[-1].number == 3
    assert wrong["inside.nested.save.cr3"] == Mismatch("inside.nested.save.cr3", 0x101000, 0)
    assert all(name.startswith("inside.") for name in wrong)
    _, right = against_model(job(plain), plain.ram, in_box.probe(), replayed)
    assert right.first() is None


GUESTS = ("gif-clear", "inject", "l2-gif-clear", "smm")


def test_captures_of_every_state_agree_inside(in_box: InBox, tmp_path: Path) -> None:
    """Guests in states that are rare, restored in QEMU's order, with a run."""
    seen = set()
    for name in GUESTS:
        with svm.open(STREAMS / f"guests/qemu10.0-linux6.12-{name}.mig.zst") as dump:
            one = read_guest(dump.machine, tmp_path / name)
        with closing(one.ram):
            work = job(one, "qemu")
            (found,) = perform(in_box, one.ram, [work], in_box.probe(), in_box.layout())
            _, compared = against_model(work, one.ram, in_box.probe(), found)
        assert compared.first() is None, name
        last = found.steps[-2].inside
        assert last is not None
        seen.add((last["guest_mode"], last["gif"], last["smm"]))
    assert seen >= {(0, 0, 0), (1, 1, 0), (1, 0, 0), (0, 1, 1)}


def test_an_answer_that_is_no_look(in_box: InBox) -> None:
    layout = in_box.layout()
    for look in ({}, {"parts": {"svm": [[-8, "00"]]}, "points": {}}, {"parts": {"vmcb09": []}},
                 {"parts": {"vmcb01": [[4090, "00" * 16]]}, "points": {}},
                 {"parts": {"svm": [[0, "zz"]]}, "points": {}}, {"parts": 3}):  # fmt: skip
        with pytest.raises(EnvironmentFault, match="cannot be read"):
            Looks(layout).see(look)
    with pytest.raises(EnvironmentFault, match="process 7 has ended"):
        Looks(layout).see({"gone": "process 7 has ended"})


def test_every_rule_has_a_reason_and_is_in_the_docs() -> None:
    assert all(rule.reason and rule.names for rule in RULES)
    told = (ROOT / "docs/inside.md").read_text()
    ids = {rule.id for rule in RULES}
    assert {line.split()[1] for line in told.splitlines() if line.startswith("| L-")} == ids


@pytest.mark.parametrize(
    "plan",
    [
        "cpuid,sregs,nested,sregs:cr3=0x105000,nested",
        "cpuid,sregs,nested,regs,msrs,nested:@0x58/4=0:@0x550=0x111000",
        "cpuid,sregs,nested,nested:flags=0x100",
    ],
)
def test_the_merged_code_never_fills_the_save_cache(in_box: InBox, plain: Guest, plan: str) -> None:
    """The last column of the table in docs/save-cache.md."""
    (found,) = perform(in_box, plain.ram, [job(plain, plan)], in_box.probe(), in_box.layout())
    for step in found.steps:
        assert step.inside is not None
        assert step.inside["nested.save.cr3"] == step.inside["nested.save.efer"] == 0
        assert step.inside["nested.save.cs"] == [0, 0, 0, 0]
    last = found.steps[-1].inside
    assert last is not None
    assert last["vmcb01.save.cr3"] == plain.saved.l1().get("cr3")
    second = 0x105000 if "sregs:" in plan else plain.saved.sregs.get("cr3")
    assert last["arch.cr3"] == second
