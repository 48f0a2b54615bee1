"""Refused ioctls without a put of nested state, and programs that drop nested state."""

from __future__ import annotations

import pytest

from qemu_svm.rules import Severity
from qemu_svm.trace.causes import Circumstances, causes
from qemu_svm.trace.model import Trace
from tests.trace.logs import REAL, STREAMS, qemu_log, read_file, read_text, strace

_VCPU = "20<anon_inode:kvm-vcpu:0>"
_CREATE = "ioctl(13<anon_inode:kvm-vm>, KVM_CREATE_VCPU, 0) = 20<anon_inode:kvm-vcpu:0>\n"
_SREGS = "{cs={base=0, limit=4294967295, l=1}, cr0=0x80000011, cr3=0x104000, efer=0x1500}"


def _call(name: str, result: str = "", data: str = "0x7f0000001000", on: str = _VCPU) -> str:
    result = result or ("9" if name.endswith("_MSRS") else "0")
    words = f"-1 {result} (some words)" if result.startswith("E") else result
    return f"101 ioctl({on}, KVM_{name}, {data}) = {words}\n"


def _read(*lines: str) -> Trace:
    return read_text(_CREATE + "".join(lines))


def _rules(trace: Trace) -> set[str]:
    results = {one.rule.id for vcpu in trace.vcpus for one in vcpu.results}
    return results | {one.rule.id for one in trace.all_refusals if one.rule is not None}


def test_sregs_before_cpuid() -> None:
    trace = _read(_call("SET_REGS"), _call("SET_SREGS", "EINVAL"))
    (one,) = trace.all_refusals
    assert (one.name, one.error, one.line, one.ran) == ("KVM_SET_SREGS", "EINVAL", 3, None)
    assert one.rule is not None
    assert (one.rule.id, one.severity) == ("T-02", Severity.WARNING)
    assert (one.causes[0].rule, one.causes[0].seen) == ("O-02", True)
    assert not trace.clean


def test_sregs_after_cpuid_blames_the_registers() -> None:
    trace = _read(_call("SET_CPUID2"), _call("SET_SREGS", "EINVAL", _SREGS), _call("RUN"))
    (one,) = trace.all_refusals
    assert one.rule is not None
    assert (one.rule.id, one.ran) == ("T-01", 4)
    assert one.causes[0].rule == "R-05"
    assert "O-02" not in {cause.rule for cause in one.causes}


def test_a_read_with_a_small_buffer() -> None:
    trace = _read(_call("RUN"), _call("GET_REGS"), _call("GET_NESTED_STATE", "E2BIG"))
    (one,) = trace.all_refusals
    assert one.rule is not None
    assert (one.rule.id, one.causes[0].rule) == ("T-08", "GET-02")


def test_a_read_that_is_repeated_with_room_is_no_fault() -> None:
    trace = _read(_call("GET_NESTED_STATE", "E2BIG"), _call("GET_NESTED_STATE"))
    (one,) = trace.all_refusals
    assert (one.rule, one.resolved, trace.clean) == (None, 3, True)


def test_cpuid_after_a_run() -> None:
    trace = _read(_call("SET_CPUID2"), _call("RUN"), _call("SET_CPUID2", "EINVAL"))
    (one,) = trace.all_refusals
    assert one.causes[0].rule == "U-01"
    assert one.causes[0].seen


def test_a_killed_vm() -> None:
    trace = _read(_call("SET_CPUID2"), _call("RUN", "EIO"))
    (one,) = trace.all_refusals
    assert one.rule is not None
    assert (one.rule.id, one.severity) == ("T-07", Severity.ERROR)
    assert "KVM_BUG_ON" in one.causes[0].why


def test_an_interrupted_run_is_no_refusal() -> None:
    assert _read(_call("SET_CPUID2"), _call("RUN", "EINTR"), _call("RUN", "EAGAIN")).clean


def test_a_failed_entry_in_qemus_log() -> None:
    trace = read_text(qemu_log(["RUN", "exit=9", "RUN", "exit=2"]))
    assert _rules(trace) == {"T-07"}
    assert read_text(qemu_log(["RUN", "exit=8"])).clean


@pytest.mark.parametrize("efer", [_SREGS, _SREGS.replace("efer=0x1500", "efer=5376")])
def test_a_program_that_never_puts_nested_state(efer: str) -> None:
    put = (_call("SET_CPUID2"), _call("SET_REGS"), _call("SET_SREGS", "0", efer), _call("RUN"))
    trace = _read(*put)
    assert _rules(trace) == {"T-04"}
    assert not trace.clean
    assert _rules(_read(*put[:3])) == set(), "the put may follow"
    assert _rules(_read(*put[:3], _call("SET_NESTED_STATE"), put[3])) == set()


def test_a_program_that_never_reads_nested_state() -> None:
    names = ("GET_VCPU_EVENTS", "GET_REGS", "GET_MSRS")
    reads = [_call(name) for name in names]
    trace = _read(_call("RUN"), *reads, _call("GET_SREGS", "0", _SREGS))
    assert _rules(trace) == {"T-04"}
    assert _rules(_read(_call("RUN"), *reads, _call("GET_SREGS"))) == set()
    with_it = _read(*reads, _call("GET_SREGS", "0", _SREGS), _call("GET_NESTED_STATE"))
    assert _rules(with_it) == set()


