"""A running VM's vCPUs in the memory of the box's kernel."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

import qemu_svm as svm
from qemu_svm.cli import inside as verb
from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.layout import ADDRESSES
from qemu_svm.inside.looking import State, look
from qemu_svm.lab import Box, guests
from qemu_svm.lab.capture import wait_alive
from qemu_svm.lab.guests import values
from qemu_svm.lab.inside import BoxHost
from qemu_svm.lab.vm import Settings, Vm, running
from tests.conftest import Run


@pytest.fixture(scope="module")
def vm(box: Box) -> Iterator[Vm]:
    """A guest with two vCPUs, the first in L1, the second in L2; stopped by QMP."""
    guest = guests.find("smp")
    image = guests.assemble(guest).data
    with running(box, Settings(smp=len(guest.vcpus)), image=image) as started:
        wait_alive(started, guest)
        with BoxHost(box) as looking:
            started.qmp.execute("stop")
            while not _in_l2(looking):  # between a #VMEXIT and the next VMRUN
                started.qmp.execute("cont")
                started.qmp.execute("stop")
        yield started


def _in_l2(host: BoxHost) -> bool:
    with closing(look(host, None, vcpus=[1])) as looks:
        return next(looks).vcpus[0].guest == "L2"


@pytest.fixture(scope="module")
def host(box: Box, vm: Vm) -> Iterator[BoxHost]:
    with BoxHost(box) as made:
        yield made


@pytest.fixture
def inside(host: BoxHost, command: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a verb; its box is the shared one."""
    monkeypatch.setattr(verb, "_host", lambda *_arguments: host)
    return command


@pytest.fixture(scope="module")
def saved(vm: Vm, host: BoxHost) -> Path:
    return vm.save()


def test_what_would_be_saved_is_saved(
    inside: Run, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every register and every field of the nested state, of L1 and of L2."""
    monkeypatch.chdir(tmp_path)
    done = inside("inside", "--box", "shared", "-o", "now.json")
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode()
    assert "vCPU 0: L1 (vmcb01 is current), stopped while it was read" in out
    assert "vCPU 1: L2 (vmcb02 is current), stopped while it was read" in out
    assert "nested.save: what VMRUN checked" in out
    assert "last_vmcb12_gpa" in out
    assert max(map(len, out.splitlines())) < 80
    kept = tmp_path / "now.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    made = json.loads(kept.read_text())
    l2 = made["vcpus"][1]
    hidden = {f"{vmcb}.control.{name}" for vmcb in ("vmcb01", "vmcb02") for name in ADDRESSES}
    assert not hidden & set(l2["inside"])
    assert not any(name.endswith(".address") for name in l2["inside"])
    assert (l2["guest"], l2["state"], l2["gone"]) == ("L2", "stopped", None)
    assert int(l2["inside"]["arch.rbx"], 16) == values.l2_rbx()
    assert l2["inside"]["nested.save.cr3"] == l2["inside"]["vmcb02.save.cr3"]
    again = inside("inside", "--box", "shared", "-o", "now.json")
    assert again.returncode == 4
    assert b"exists already" in again.stderr

    same = inside("diff", "now.json", saved)
    assert same.returncode == 0, same.stdout
    assert b"what would be saved now" in same.stdout
    assert b"no differences" in same.stdout
    names = set(l2["saved"])
    assert {"nested.flags", "ctl.asid", "l1.cr3", "sregs.cr3", "regs.rip", "msr.star"} <= names
    l2["inside"]["vmcb01.save.cr3"] = "0x1234000"
    kept.write_text(json.dumps(made))
    wrong = inside("diff", "now.json", saved, "--json")
    assert wrong.returncode == 1
    (one,) = json.loads(wrong.stdout)["differences"]
    assert (one["path"], one["a"]) == ("vcpu1.l1.cr3", {"value": "0x1234000"})


def test_what_differs_from_the_last_look(host: BoxHost, vm: Vm, inside: Run) -> None:
    with closing(look(host, None)) as looks:
        first, second = next(looks), next(looks)
        assert [vcpu.changed for vcpu in second.vcpus] == [(), ()]
        assert svm.diff_inside(first, second).same
        vm.qmp.execute("cont")
        wait_alive(vm, guests.find("smp"))
        vm.qmp.execute("stop")
        third = next(looks)
    assert {vcpu.state for vcpu in third.vcpus} == {State.STOPPED}
    assert {"exits", "vmcb02.save.rip"} & set(third.vcpus[1].changed)
    done = inside("inside", "--box", "shared", "--watch", "--count", "2", "--interval", "0",
                  "--vcpu", "1", "--json")  # fmt: skip
    one, two = (json.loads(line) for line in done.stdout.splitlines())
    assert [vcpu["id"] for vcpu in one["vcpus"]] == [1]
    assert (two["look"], two["vcpus"][0]["changed"]) == (2, [])


def test_who_cannot_be_looked_at(host: BoxHost, inside: Run) -> None:
    for options, words in (
        (("--pid", "1"), b"process 1 (python3) has no vCPU: it does not use KVM"),
        (("--vcpu", "7"), b"has no vCPU 7"),
    ):
        done = inside("inside", "--box", "shared", *options)
        assert done.returncode == 4
        assert words in done.stderr


def pids(box: Box) -> set[int]:
    return set(map(int, box.run(["pidof", "qemu-system-x86_64"]).stdout.split()))


def test_vmrun_fills_the_save_cache_of_a_restored_vcpu(
    box: Box, host: BoxHost, saved: Path
) -> None:
    """A row of the table in docs/save-cache.md: the merged code."""
    before = pids(box)
    with running(box, Settings(smp=2, devices=("-S",))) as other:
        (pid,) = pids(box) - before
        other.qmp.execute("migrate-incoming", {"uri": f"exec:cat /share/{saved.name}"})
        while other.qmp.status().state == "inmigrate":
            time.sleep(0.1)
        with closing(look(host, pid, vcpus=[1])) as looks:
            (first,) = next(looks).vcpus
            assert (first.guest, first.state) == ("L2", State.STOPPED)
            assert first.values["arch.cr3"] != first.values["vmcb01.save.cr3"] != 0
            cache = {name for name in first.values if name.startswith("nested.save.")}
            assert "nested.save.cr3" in cache
            assert not any(first.values[name] for name in cache - {"nested.save.cs"})
            other.qmp.execute("cont")
            filled = next(one.vcpus[0].values for one in islice(looks, 1000)
                          if one.vcpus[0].values["nested.save.cr3"])  # fmt: skip
        assert filled["nested.save.cr3"] == first.values["arch.cr3"]
        assert filled["nested.save.efer"] == first.values["arch.efer"]


def test_a_process_that_ends_under_the_reader(box: Box, host: BoxHost, vm: Vm, saved: Path) -> None:
    with closing(look(host, None)) as looks:
        pid = next(looks).pid
        box.run(["kill", "-KILL", str(pid)])
        with pytest.raises(
            EnvironmentFault, match=f"process {pid} (has ended|does not exist|has closed)"
        ):
            list(islice(looks, 50))
