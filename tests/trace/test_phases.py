"""How the ioctls of a vCPU are split, for QEMU's orders and for others'."""

from __future__ import annotations

import pytest

from qemu_svm.trace.guess import Guess
from qemu_svm.trace.model import VcpuTrace
from qemu_svm.trace.phases import PhaseKind, Step, short_name
from tests.trace.logs import (
    CREATION,
    LOGS,
    PUT,
    REAL,
    RESTORES,
    STREAMS,
    never_again,
    qemu_log,
    read_text,
    strace,
    text_of,
)

_GETS = ("GET_VCPU_EVENTS", "GET_REGS", "GET_SREGS2", "GET_NESTED_STATE")
_FULL = ("SET_SREGS2", "SET_NESTED_STATE", "GET_TSC_KHZ", "SET_TSC_KHZ", *PUT[2:])


def _vcpu(*names: str) -> VcpuTrace:
    (vcpu,) = read_text(qemu_log(names)).vcpus
    return vcpu


def _split(*names: str) -> list[tuple[str, str]]:
    return [
        (phase.kind.value, " ".join(step.short for step in phase.steps))
        for phase in _vcpu(*names).phases
    ]


def _kinds(*names: str) -> list[PhaseKind]:
    return [phase.kind for phase in _vcpu(*names).phases]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("KVM_SET_NESTED_STATE", "NESTED"),
        ("KVM_SET_VCPU_EVENTS", "EVENTS"),
        ("KVM_SET_SREGS2", "SREGS2"),
        ("KVM_GET_REGS", "get REGS"),
        ("KVM_RUN", "RUN"),
        ("KVM_X86_SETUP_MCE", "X86_SETUP_MCE"),
        ("KVM_SET", "SET"),
        ("KVM ioctl nr 0xf0 (no data)", "KVM ioctl nr 0xf0 (no data)"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name) == short
    assert Step(name, None, 1, 1).short == short


def test_levels_of_puts() -> None:
    runtime = [name for name in PUT if name not in ("SET_NESTED_STATE", "SET_MP_STATE")]
    names = [*CREATION, *_FULL, *_GETS, *PUT, "RUN", *_GETS, *runtime, "RUN"]
    assert _kinds(*names) == [
        *(PhaseKind.CREATION, PhaseKind.FULL, PhaseKind.GET, PhaseKind.RESET, PhaseKind.RUN),
        *(PhaseKind.GET, PhaseKind.RUNTIME, PhaseKind.RUN),
    ]


def test_a_kernel_without_nested_state() -> None:
    without = [name for name in _FULL if name != "SET_NESTED_STATE"]
    put = [name for name in PUT if name != "SET_NESTED_STATE"]
    assert _kinds(*CREATION, *without, *put) == [
        PhaseKind.CREATION,
        PhaseKind.FULL,
        PhaseKind.RESET,
    ]


def test_two_puts_in_a_row_are_two() -> None:
    assert _kinds(*PUT, *PUT, "RUN") == [PhaseKind.RESET, PhaseKind.RESET, PhaseKind.RUN]
    nested_first = ("SET_NESTED_STATE", "SET_SREGS", "SET_REGS", "SET_DEBUGREGS")
    assert _kinds(*nested_first, *nested_first) == [PhaseKind.RESET, PhaseKind.RESET]


def test_feature_control_belongs_to_the_put_that_follows() -> None:
    assert _split(*PUT[:3], "SET_DEBUGREGS", "SET_MSRS", "SET_SREGS2", "SET_REGS") == [
        ("reset put", "SREGS2 NESTED REGS DEBUGREGS"),
        ("run-time put", "MSRS SREGS2 REGS"),
    ]
    assert _split("TPR_ACCESS_REPORTING", "SET_MSRS", "SET_LAPIC", "SET_MSRS", "SET_SREGS2") == [
        ("apic load", "TPR_ACCESS_REPORTING MSRS LAPIC"),
        ("run-time put", "MSRS SREGS2"),
    ]


