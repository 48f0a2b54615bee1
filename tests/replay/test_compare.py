"""Replays that need no KVM: what is compared, what is left open, what a killed VM is."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from qemu_svm.kvm.run import IO, Exit
from qemu_svm.model import plans
from qemu_svm.model.kvm.run import GuestCode
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.observed import flat
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.simulate import Simulation, simulate
from qemu_svm.replay.compare import Comparison, Mismatch, compare
from qemu_svm.replay.conform import Guest
from qemu_svm.replay.encode import STOP_PORT
from qemu_svm.replay.job import ReplayJob, ReplayResult, ReplayStep, RunResult, decode
from qemu_svm.replay.memory import handlers, with_idt
from qemu_svm.replay.target import JobResult

STOP = Exit(0, IO, {"out": 1, "size": 1, "port": STOP_PORT, "count": 1, "data_offset": 4096})
DEAD = {"sregs": "errno 5", "regs": "errno 5"}
IMPOSSIBLE = "cpuid,sregs,nested:@0x4d0=0x1400:@0x548=0x0,regs,run"


def simulated(guest: Guest, kernel: str, plan: str, **options: Any) -> Simulation:
    return simulate(
        PROFILES[kernel], guest.saved, plans.parse(plan), host=Host(irqchip=False),
        backed=guest.ram.backed, **options,
    )  # fmt: skip


def seen(simulation: Simulation, **last: Any) -> ReplayResult:
    """What a kernel answers that does as the model says, but for the last step."""
    steps = []
    for result in simulation.results:
        state = flat(result.state, split=simulation.kernel.split)
        steps.append(ReplayStep(result.number, result.step, result.errno, state))
    run = last.pop("run")
    changed = {**steps[-1].state, **last}
    steps[-1] = ReplayStep(steps[-1].number, steps[-1].step, None, changed, run)
    return ReplayResult(tuple(steps), "done")


def compared(simulation: Simulation, replayed: ReplayResult) -> Comparison:
    return compare(simulation, replayed, shortened=True)


def test_a_shutdown_is_no_run_that_did_not_come_back(plain: Guest) -> None:
    simulation = simulated(plain, "6.1", "cpuid,sregs,nested:vmcb_pa=0x7ff000000,regs,run")
    found = compared(simulation, seen(simulation, run=RunResult("hang", Exit(4, 0))))
    assert found.first() == (5, Mismatch("run", "SHUTDOWN", "hang"))
    found = compared(simulation, seen(simulation, run=RunResult("SHUTDOWN", Exit(0, 8))))
    assert found.equal
    assert found.open is None


def test_l1_is_compared_where_its_code_is_known(plain: Guest) -> None:
    plan = "cpuid,sregs:cr0=0x80010011,nested,regs,nested:flags=0x100,run"
    simulation = simulated(plain, "6.1", plan)
    at = plain.saved.regs["rip"] + 2  # behind the CPUID
    run = RunResult("exit", STOP)
    found = compared(simulation, seen(simulation, run=run, **{"regs.rip": at, "regs.rbx": 77}))
    assert (found.equal, found.open) == (True, None)
    other = seen(simulation, run=run, **{"regs.rip": at, "sregs.cr0": 0x80010011})
    found = compared(simulation, other)
    assert found.first() == (6, Mismatch("sregs.cr0", 0x80000011, 0x80010011))
    # Unshortened, the code is the guest's own.
    found = compare(simulation, other, shortened=False)
    assert found.equal
    assert found.open is not None


def test_code_clears_rf_and_no_other_flag(plain: Guest) -> None:
    simulation = simulated(plain, "6.1", "cpuid,sregs,regs:rflags=0x10086,run")
    run, at = RunResult("exit", STOP), plain.saved.regs["rip"] + 2
    for flags, equal in ((0x10086, True), (0x86, True), (0x82, False)):
        last = seen(simulation, run=run, **{"regs.rip": at, "regs.rflags": flags})
        assert compared(simulation, last).equal is equal


def test_a_handler_may_have_changed_what_its_exception_changes(plain: Guest) -> None:
    """RFLAGS.TF: the #DB sets a bit of DR6, and its handler is known as well."""
    known = replace(plain, saved=with_idt(plain.ram.read, plain.saved))
    simulation = simulated(known, "6.1", "cpuid,sregs:l1,sregs,regs:rflags=0x107,run")
    changed = {"regs.rip": handlers(known.saved.sregs).start, "regs.dr6": 0xFFFF4FF0}
    run = RunResult("exit", STOP)
    found = compared(simulation, seen(simulation, run=run, **changed))
    assert (found.equal, found.open) == (True, None)
    changed["regs.rip"] = known.saved.regs["rip"]
    found = compared(simulation, seen(simulation, run=run, **changed))
    assert found.first() == (5, Mismatch("regs.dr6", 0xFFFF0FF0, 0xFFFF4FF0))


