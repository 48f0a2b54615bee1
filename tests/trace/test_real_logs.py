"""What the real logs say, held against facts that were found without this code."""

from __future__ import annotations

from typing import Any

import pytest

from qemu_svm.kvm import numbers
from qemu_svm.trace.calls import Format
from qemu_svm.trace.model import Trace
from qemu_svm.trace.phases import PhaseKind
from qemu_svm.trace.verdict import PutVerdict, RuleOutcome
from tests.trace.logs import (
    LOGS,
    REAL,
    RESTORES,
    STREAMS,
    outcomes,
    puts_of,
    read_file,
    shorts,
    violated,
)

_TAIL = ["REGS", "XSAVE", "XCRS", "MSRS", "EVENTS", "MP_STATE", "MSRS", "DEBUGREGS"]
FULL_PUT = {
    "5.2": ["SREGS", "NESTED", "TSC_KHZ", *_TAIL],
    "7.2": ["SREGS2", "NESTED", "TSC_KHZ", *_TAIL],
    "10.0": ["SREGS2", "NESTED", "TSC_KHZ", *_TAIL],
    "11.1": ["SREGS2", "NESTED", "TSC_KHZ", *_TAIL],
}
"""What ``kvm_arch_put_registers`` of these QEMUs puts at full level on AMD."""

LOAD = {
    "5.2": ["TPR_ACCESS_REPORTING", "MSRS", "LAPIC"],
    "7.2": ["TPR_ACCESS_REPORTING", "MSRS", "LAPIC"],
    "10.0": ["TPR_ACCESS_REPORTING", "MSRS", "LAPIC"],
    "11.1": ["MSRS", "LAPIC", "TPR_ACCESS_REPORTING"],
}
"""What loading ``apic`` and ``kvm-tpr-opt`` does, in the order of the stream."""


def _name(log: dict[str, Any]) -> str:
    return str(log["file"]).removesuffix(".log.zst")


@pytest.fixture(params=LOGS, ids=_name)
def log(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Trace]:
    entry: dict[str, Any] = request.param
    return entry, read_file(STREAMS / entry["file"])


@pytest.fixture(params=RESTORES, ids=_name)
def restore(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Trace]:
    entry: dict[str, Any] = request.param
    return entry, read_file(STREAMS / entry["file"])


def test_there_are_sixteen() -> None:
    assert len(LOGS) == 16
    assert {log["file"] for log in LOGS} == {path.name for path in STREAMS.glob("*.log.zst")}
    streams = {path.name for path in STREAMS.glob("*.mig.zst")}
    assert {log["provenance"]["stream"] for log in LOGS} <= streams


def test_every_line_is_used_and_every_ioctl_has_a_name(log: tuple[dict[str, Any], Trace]) -> None:
    entry, trace = log
    facts = entry["facts"]
    assert (trace.lines, trace.used, trace.calls) == (facts["lines"],) * 3
    assert trace.formats == ((Format.QEMU, facts["lines"]),)
    assert (trace.results, trace.others, trace.complete) == (0, (), True)
    (vcpu,) = trace.vcpus
    assert (vcpu.vcpu.label, vcpu.ioctls, vcpu.runs) == ("vCPU 0", facts["lines"], facts["runs"])
    for phase in vcpu.phases:
        for step in phase.steps:
            known = numbers.by_name(step.name)
            assert known is not None
            assert numbers.Level.VCPU in known.levels


def test_phases_cover_the_log(log: tuple[dict[str, Any], Trace]) -> None:
    entry, trace = log
    (vcpu,) = trace.vcpus
    at = 1
    for phase in vcpu.phases:
        assert phase.line == at
        assert phase.count == phase.last_line - phase.line + 1 == sum(s.count for s in phase.steps)
        at = phase.last_line + 1
    assert at == entry["facts"]["lines"] + 1


def test_puts_and_reads_are_found(log: tuple[dict[str, Any], Trace]) -> None:
    entry, trace = log
    facts = entry["facts"]
    assert [put.line for put in puts_of(trace)] == facts["set_nested_state"]
    reads = [
        step.line
        for phase in trace.vcpus[0].phases
        for step in phase.steps
        if step.name == "KVM_GET_NESTED_STATE"
    ]
    assert reads == facts["get_nested_state"]


def test_all_puts_are_in_order(log: tuple[dict[str, Any], Trace]) -> None:
    entry, trace = log
    puts = puts_of(trace)
    assert {put.verdict for put in puts} == {PutVerdict.OK}
    assert trace.clean
    last = puts[-1]
    assert last.run is not None
    assert last.run.line == entry["facts"]["first_run"]
    assert last.superseded is None
    found = outcomes(last)
    order = ("O-01", "O-02", "O-03", "O-04", "O-05", "O-06", "O-09", "O-11", "O-13", "O-16")
    assert {found[rule] for rule in order} == {RuleOutcome.OK}
    # A log without data and results leaves these open.
    blind = ("O-12", "O-17", "O-22", "O-28", "T-01", "T-03")
    assert {found[rule] for rule in blind} == {RuleOutcome.DEPENDS}
    for put in puts[:-1]:
        assert put.run is None
        assert put.superseded is not None


def test_the_guess_contains_the_truth(log: tuple[dict[str, Any], Trace]) -> None:
    entry, trace = log
    major, minor = map(int, entry["provenance"]["qemu"].split("."))
    guess = trace.guess
    assert guess.low is not None
    assert guess.low <= (major, minor)
    assert guess.high is None or (major, minor) <= guess.high
    assert not guess.contradictory


