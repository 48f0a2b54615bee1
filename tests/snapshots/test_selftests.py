"""Recordings of the kernel's own selftests: every ioctl that the model knows, held against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qemu_svm.errors import PlanError, SourceError
from qemu_svm.findings.recorded import (
    Answer,
    RecordedDifference,
    answers_of,
    first_difference,
    recorded_findings,
    recorded_kernel,
)
from qemu_svm.findings.verdict import Verdict, judge_restore
from qemu_svm.kvm.numbers import Level
from qemu_svm.limits import DEFAULT
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.model.plans import NAMED, WITHOUT_EFFECT
from qemu_svm.model.recorded import IOCTLS, record_of
from qemu_svm.model.scenario import Scenario, scenario
from qemu_svm.recording.records import Header, Ioctl, Record
from qemu_svm.replay.job import ReplayOptions
from qemu_svm.replay.replay import prepare
from qemu_svm.snapshots.open import every_state
from qemu_svm.source import BytesSource, Source, open_source
from qemu_svm.trace.model import read_trace
from qemu_svm.trace.verdict import PutVerdict, RuleOutcome
from tests.conftest import STREAMS
from tests.recording.recorded import made, real

SELFTESTS = sorted((STREAMS / "recordings").glob("linux*.rec.zst"))
KNOWN = {f"KVM_{name}" for step, name in IOCTLS.items() if step not in WITHOUT_EFFECT}


def recorded(name: str) -> Path:
    (path,) = [one for one in SELFTESTS if f"-{name}." in one.name]
    return path


def puts(source: Source) -> Iterator[tuple[Machine, Vcpu, Scenario]]:
    for machine in every_state(source, DEFAULT):
        for vcpu in machine.vcpus:
            assert vcpu.put is not None
            yield machine, vcpu, scenario(machine, vcpu)


def apart(source: Source) -> tuple[set[int], list[RecordedDifference]]:
    """The records that were compared with the model, and what differs; no put is judged wrong."""
    compared: set[int] = set()
    verdicts: set[Verdict] = set()
    found = []
    for _, vcpu, restore in puts(source):
        compared |= {record_of(one) for one in restore.steps if one.name not in WITHOUT_EFFECT}
        (kernel,) = recorded_kernel(vcpu, ())
        assert vcpu.put is not None
        simulation = restore.simulate(kernel)
        one = first_difference(vcpu.put, restore.steps, answers_of(simulation))
        verdicts.add(judge_restore(simulation).verdict)
        found += [] if one is None else [one]
    assert not verdicts & {Verdict.WRONG, Verdict.BROKEN}
    return compared - {0}, found


def remade(records: Iterable[Record], release: str = "6.1.176") -> BytesSource:
    return BytesSource(made(records, header=Header(release=release)), "made.rec")


@pytest.mark.parametrize("path", SELFTESTS, ids=lambda path: path.name.partition(".rec")[0])
def test_model_and_kernel_agree_on_every_ioctl_that_the_model_knows(path: Path) -> None:
    """Each one is compared, with what is read back; and those that pass break no rule."""
    known = {
        one.number
        for one in real(path)
        if isinstance(one, Ioctl) and one.level is Level.VCPU and one.name in KNOWN
        if not one.missing  # given an address that is none
    }
    with open_source(str(path)) as source:
        compared, different = apart(source)
    assert known
    assert (compared, different) == (known, [])
    with open_source(str(path)) as source:
        trace = read_trace(source)
    results = [one for vcpu in trace.vcpus for put in vcpu.puts for one in put.results]
    results += [one for vcpu in trace.vcpus for one in vcpu.results]
    # Only MSRs that the selftest tries on purpose are refused.
    assert {one.rule.id for one in results if one.bad} <= {"T-05"}


@pytest.mark.parametrize("name", ["state_test", "smm_test"])
def test_the_plan_named_after_them_is_what_they_do(name: str) -> None:
    with open_source(str(recorded(name))) as source:
        orders = {
            ",".join(one.name for one in restore.steps if not one.carried or one.name == "cpuid")
            for _, _, restore in puts(source)
            if any(one.name == "nested" and not one.carried for one in restore.steps)
        }
    assert orders == {NAMED["selftests"]}


def test_nested_state_that_kvm_refuses_is_not_set() -> None:
    """The selftest tries it before and after CPUID, and never runs the vCPU."""
    with open_source(str(recorded("nested_set_state_test"))) as source:
        trace = read_trace(source)
    (put,) = [one for vcpu in trace.vcpus for one in vcpu.puts]
    assert (put.verdict, put.run) == (PutVerdict.UNKNOWN, None)
    unknown = {one.rule.id for one in put.results if one.outcome is RuleOutcome.UNKNOWN}
    assert unknown == {"O-16"}


def test_cpuid_is_fixed_once_the_vcpu_has_run() -> None:
    """The selftest sets it again, which is accepted, and changed twice, which is not."""
    every = [one for one in real(recorded("cpuid_test")) if isinstance(one, Ioctl)]
    late = [one for one in every if one.name == "KVM_SET_CPUID2"][1:]
    assert [one.ret for one in late] == [0, -22, -22]
    for wrong, says in ((late[0], (-22, "EINVAL", None)), (late[1], (0, None, "EINVAL"))):
        changed = [one._replace(ret=says[0]) if one is wrong else one for one in every]
        (found,) = apart(remade(changed))[1]
        assert (found.ioctl, found.recorded, found.answer) == ("SET_CPUID2", *says[1:])
    # KVM's own changes do not count: OSXSAVE follows CR4.
    data = bytearray(late[0].given)
    assert data[48:52] == (1).to_bytes(4, "little")
    data[48 + 20 + 3] ^= 1 << 3
    again = late[0]._replace(given=bytes(data))
    assert not apart(remade([again if one is late[0] else one for one in every]))[1]


def test_a_put_with_late_cpuid_cannot_be_replayed() -> None:
    with open_source(str(recorded("cpuid_test"))) as source:
        first, last = ((machine, vcpu) for machine, vcpu, _ in puts(source))
        prepare(*first, None, ReplayOptions())
        with pytest.raises(PlanError, match="cannot be replayed: the vCPU had run"):
            prepare(*last, None, ReplayOptions())


def test_bits_that_kvm_makes_up_are_not_compared_with_a_kernels_answer() -> None:
    """KVM_GET_SREGS returns G and the accessed bit of its own."""
    with open_source(str(recorded("fix_hypercall_test"))) as source:
        _, vcpu, restore = next(puts(source))
    assert vcpu.put is not None
    (kernel,) = recorded_kernel(vcpu, ())
    answers = answers_of(restore.simulate(kernel))
    for change, name in (((0, 0, 0, 0x801), None), ((0, 0x10, 0, 0), "sregs.cs")):
        raw = [
            Answer(
                one.errno,
                dict(one.state)
                | {"sregs.cs": [a | b for a, b in zip(one.state["sregs.cs"], change, strict=True)]},
            )
            for one in answers
        ]
        found = first_difference(vcpu.put, restore.steps, raw)
        assert name == (None if found is None else found.name)


def test_an_msr_at_which_kvm_stopped_is_a_failure() -> None:
    """KVM_SET_MSRS returns how many it took: 0 of 1."""
    path = recorded("hwcr_msr_test")
    refused = {
        one.number
        for one in real(path)
        if isinstance(one, Ioctl) and one.name == "KVM_SET_MSRS" and one.ret == 0
    }
    with open_source(str(path)) as source:
        (vcpu, restore), *_ = [
            (vcpu, restore) for _, vcpu, restore in puts(source)
            if any(record_of(step) in refused for step in restore.steps)
        ]  # fmt: skip
    words = [one.message for one in recorded_findings(vcpu, None) if one.rule == "X-14"]
    assert len(words) == len(refused) > 50
    assert words[0].endswith("KVM_SET_MSRS stopped at MSR 0xc0010015: 0 of 1 are set")
    assert vcpu.put is not None
    (kernel,) = recorded_kernel(vcpu, ())
    answers = answers_of(restore.simulate(kernel))
    assert first_difference(vcpu.put, restore.steps, answers) is None  # the model has no HWCR
    accepted = [replace(one, every_msr=True) for one in answers]
    found = first_difference(vcpu.put, restore.steps, accepted)
    assert found is not None
    assert found.record == min(refused)
    assert (found.recorded, found.answer) == ("EINVAL", None)


def test_a_recording_without_registers_has_no_state() -> None:
    with pytest.raises(SourceError, match="no vCPU whose registers are set"):
        list(every_state(remade(()), DEFAULT))