def test_apicbase_belongs_to_the_lapic() -> None:
    assert _split(*PUT, "SET_MSRS", "SET_LAPIC", "TPR_ACCESS_REPORTING", *PUT)[1] == (
        "apic load",
        "MSRS LAPIC TPR_ACCESS_REPORTING",
    )
    assert _split("RUN", "SET_MSRS", "SET_LAPIC", "SET_SREGS")[1:] == [
        ("apic load", "MSRS LAPIC"),
        ("run-time put", "SREGS"),
    ]


def test_an_open_put_takes_what_stands_in_it() -> None:
    names = ["SET_SREGS", "GET_SREGS", "SET_CPUID2", "SET_LAPIC", "SMI", "SET_NESTED_STATE"]
    assert _split(*names, "GET_TSC_KHZ", "SET_DEBUGREGS", "RUN") == [
        ("full put", "SREGS get SREGS CPUID2 LAPIC SMI NESTED get TSC_KHZ DEBUGREGS"),
        ("run", "RUN"),
    ]


def test_what_follows_an_open_put_is_not_in_it() -> None:
    assert _split("SET_SREGS", "SET_NESTED_STATE", *_GETS, "GET_LAPIC", "KVMCLOCK_CTRL", "RUN") == [
        ("reset put", "SREGS NESTED"),
        ("get", "get EVENTS get REGS get SREGS2 get NESTED get LAPIC"),
        ("other", "KVMCLOCK_CTRL"),
        ("run", "RUN"),
    ]


def test_what_follows_a_closed_put() -> None:
    assert _kinds(*PUT, "GET_TSC_KHZ", "SET_CPUID2", "SMI", "GET_REGS") == [
        *(PhaseKind.RESET, PhaseKind.OTHER, PhaseKind.CREATION, PhaseKind.OTHER, PhaseKind.GET),
    ]


def test_equal_ioctls_are_counted() -> None:
    (phase,) = _vcpu(*["SET_MSRS"] * 100).phases
    (step,) = phase.steps
    assert (step.count, step.line, step.last_line, phase.count) == (100, 1, 100, 100)


def test_runs_are_counted_whether_interrupted_or_not() -> None:
    calls = ["RUN", "RUN=EINTR", "RUN=EAGAIN", "RUN", "RUN=EFAULT", "RUN=EFAULT", "RUN"]
    (vcpu,) = read_text(strace(calls)).vcpus
    assert vcpu.runs == 7
    (phase,) = vcpu.phases
    assert [(step.count, step.error) for step in phase.steps] == [
        (4, None),
        (2, "EFAULT"),
        (1, None),
    ]


def test_a_failure_is_not_counted_with_a_success() -> None:
    (vcpu,) = read_text(strace(["SET_REGS", "SET_REGS=EINVAL", "SET_REGS=EINVAL"])).vcpus
    assert [(s.error, s.count) for s in vcpu.phases[0].steps] == [(None, 1), ("EINVAL", 2)]


def test_exit_reasons_are_those_of_the_first_run() -> None:
    steps = _vcpu("RUN", "exit=2", "RUN", "exit=17").phases[0].steps
    assert [(step.count, step.exit_reason) for step in steps] == [(2, 2)]
    # Without a run in sight, or of a vCPU that is not there.
    assert _vcpu("SET_REGS", "exit=2").phases[0].steps[0].exit_reason is None


def test_cycles_are_counted() -> None:
    runtime = ["GET_REGS", "SET_SREGS2", "SET_REGS", "SET_DEBUGREGS", "RUN", "RUN"]
    (vcpu,) = read_text(qemu_log([*PUT, "RUN", *runtime * 50])).vcpus
    assert [(phase.kind.value, phase.times) for phase in vcpu.phases] == [
        ("reset put", 1),
        ("run", 50),
        ("get", 50),
        ("run-time put", 50),
        ("run", 1),
    ]
    assert [phase.count for phase in vcpu.phases] == [10, 99, 50, 150, 2]
    assert vcpu.phases[-1].last_line == 11 + 300


def test_cycles_with_nested_state_are_not_folded() -> None:
    vcpu = _vcpu(*[*PUT, "RUN"] * 5)
    assert len(vcpu.phases) == 10
    assert len(vcpu.puts) == 5