def test_l2_that_does_not_exit_is_simulated_again(plain: Guest) -> None:
    plan = "cpuid,sregs,nested:@0xc/4=0,regs,run"  # CPUID is not intercepted
    stays = simulated(plain, "6.1", plan, code={5: GuestCode.STAYS})
    answer = seen(stays, run=RunResult("IO", STOP), **{"regs.rip": plain.saved.regs["rip"] + 2})
    first = compared(simulated(plain, "6.1", plan), answer)
    assert first.stays == 5
    found = compared(stays, answer)
    assert (found.equal, found.open, found.stays) == (True, None, None)


def test_l2_does_not_execute_again_what_l1_has(plain: Guest) -> None:
    """RIP is behind the CPUID by then, so L2 need not exit."""
    plan = "cpuid,sregs,regs,nested:flags=0x100,run,nested,run"
    simulation = simulated(plain, "6.1", plan)
    behind = {"regs.rip": plain.saved.regs["rip"] + 4}
    answer = seen(simulated(plain, "6.1", plan, code={7: GuestCode.STAYS}),
                  run=RunResult("IO", STOP), **behind)  # fmt: skip
    steps = list(answer.steps)
    steps[4] = replace(steps[4], run=RunResult("exit", STOP))
    assert compared(simulation, replace(answer, steps=tuple(steps))).stays == 7


@pytest.mark.parametrize(("kernel", "killed"), [("6.12.117", True), ("6.12", False)])
def test_a_killed_vm_is_a_result(paged: Guest, kernel: str, killed: bool) -> None:
    simulation = simulated(paged, kernel, IMPOSSIBLE)
    alive = [
        ReplayStep(one.number, one.step, one.errno, flat(one.state, split=True))
        for one in simulation.results[:2]
    ]
    nested, regs, run = simulation.results[2:]
    dead = [
        ReplayStep(3, nested.step, None, DEAD),
        ReplayStep(4, regs.step, "EIO", DEAD),
        ReplayStep(5, run.step, None, DEAD, RunResult("EIO", Exit(5, 0))),
    ]
    answer = ReplayResult((*alive, *dead), "done")
    assert answer.killed == 3
    assert not answer.clean
    found = compared(simulation, answer)
    assert found.equal is killed
    expected = None if killed else (3, Mismatch("vm", "alive", "killed"))
    assert found.first() == expected


def test_errors_of_a_killed_vm_are_read(paged: Guest) -> None:
    job = ReplayJob("1", paged.saved, plans.parse("sregs,run"))
    state = dict.fromkeys(("SREGS", "REGS", "DEBUGREGS", "VCPU_EVENTS", "NESTED_STATE", "MSRS"),
                          "errno 5")  # fmt: skip
    lines = [
        {"step": 1, "errno": 5, "state": state},
        {"step": 2, "errno": 5, "state": {}, "run": struct.pack("<256x").hex()},
    ]
    result = decode(job, JobResult("1", lines, "done"))
    assert (result.killed, result.end, result.error) == (1, "done", None)
    assert result.steps[0].errno == "EIO"
    assert result.steps[1].run is not None
    assert result.steps[1].run.result == "EIO"
