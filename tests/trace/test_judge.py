"""Orders that are right, orders that are wrong, and what is said of them."""

from __future__ import annotations

import pytest

from qemu_svm.rules import RuleKind, Severity
from qemu_svm.trace.rules import NOT_SHOWN, ORDERS, rule
from qemu_svm.trace.verdict import Put, PutVerdict, RuleOutcome
from tests.trace.logs import (
    CREATION,
    PUT,
    RESTORES,
    STREAMS,
    outcomes,
    puts_of,
    qemu_log,
    read_text,
    strace,
    text_of,
    violated,
)

_SELFTESTS = (
    *("SET_SREGS", "SET_MSRS", "SET_XCRS", "SET_XSAVE", "SET_VCPU_EVENTS", "SET_MP_STATE"),
    *("SET_DEBUGREGS", "SET_REGS", "SET_NESTED_STATE"),
)
"""``vcpu_load_state`` of Linux' KVM selftests."""


def _put(*names: str) -> Put:
    (put,) = puts_of(read_text(qemu_log(names)))
    return put


def _strace_put(*names: str) -> Put:
    (put,) = puts_of(read_text(strace(names)))
    return put


def _without(*names: str) -> list[str]:
    return [name for name in PUT if name not in names]


def _moved(name: str, before: str) -> list[str]:
    names = _without(name)
    names.insert(names.index(before), name)
    return names


# --- the table ---


def test_rules_are_complete() -> None:
    assert len({one.id for one in ORDERS}) == len(ORDERS)
    assert [one.id for one in ORDERS] == sorted(one.id for one in ORDERS)
    for one in ORDERS:
        assert rule(one.id) is one
        assert one.source
        assert one.scope
        assert one.requires
        assert one.kind is RuleKind.ORDER
        assert bool(one.means) == bool(one.do)
        assert one.means or one.severity is Severity.INFO
    with pytest.raises(KeyError):
        rule("O-99")


def test_every_rule_can_be_met() -> None:
    found = set()
    for names in (
        [*CREATION, *PUT, "RUN"],
        [*CREATION, *PUT, "SET_SREGS", "RUN", *PUT, "SET_NESTED_STATE", "SET_REGS", "RUN"],
    ):
        for put in puts_of(read_text(qemu_log(names))):
            found |= set(outcomes(put))
    refused = _strace_put(*CREATION, "SET_SREGS", "SET_NESTED_STATE=EINVAL")
    of_a_vcpu = {"T-04", "T-05", "T-06", "T-07", "T-08"}  # test_refusals.py
    by_value = {"O-31", "O-32", "O-33"}  # test_by_value.py
    elsewhere = {"O-25"} | of_a_vcpu | by_value
    assert found | set(outcomes(refused)) >= {one.id for one in ORDERS} - elsewhere


def test_what_cannot_be_seen_names_rules() -> None:
    assert {blind.key for blind in NOT_SHOWN} == {
        *("data", "efer", "kernel", "results", "vm"),
    }
    assert all(blind.rules for blind in NOT_SHOWN)


# --- orders ---


@pytest.mark.parametrize(
    "put",
    [
        PUT,
        _moved("SET_REGS", "SET_SREGS2"),
        _moved("SET_DEBUGREGS", "SET_SREGS2"),
        [*PUT, "SET_SREGS2"],
        [*PUT, "KVMCLOCK_CTRL"],
        ["SET_MSRS", *PUT],
        # Another program: reads what it wrote, loads the LAPIC in between.
        [*PUT[:1], "GET_SREGS2", *PUT[1:4], "SET_LAPIC", "GET_REGS", *PUT[4:]],
    ],
    ids=["qemu", "regs first", "debugregs first", "sregs again", "clock", "msrs", "reads"],
)
def test_right_orders(put: list[str]) -> None:
    found = _put(*CREATION, *put, "RUN")
    assert (found.verdict, violated(found)) == (PutVerdict.OK, set())