def test_cycles_with_an_apic_load_in_them() -> None:
    vcpu = _vcpu(*["GET_REGS", "TPR_ACCESS_REPORTING", "SET_SREGS", "RUN"] * 400)
    assert [phase.times for phase in vcpu.phases] == [400] * 4


def test_a_long_life_without_runs_is_kept() -> None:
    other = ("SMI", "NMI", "INTERRUPT")
    names = [name for at in never_again(1500) for name in ("GET_REGS", other[at])]
    vcpu = _vcpu(*names)
    assert PhaseKind.MIXED not in [phase.kind for phase in vcpu.phases]
    assert len(vcpu.phases) > 1000
    assert sum(phase.count for phase in vcpu.phases) == vcpu.ioctls


# --- the migrated state and the guess ---


def test_a_stream_that_is_loaded_into_a_running_machine() -> None:
    load = ["SET_MSRS", "SET_LAPIC", *_FULL]
    vcpu = _vcpu(*CREATION, *_FULL, "RUN", *_GETS, *load, "RUN")
    assert vcpu.migrated is not None
    phase = vcpu.phases[vcpu.migrated]
    assert (phase.kind, phase.line) == (PhaseKind.FULL, 24)


def test_a_full_put_that_loads_nothing() -> None:
    assert _vcpu(*CREATION, *_FULL, "RUN").migrated is None
    assert _vcpu(*CREATION, *_FULL, *_FULL, "RUN").migrated is None
    assert _vcpu(*CREATION, *_FULL, "TPR_ACCESS_REPORTING", *_FULL, "RUN").migrated is None


def _guess(*names: str) -> Guess:
    return read_text(qemu_log(names)).guess


def _with(before: str, extra: str) -> list[str]:
    names = list(_FULL)
    names.insert(names.index(before), extra)
    return names


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (_FULL, "7.0 or later"),
        ([*CREATION, *_FULL], "7.0 to 8.0"),
        ([*CREATION, "GET_STATS_FD", *_FULL], "8.1 or later"),
        ([*CREATION, "GET_STATS_FD", *_FULL, "SET_GUEST_DEBUG"], "8.1 to 9.2"),
        (_with("SET_VCPU_EVENTS", "SET_ONE_REG"), "11.0 or later"),
        (_with("SET_REGS", "XEN_VCPU_SET_ATTR"), "8.0 or later"),
        (["SET_NESTED_STATE", *_FULL[2:5], "SET_XSAVE", "SET_XCRS", "SET_SREGS", *PUT[5:]],
         "4.1 to 5.0"),
        ([*CREATION, *_with("SET_VCPU_EVENTS", "SET_ONE_REG")],
         "no known version: the order is QEMU's, but the clues contradict each other"),
        (["SET_SREGS", *PUT[2:]], "not QEMU's order"),
        (["SET_SREGS", "SET_NESTED_STATE", "SET_MSRS", "SET_REGS"], "not QEMU's order"),
        (["SET_SREGS", "SET_NESTED_STATE", "RUN"], "not QEMU's order"),
        (["RUN"], "not QEMU's order"),
        ([*CREATION, *[n for n in _FULL if "SREGS" not in n and "NESTED" not in n]],
         "8.0 or before"),
    ],
)  # fmt: skip
def test_guesses(names: list[str], words: str) -> None:
    assert _guess(*names).words() == words


def test_clues_say_what_was_seen() -> None:
    clues = [clue.seen for clue in _guess(*CREATION, "GET_STATS_FD", *_FULL).clues]
    assert clues == [
        "SREGS come before NESTED_STATE",
        "SREGS2 is used",
        "GET_STATS_FD when a vCPU is created",
    ]


def test_a_prefix_of_a_real_log_never_gives_a_put_that_is_not_there() -> None:
    log = next(log for log in LOGS if log in RESTORES)
    text = text_of(STREAMS / log["file"]).splitlines(keepends=True)
    for size in range(1, len(text)):
        (vcpu,) = read_text("".join(text[:size])).vcpus
        expected = [line for line in log["facts"]["set_nested_state"] if line <= size]
        assert [put.line for put in vcpu.puts] == expected
        assert sum(phase.count for phase in vcpu.phases) == size
    assert REAL.is_dir()
