"""Whose VMCB an entry was, by what happens around it."""

from __future__ import annotations

import pytest

from qemu_svm.errors import LimitExceeded
from qemu_svm.limits import Limits
from qemu_svm.vmruns.log import Log, read_log
from qemu_svm.vmruns.reader import Event
from qemu_svm.vmruns.roles import Certainty, Role, Roles
from qemu_svm.vmruns.runs import Run
from qemu_svm.vmruns.structs import Flag
from tests.vmruns.written import Writer, vmcb

NPF, CPUID, VMRUN = 0x400, 0x72, 0x80
L1 = {"rip": 0x100, "rsp": 0x1000, "rax": 0x108000, "cr3": 0x11000}
L1_BACK = L1 | {"rip": 0x103}
L2 = {"rip": 0x200, "rsp": 0x2000, "rax": 5, "cr3": 0x22000}
L2_LATER = L2 | {"rip": 0x222}
A, B, C = 0xA000, 0xB000, 0xC000


def restored(one: int, two: int, *, known: bool = True) -> Writer:
    """A guest restored into L2: L2, exit to L1, VMRUN, L2 again; VMCBs of L1 and L2."""
    log = Writer()
    log.run(two, vmcb(0, **L2), vmcb(NPF, **L2))
    log.run(two, vmcb(NPF, **L2), vmcb(CPUID, **L2_LATER))
    log.run(one, vmcb(0, **L1_BACK), vmcb(NPF, **L1_BACK))
    log.run(one, vmcb(NPF, **L1_BACK), vmcb(NPF, **L1_BACK))
    vmcb12 = vmcb(CPUID, **L2_LATER) if known else None
    log.run(one, vmcb(NPF, **L1_BACK), vmcb(VMRUN, **L1), vmcb12=vmcb12, vmrun=True)
    log.run(two, vmcb(VMRUN, **L2_LATER), vmcb(CPUID, **L2))
    log.run(one, vmcb(CPUID, **L1_BACK), vmcb(NPF, **L1_BACK))
    return log


def told(log: Log) -> list[tuple[Role, Certainty]]:
    return [(known.role, known.certainty) for known in log.runs()]


WANTED = [Role.L2, Role.L2, Role.L1, Role.L1, Role.L1, Role.L2, Role.L1]


@pytest.mark.parametrize(("one", "two"), [(A, B), (A, A)], ids=["two VMCBs", "one VMCB"])
@pytest.mark.parametrize("known", [True, False], ids=["vmcb12 read", "vmcb12 not read"])
def test_a_restored_guest(one: int, two: int, *, known: bool) -> None:
    log = read_log(restored(one, two, known=known).source())
    certainty = Certainty.PROVED if known else Certainty.INFERRED
    assert told(log) == [(role, certainty) for role in WANTED]
    assert {vmcb.shared for vmcb in log.vmcbs} == {one == two}
    assert {vmcb.pair for vmcb in log.vmcbs} == {0}


def test_a_guest_without_vmrun_stays_unknown() -> None:
    log = Writer()
    for _ in range(3):
        log.run(A, vmcb(0, **L1), vmcb(NPF, **L1))
    assert told(read_log(log.source())) == [(Role.UNKNOWN, Certainty.NONE)] * 3


def test_a_vmrun_that_fails_proves_nothing() -> None:
    # L1 goes on behind its VMRUN: nothing of L2 was entered.
    log = Writer()
    log.run(A, vmcb(0, **L1), vmcb(VMRUN, **L1), vmrun=True)
    log.run(A, vmcb(VMRUN, **L1_BACK), vmcb(NPF, **L1_BACK))
    assert told(read_log(log.source())) == [(Role.UNKNOWN, Certainty.NONE)] * 2


def test_two_guests_on_two_processors_are_kept_apart() -> None:
    log = Writer()
    other_l1, other_l2 = L1 | {"rsp": 0x9000}, L2 | {"rsp": 0x9100}
    log.run(A, vmcb(0, **L1), vmcb(VMRUN, **L1), vmcb12=vmcb(0, **L2), vcpu=0)
    log.run(C, vmcb(0, **other_l1), vmcb(VMRUN, **other_l1), vmcb12=vmcb(0, **other_l2), vcpu=1)
    # Each goes on where the other was.
    log.run(C + 0x1000, vmcb(0, **other_l2), vmcb(CPUID, **other_l2), vcpu=0)
    log.run(B, vmcb(0, **L2), vmcb(CPUID, **L2), vcpu=1)
    read = read_log(log.source())
    assert [role for role, _ in told(read)] == [Role.L1, Role.L1, Role.L2, Role.L2]
    pairs = {vmcb.address: vmcb.pair for vmcb in read.vmcbs}
    assert pairs[A] == pairs[B]
    assert pairs[C] == pairs[C + 0x1000]
    assert pairs[A] != pairs[C]


def test_what_is_not_read_is_not_learnt() -> None:
    log = restored(A, B)
    whole = read_log(log.source())
    for end in log.ends:
        cut = Writer()
        cut.data = log.data[: end - 1]
        read = read_log(cut.source())
        assert read.damage is not None
        assert read.damage.offset == end - 1
        runs = [known.run for known in read.runs()]
        assert len(runs) == len(read.roles)
        assert runs[:-1] == [known.run for known in whole.runs()][: max(len(runs) - 1, 0)]


def test_an_exit_that_belongs_to_nothing() -> None:
    log = Writer()
    log.run(A, vmcb(0, **L1), vmcb(NPF, **L1))
    number = log.add(0xD8, rax=A, address=A, page=vmcb(NPF, **L1))
    log.add(1, flags=Flag.UNPAIRED, rax=B, address=B, page=vmcb(NPF, **L2))
    (_, last) = read_log(log.source()).runs()
    assert last.run.number == number
    assert last.run.exit is None


def test_limits() -> None:
    one, other = (Run(Event(0, 1, 0xD8, Flag(0), 0, 0, 0, a, a, 0, vmcb())) for a in (A, B))
    assert len(Roles(Limits(vmruns_entries=2)).learn([one] * 2)) == 2
    with pytest.raises(LimitExceeded, match=r"too many entries.*vmruns_entries"):
        Roles(Limits(vmruns_entries=2)).learn([one] * 3)
    with pytest.raises(LimitExceeded, match=r"too many VMCBs.*vmruns_vmcbs"):
        Roles(Limits(vmruns_vmcbs=1)).learn([one, other])