@pytest.mark.parametrize(
    ("put", "rules"),
    [
        (_moved("SET_NESTED_STATE", "SET_SREGS2"), {"O-01"}),
        (_without("SET_SREGS2"), {"O-01", "O-05"}),
        (_without("SET_REGS"), {"O-09"}),
        (_without("SET_MSRS"), {"O-13"}),
        (_without("SET_VCPU_EVENTS"), {"O-16"}),
        (_moved("SET_VCPU_EVENTS", "SET_NESTED_STATE"), {"O-16"}),
        (_SELFTESTS, {"O-16"}),
        ([*PUT, "SET_CPUID2"], {"O-04"}),
        ([*PUT[:2], "SET_CPUID2", *PUT[2:]], {"O-04"}),
        ([*PUT[:3], "SET_NESTED_STATE", *PUT[3:]], {"O-25"}),
        ([*PUT[:2], "SET_NESTED_STATE", *PUT[2:]], {"O-25"}),
        (["SET_NESTED_STATE"], {"O-01", "O-05", "O-09", "O-13", "O-16"}),
        (["SET_MSRS", "SET_NESTED_STATE", *PUT[2:]], {"O-01", "O-05"}),
        (["SET_SREGS", "SET_NESTED_STATE"], {"O-09", "O-13", "O-16"}),
    ],
)
def test_wrong_orders(put: list[str], rules: set[str]) -> None:
    found = _put(*CREATION, *put, "RUN")
    assert violated(found) == rules
    assert found.verdict is PutVerdict.VIOLATES


def test_msrs_of_the_creation_are_not_the_puts() -> None:
    found = _put(*CREATION, "TPR_ACCESS_REPORTING", "SET_MSRS", "SET_LAPIC", *PUT[1:])
    (one,) = (one for one in found.results if one.rule.id == "O-01")
    assert one.outcome is RuleOutcome.VIOLATED
    assert one.line == found.line


def test_cpuid() -> None:
    late = _put(*PUT, "SET_CPUID2", "RUN")
    assert violated(late) == {"O-02", "O-03", "O-04"}
    never = _put(*PUT, "RUN")
    assert outcomes(never)["O-03"] is RuleOutcome.UNKNOWN
    assert never.verdict is PutVerdict.UNKNOWN
    assert "O-02" not in outcomes(never)
    inside = _put("SET_CPUID2", *PUT, "RUN")
    assert inside.verdict is PutVerdict.OK
    between = _put("SET_SREGS", "SET_CPUID2", *PUT[1:], "RUN")
    assert violated(between) == {"O-02"}
    first = _put("SET_REGS", "SET_CPUID2", *PUT, "RUN")
    assert violated(first) == set()
    assert outcomes(first)["O-02"] is RuleOutcome.OK
    text = "ioctl(4, KVM_CREATE_VCPU, 0) = 9\n" + strace([*PUT, "RUN"])
    (made,) = puts_of(read_text(text))
    assert violated(made) == {"O-03", "O-22"}


def test_a_vcpu_that_ran_has_a_cpuid() -> None:
    found = _put("RUN", *PUT, "RUN")
    assert found.verdict is PutVerdict.OK
    assert outcomes(found)["O-02"] is outcomes(found)["O-03"] is RuleOutcome.OK


def test_logs_that_begin_or_end_in_the_middle() -> None:
    begins = _put(*PUT[1:], "RUN")
    assert outcomes(begins)["O-01"] is RuleOutcome.UNKNOWN
    assert violated(begins) == {"O-05"}
    ends = _put(*CREATION, *PUT[:2])
    assert ends.verdict is PutVerdict.UNKNOWN
    unknown = {one.rule.id for one in ends.results if one.outcome is RuleOutcome.UNKNOWN}
    assert unknown == {"O-09", "O-13", "O-16", "O-27"}
    assert all("the log ends" in one.note for one in ends.results if one.rule.id in unknown)
    assert _put(*CREATION, *PUT).verdict is PutVerdict.OK


def test_nested_state_before_sregs_with_efer_by_msrs() -> None:
    found = _put(*CREATION, "SET_REGS", "SET_MSRS", *_moved("SET_SREGS2", "SET_XSAVE"), "RUN")
    assert violated(found) == set()
    assert outcomes(found)["O-01"] is RuleOutcome.DEPENDS
    assert outcomes(found)["O-07"] is RuleOutcome.OK
    assert outcomes(found)["O-28"] is RuleOutcome.OK