def test_the_guess_tells_the_restores_apart() -> None:
    words = {
        log["provenance"]["qemu"]: read_file(STREAMS / log["file"]).guess.words()
        for log in RESTORES
    }
    assert words == {
        "5.2": "5.1 to 8.0",
        "7.2": "7.0 to 8.0",
        "10.0": "8.1 to 11.0",
        "11.1": "11.0 or later",
    }


def test_a_restore_is_what_is_known_of_its_version(restore: tuple[dict[str, Any], Trace]) -> None:
    entry, trace = restore
    version = entry["provenance"]["qemu"]
    (vcpu,) = trace.vcpus
    kinds = [phase.kind for phase in vcpu.phases]
    assert kinds[:9] == [
        *(
            PhaseKind.CREATION,
            PhaseKind.FULL,
            PhaseKind.GET,
            PhaseKind.APIC,
            PhaseKind.RESET,
            PhaseKind.APIC,
            PhaseKind.FULL,
        ),
        *(PhaseKind.OTHER, PhaseKind.RUN),
    ]
    assert kinds[9:] in (
        [PhaseKind.GET, PhaseKind.RUNTIME, PhaseKind.RUN, PhaseKind.GET],
        [PhaseKind.GET],  # the one that was not saved again
    )
    assert vcpu.migrated == 6
    assert vcpu.phases[6].line == entry["facts"]["migrated_put"]
    new, reset, migrated = vcpu.puts
    assert shorts(migrated) == shorts(new) == FULL_PUT[version]
    assert shorts(reset) == [name for name in FULL_PUT[version] if name != "TSC_KHZ"]
    assert [step.short for step in vcpu.phases[5].steps] == LOAD[version]
    assert [step.short for step in vcpu.phases[7].steps] == ["KVMCLOCK_CTRL"]
    assert ("note" in entry) == (kinds[9:] == [PhaseKind.GET])


def test_a_source_has_no_migrated_state(log: tuple[dict[str, Any], Trace]) -> None:
    entry, trace = log
    (vcpu,) = trace.vcpus
    assert (vcpu.migrated is None) == (entry["provenance"]["kind"] == "source")
    if vcpu.migrated is None:
        assert entry["facts"]["migrated_put"] is None
        assert [vcpu.phases[put.phase].kind for put in vcpu.puts] == [
            PhaseKind.FULL,
            PhaseKind.RESET,
        ]
        assert vcpu.phases[-1].kind is PhaseKind.GET


@pytest.mark.parametrize(
    ("name", "kind", "nested", "run"),
    [("refused.strace", Format.STRACE, 27, 35), ("refused.ftrace", Format.FTRACE, 65, 81)],
)
def test_a_real_refusal_that_was_passed_over(
    name: str, kind: Format, nested: int, run: int
) -> None:
    trace = read_file(REAL / name)
    assert [one for one, _ in trace.formats] == [kind]
    assert (trace.calls, trace.results) == (21, 21)
    (vcpu,) = trace.vcpus
    assert (vcpu.vcpu.index, vcpu.vcpu.fd, vcpu.ioctls, vcpu.runs) == (0, 5, 15, 3)
    (put,) = vcpu.puts
    assert put.line == nested
    assert put.run is not None
    assert put.run.line == run
    assert violated(put) == {"T-01"}
    (refused,) = (one for one in put.results if one.rule.id == "T-01")
    assert refused.line == nested
    assert "EINVAL: the vCPU then runs L2's code in L1's context" in refused.note
    assert outcomes(put)["O-22"] is RuleOutcome.OK
    assert outcomes(put)["T-03"] is RuleOutcome.OK
    assert not trace.clean
    assert trace.guess.words() == "not QEMU's order"
    assert not {blind.key for blind in trace.not_shown} & {"results", "vm"}
    others = {other.name: other.count for other in trace.others}
    assert others["KVM_CREATE_VCPU"] == others["KVM_SET_USER_MEMORY_REGION"] == 1


def test_a_real_restore_of_two_vcpus_under_strace() -> None:
    trace = read_file(REAL / "qemu7.2-smp2-restore.strace.zst")
    assert trace.calls == trace.results == 306
    assert [vcpu.vcpu.label for vcpu in trace.vcpus] == ["vCPU 0 (fd 9)", "vCPU 1 (fd 13)"]
    assert [(vcpu.ioctls, vcpu.runs) for vcpu in trace.vcpus] == [(65, 12), (55, 2)]
    for vcpu in trace.vcpus:
        assert [phase.kind for phase in vcpu.phases] == [
            *(
                PhaseKind.CREATION,
                PhaseKind.FULL,
                PhaseKind.GET,
                PhaseKind.APIC,
                PhaseKind.RESET,
                PhaseKind.APIC,
                PhaseKind.FULL,
            ),
            *(PhaseKind.OTHER, PhaseKind.RUN, PhaseKind.GET),
        ]
        assert vcpu.migrated == 6
        assert vcpu.puts == ()
        assert vcpu.phases[0].steps[0].name == "KVM_CREATE_VCPU"
    # Calls in two halves have the result of the second.
    migrated = trace.vcpus[0].phases[6].steps[0]
    assert (migrated.name, migrated.line, migrated.value) == ("KVM_SET_SREGS2", 274, 0)
    interrupted = trace.vcpus[1].phases[8].steps[0]
    assert (interrupted.name, interrupted.count, interrupted.error) == ("KVM_RUN", 2, "EINTR")
    clock = trace.vcpus[1].phases[7].steps[0]
    assert (clock.name, clock.error) == ("KVM_KVMCLOCK_CTRL", "EINVAL")
    assert trace.guess.words() == "7.0 to 8.0"
    assert trace.clean