_WHOLE = ("SET_CPUID2", "SET_MP_STATE", "SET_REGS", "SET_SREGS", "SET_XSAVE", "SET_XCRS",
          "SET_LAPIC", "SET_VCPU_EVENTS")  # fmt: skip


def test_a_whole_state_whose_efer_is_not_shown() -> None:
    put = [_call(name) for name in _WHOLE] + [_call("SET_MSRS", "40"), _call("RUN")]
    assert _rules(_read(*put)) == {"T-04"}
    clear = [line.replace("0x7f0000001000", "{efer=0x500}") if "SREGS" in line else line
             for line in put]  # fmt: skip
    assert _rules(_read(*clear)) == set(), "SVME is clear"
    none = _call("CHECK_EXTENSION", "0", "KVM_CAP_NESTED_STATE", "12</dev/kvm>")
    assert _rules(_read(none, *put)) == set(), "the host has no nested state"


def test_a_new_vcpu_is_no_restore() -> None:
    start = ("SET_CPUID2", "SET_FPU", "SET_REGS", "SET_SREGS", "SET_LAPIC")
    trace = _read(*(_call(name) for name in start), _call("SET_MSRS", "9"), _call("RUN"))
    assert trace.clean


def test_msrs_that_stop_early() -> None:
    short = "{nmsrs=40, entries=[{index=0x174, data=0}, ...]}"
    assert _rules(_read(_call("SET_MSRS", "12", short))) == {"T-05"}
    assert _rules(_read(_call("SET_MSRS", "40", short))) == set()
    assert _rules(_read(_call("SET_MSRS", "0"))) == {"T-05"}
    assert _rules(_read(_call("SET_MSRS", "12"))) == set()


def test_msrs_that_stop_on_one_vcpu_only() -> None:
    second = "21<anon_inode:kvm-vcpu:1>"
    create = _CREATE.replace(", 0)", ", 1)").replace("20<anon_inode:kvm-vcpu:0>", second)
    calls = _call("SET_MSRS", "40") + _call("SET_MSRS", "12", on=second)
    trace = read_text(_CREATE + create + calls)
    assert [len(vcpu.results) for vcpu in trace.vcpus] == [0, 1]
    assert "40 for another vCPU" in trace.vcpus[1].results[0].note


def test_an_extension_is_checked_on_a_vcpu() -> None:
    trace = _read(_call("CHECK_EXTENSION", "EINVAL", "KVM_CAP_NESTED_STATE"))
    (one,) = trace.vcpus[0].results
    assert (one.rule.id, one.bad) == ("T-06", True)
    assert "KVM_CAP_NESTED_STATE" in one.note
    assert "EINVAL" in one.note
    good = _call("CHECK_EXTENSION", "4224", "KVM_CAP_NESTED_STATE", "13<anon_inode:kvm-vm>")
    assert _read(good).clean


def test_a_vcpus_ioctl_on_another_descriptor() -> None:
    trace = _read(_call("SET_SREGS", "EINVAL", on="12</dev/kvm>"))
    assert [vcpu.vcpu.index for vcpu in trace.vcpus] == [0]
    (one,) = trace.refusals
    assert one.rule is not None
    assert one.rule.id == "T-06"


def test_the_same_refusal_is_counted() -> None:
    trace = _read(*[_call("SET_VCPU_EVENTS", "EINVAL")] * 3)
    (one,) = trace.all_refusals
    assert (one.count, one.line, one.last_line) == (3, 2, 4)


def test_real_logs() -> None:
    refused = read_file(REAL / "refused.strace")
    assert _rules(refused) == {"T-01"}
    assert _rules(read_file(REAL / "refused.ftrace")) == {"T-01"}
    qemu = read_file(REAL / "qemu7.2-smp2-restore.strace.zst")
    assert qemu.clean, "QEMU's probes are not faults"
    assert {one.name for one in qemu.all_refusals if one.rule is None} >= {"KVM_KVMCLOCK_CTRL"}
    for path in sorted(STREAMS.glob("*.log.zst"))[:4]:
        assert read_file(path).clean


def test_sregs2_is_tried_first() -> None:
    trace = read_text(strace(["SET_SREGS2=ENOTTY", "SET_SREGS"]))
    assert trace.clean


def test_causes_without_a_log() -> None:
    rules = [cause.rule for cause in causes("SET_NESTED_STATE", "EINVAL")]
    assert {"O-01", "O-03", "SV-01", "SV-04"} <= set(rules)
    assert not any(cause.seen for cause in causes("KVM_SET_SREGS", "EINVAL"))
    killed = causes("KVM_SET_REGS", "EIO", Circumstances(cpuid=True))
    assert "KVM_BUG_ON" in killed[0].why
    assert causes("KVM_SET_REGS", "EUNKNOWN") == ()