def test_a_put_that_is_replaced_is_not_blamed_for_what_it_lacks() -> None:
    half = ["SET_SREGS2", "SET_NESTED_STATE", "SET_DEBUGREGS"]
    first, second = puts_of(read_text(qemu_log([*CREATION, *half, *PUT, "RUN"])))
    assert first.verdict is PutVerdict.OK
    assert (first.run, first.superseded) == (None, second.line)
    assert second.verdict is PutVerdict.OK
    wrong = ["SET_NESTED_STATE", "SET_SREGS2", "SET_DEBUGREGS"]
    first, second = puts_of(read_text(qemu_log([*CREATION, *wrong, *PUT, "RUN"])))
    assert violated(first) == {"O-01"}
    early = ["SET_SREGS2", "SET_VCPU_EVENTS", "SET_NESTED_STATE", "SET_DEBUGREGS"]
    first, second = puts_of(read_text(qemu_log([*CREATION, *early, *PUT, "RUN"])))
    assert violated(first) == set()


def test_registers_of_an_earlier_put_do_not_count() -> None:
    reset, found = puts_of(read_text(qemu_log([*CREATION, *PUT, *_without("SET_REGS"), "RUN"])))
    assert violated(reset) == set()
    assert violated(found) == {"O-09"}
    (one,) = (one for one in found.results if one.bad)
    assert "KVM_RUN at line 24" in one.note


def test_a_put_after_the_vcpu_ran() -> None:
    found = _put(*CREATION, "RUN", *PUT, "RUN")
    assert outcomes(found)["O-25"] is outcomes(found)["O-26"] is RuleOutcome.DEPENDS
    after = _put(*CREATION, "RUN", *PUT, "SET_SREGS2", "RUN")
    assert outcomes(after)["O-26"] is RuleOutcome.OK
    bare = _put(*CREATION, "RUN", *_without("SET_REGS"), "RUN")
    assert violated(bare) == {"O-09", "O-26"}


def test_missing_mp_state_is_only_told() -> None:
    found = _put(*CREATION, *_without("SET_MP_STATE"), "RUN")
    assert outcomes(found)["O-27"] is RuleOutcome.VIOLATED
    assert found.verdict is PutVerdict.OK


def test_memory() -> None:
    made = ["system CREATE_VM".replace("system ", "vm "), "vm CREATE_VCPU"]
    region = "vm SET_USER_MEMORY_REGION"
    found = _put(*made, region, *CREATION, *PUT, "RUN")
    assert outcomes(found)["O-22"] is RuleOutcome.OK
    found = _put(*made, *CREATION, *PUT, "RUN", region)
    assert violated(found) == {"O-22"}
    found = _put(*CREATION, *PUT, "RUN", region)
    assert outcomes(found)["O-22"] is RuleOutcome.DEPENDS


# --- data and results, as strace shows them ---


def test_a_refusal_that_is_passed_over() -> None:
    found = _strace_put(*CREATION, "SET_SREGS", "SET_NESTED_STATE=EINVAL", *PUT[2:], "RUN")
    assert violated(found) == {"T-01"}
    (one,) = (one for one in found.results if one.bad)
    assert "L2's code in L1's context" in one.note
    found = _strace_put(*CREATION, *PUT[:2], "SET_REGS=EFAULT", *PUT[3:], "RUN")
    assert violated(found) == {"O-09", "T-01"}


def test_a_refusal_that_stops_everything() -> None:
    found = _strace_put(*CREATION, "SET_SREGS", "SET_NESTED_STATE=EINVAL")
    assert violated(found) == {"T-02"}
    assert outcomes(found)["O-01"] is RuleOutcome.OK


def test_a_second_try_makes_up_for_a_refusal() -> None:
    names = ["SET_SREGS2=EINVAL", "SET_SREGS", "SET_NESTED_STATE=EFAULT", "SET_NESTED_STATE"]
    found = _strace_put(*CREATION, *names, *PUT[2:], "RUN")
    assert "T-01" not in violated(found)
    assert not violated(found)
    late = _strace_put(*CREATION, *PUT, "SET_CPUID2=EINVAL", "RUN")
    assert violated(late) == {"T-01"}


def test_many_refusals_are_told_once() -> None:
    names = [f"SET_{name}=EINVAL" for _ in range(50) for name in ("REGS", "XCRS")]
    found = _strace_put(*CREATION, *PUT[:2], *names, "RUN")
    told = [one for one in found.results if one.rule.id == "T-01"]
    assert sorted(one.line for one in told) == [7, 8]


def test_kvmclock_may_fail() -> None:
    found = _strace_put(*CREATION, *PUT, "KVMCLOCK_CTRL=EINVAL", "RUN")
    assert violated(found) == set()
    assert outcomes(found)["T-01"] is outcomes(found)["T-03"] is RuleOutcome.OK


@pytest.mark.parametrize(
    ("run", "bad"),
    [("RUN", False), ("RUN=EINTR", False), ("RUN=EAGAIN", False), ("RUN=EFAULT", True)],
)
def test_the_first_run(run: str, *, bad: bool) -> None:
    found = _strace_put(*CREATION, *PUT, run)
    assert violated(found) == ({"T-03"} if bad else set())


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (2, RuleOutcome.OK),
        (8, RuleOutcome.VIOLATED),
        (9, RuleOutcome.VIOLATED),
        (17, RuleOutcome.VIOLATED),
    ],
)
def test_how_the_first_run_came_back(reason: int, outcome: RuleOutcome) -> None:
    found = _put(*CREATION, *PUT, "RUN", f"exit={reason}")
    assert outcomes(found)["T-03"] is outcome


def test_efer_where_strace_shows_it() -> None:
    rest = [*PUT[2:], "RUN"]
    good = ["SET_SREGS:efer:0x1500", "SET_NESTED_STATE", *rest]
    trace = read_text(strace([*CREATION, *good]))
    assert "efer" not in {blind.key for blind in trace.not_shown}
    bad = _strace_put(*CREATION, "SET_SREGS:efer:0x500", "SET_NESTED_STATE=EINVAL", *rest)
    assert outcomes(bad)["O-01"] is RuleOutcome.DEPENDS
    (one,) = (one for one in bad.results if one.rule.id == "O-01")
    assert "0x500, without SVME" in one.note
    dropped = _strace_put(*CREATION, *good[:-1], "SET_SREGS:efer:0", "RUN")
    assert violated(dropped) == {"O-08"}
    kept = _strace_put(*CREATION, *good[:-1], "SET_SREGS:efer:0x1500", "RUN")
    assert outcomes(kept)["O-08"] is RuleOutcome.OK
    accepted = _strace_put(*CREATION, "SET_NESTED_STATE", "SET_SREGS", *rest)
    assert outcomes(accepted)["O-01"] is RuleOutcome.OK


# --- real logs with one thing changed ---

_REAL = [STREAMS / log["file"] for log in RESTORES]


@pytest.mark.parametrize("path", _REAL, ids=lambda path: path.name.partition(".restore")[0])
@pytest.mark.parametrize(
    ("name", "to", "rules"),
    [
        ("SREGS", "end", {"O-01"}),
        ("SREGS", None, {"O-01", "O-05"}),
        ("REGS", None, {"O-09"}),
        ("REGS", "start", set()),
        ("VCPU_EVENTS", None, {"O-16"}),
        ("VCPU_EVENTS", "start", {"O-16"}),
        ("MSRS", None, {"O-13"}),
        ("MSRS", "start", set()),
        ("DEBUGREGS", "start", set()),
        ("MP_STATE", "start", set()),
        ("NESTED_STATE", "end", {"O-16"}),
    ],
)
def test_a_real_restore_with_one_ioctl_elsewhere(
    path: object, name: str, to: str | None, rules: set[str]
) -> None:
    log = next(log for log in RESTORES if str(path).endswith(log["file"]))
    text = text_of(STREAMS / log["file"]).splitlines(keepends=True)
    start = log["facts"]["migrated_put"] - 1
    end = log["facts"]["first_run"] - 2  # KVMCLOCK_CTRL stands before KVM_RUN
    numbers = {
        "SREGS": ("0x4138ae84", "0x4140aecd"),
        "REGS": ("0x4090ae82",),
        "VCPU_EVENTS": ("0x4040aea0",),
        "MSRS": ("0x4008ae89",),
        "DEBUGREGS": ("0x4080aea2",),
        "MP_STATE": ("0x4004ae99",),
        "NESTED_STATE": ("0x4080aebf",),
    }[name]
    put = text[start:end]
    moved = [line for line in put if any(f"type {number}," in line for number in numbers)]
    assert moved
    rest = [line for line in put if line not in moved]
    put = {"start": moved + rest, "end": rest + moved, None: rest}[to]
    trace = read_text("".join([*text[:start], *put, *text[end:]]))
    *others, migrated = puts_of(trace)
    assert violated(migrated) == rules
    assert trace.clean == (not rules)
    assert all(other.verdict is PutVerdict.OK for other in others)
    assert migrated.run is not None
