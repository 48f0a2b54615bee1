"""Whole logs: any mixture, any size, any nonsense."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.errors import SourceError, SvmStreamError
from qemu_svm.kvm.numbers import ioctls
from qemu_svm.limits import Limits
from qemu_svm.render.text.trace import render
from qemu_svm.source import BytesSource
from qemu_svm.trace.calls import Format
from qemu_svm.trace.lines import lines
from qemu_svm.trace.model import read_trace
from qemu_svm.trace.phases import PhaseKind
from tests.trace.logs import (
    CREATION,
    LOGS,
    PUT,
    REAL,
    STREAMS,
    never_again,
    qemu_log,
    read_text,
    strace,
)
from tests.trace.logs import text_of as real_text

# --- lines ---


def _lines(data: bytes, limit: int = 1 << 16) -> list[tuple[int, str]]:
    return list(lines(BytesSource(data), limit))


def test_lines() -> None:
    assert _lines(b"") == []
    assert _lines(b"a") == [(1, "a")]
    assert _lines(b"a\r\n\nb\n") == [(1, "a"), (2, ""), (3, "b")]
    assert _lines(b"\xff\x00\n") == [(1, "\\xff\x00")]


@given(st.binary(max_size=300).map(lambda data: data.replace(b"\r", b"")), st.integers(1, 400))
def test_lines_are_those_of_the_file(data: bytes, limit: int) -> None:
    whole = data.decode("utf-8", "backslashreplace").split("\n")
    if not whole[-1]:
        whole.pop()
    found = _lines(data)
    assert [text for _, text in found] == whole
    assert [number for number, _ in found] == list(range(1, len(whole) + 1))
    assert [number for number, _ in _lines(data, limit)] == [number for number, _ in found]


@pytest.mark.parametrize("size", [10_000, 256 * 1024, 3_000_000])
def test_long_lines_are_cut_in_the_middle(size: int) -> None:
    data = b"x\n" + b"a" * size + b" = 0\n" + b"y\n"
    (_, first), (_, long), (_, last) = _lines(data, 2048)
    assert (first, last) == ("x", "y")
    assert long.startswith("a" * 2000)
    assert long.endswith(" = 0")
    assert len(long) <= 2048 + 512


def test_the_result_of_a_long_line_is_seen() -> None:
    data = "{" + "nent=1, " * 20_000 + "}"
    (vcpu,) = read_text(f"ioctl(9, KVM_SET_CPUID2, {data}) = -1 EINVAL (x)\n").vcpus
    assert vcpu.phases[0].steps[0].error == "EINVAL"


# --- logs ---


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n\n",
        "no ioctl here\n",
        "ioctl(0, TCGETS, 0x7) = -1 ENOTTY (x)\n",
        "\0\xff ioctl ioctl( sys_ioctl kvm_vcpu_ioctl\n" * 10,
    ],
)
def test_a_log_of_nothing_is_an_error_that_says_what_is_known(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_text(text)
    for known in ("-trace kvm_vcpu_ioctl", "strace -f", "sys_enter_ioctl"):
        assert known in str(caught.value)


def test_kinds_may_be_mixed_with_anything() -> None:
    text = (
        "some banner\n"
        + qemu_log(CREATION)
        + "qemu: warning: ioctl trouble\n"
        + strace(["SET_REGS", "RUN"], fd=12)
        + qemu_log(["RUN"])
        + " a-1 [000] .... 1.0: sys_ioctl(fd: 0x20, cmd: 0xae80, arg: 0)\n"
    )
    trace = read_text(text)
    assert trace.formats == ((Format.QEMU, 5), (Format.STRACE, 2), (Format.FTRACE, 1))
    assert (trace.lines, trace.used, trace.calls, trace.results) == (10, 8, 8, 2)
    labels = [vcpu.vcpu.label for vcpu in trace.vcpus]
    assert labels == ["vCPU 0", "vCPU 0 (fd 12)", "vCPU of fd 32"]


def test_a_log_of_exits_only_has_no_vcpus() -> None:
    trace = read_text("kvm_run_exit cpu_index 0, reason 2\n")
    assert (trace.used, trace.calls, trace.vcpus, trace.clean) == (1, 0, (), True)
    assert [line.plain for line in render(trace, verbose=True)][-1].endswith("is never set")


def test_vcpus_are_bounded_and_others_are_counted() -> None:
    limits = Limits(vcpus=2, trace_names=2)
    log = "".join(qemu_log(["RUN"], vcpu=vcpu) for vcpu in range(5))
    log += qemu_log(["vm CREATE_VCPU", "vm IRQFD", "vm IRQFD", "vm CREATE_PIT2"])
    trace = read_text(log, limits)
    assert [vcpu.vcpu.index for vcpu in trace.vcpus] == [0, 1]
    found = {(other.name, other.level): other.count for other in trace.others}
    assert found == {
        ("KVM_RUN", "vcpu"): 3,
        ("KVM_CREATE_VCPU", "vm"): 1,
        ("others", "vm"): 3,
    }


def test_a_log_with_too_much_is_cut_and_says_so() -> None:
    names = [one.name.removeprefix("KVM_") for one in ioctls() if one.name.startswith("KVM_SET_")]
    trace = read_text(qemu_log(names), Limits(trace_ioctls=20))
    assert (trace.cut, trace.complete) == (21, False)
    assert "NOT READ TO THE END" in next(iter(render(trace, verbose=False))).plain


def test_a_log_with_too_many_puts_is_cut_and_says_so() -> None:
    trace = read_text(qemu_log([*PUT, "RUN"] * 10), Limits(trace_puts=3))
    assert (trace.cut, trace.complete) == (3 * 11 + 2, False)
    assert len(trace.vcpus[0].puts) == 4


class _Endless:
    # A log of any size that is nowhere.
    path = "endless.log"
    compression = "none"
    damage = None

    def __init__(self, head: str, body: str, size: int) -> None:
        self._head = head.encode()
        self._body = body.encode()
        self._size = size

    def read_at(self, offset: int, size: int) -> bytes:
        size = min(size, self._size - offset)
        if offset < len(self._head):
            return self._head[offset : offset + size]
        start = (offset - len(self._head)) % len(self._body)
        return (self._body * (size // len(self._body) + 2))[start : start + max(size, 0)]


_RUNTIME = [name for name in PUT if name not in ("SET_NESTED_STATE", "SET_MP_STATE")]


@pytest.mark.parametrize(
    "body",
    [
        ["RUN"],
        ["RUN", "RUN", "SMI", "RUN", "GET_MSRS"],
        ["GET_REGS", "GET_SREGS2", *_RUNTIME, "RUN", "RUN"],
        # Cycles of many lengths that never repeat exactly within six phases.
        [
            *(["RUN", "SMI"] * 5 + ["GET_REGS", "RUN"] * 7 + ["NMI", "RUN", "SET_MSRS"] * 3),
            *(["INTERRUPT", "RUN"] * 4 + ["SET_REGS", "RUN", "GET_SREGS"] * 5),
        ],
    ],
)
def test_a_long_log_stays_in_bounded_memory(body: list[str]) -> None:
    log = _Endless(qemu_log([*CREATION, *PUT]), qemu_log(body), 1_000_000)
    tracemalloc.start()
    trace = read_trace(log)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000
    assert trace.complete
    (vcpu,) = trace.vcpus
    assert vcpu.ioctls > 13_000
    assert sum(phase.count for phase in vcpu.phases) == vcpu.ioctls
    assert len(vcpu.phases) < 600
    (put,) = vcpu.puts
    assert put.verdict.value == "ok"
    assert len(list(render(trace, verbose=False))) < 60


def test_a_long_life_is_told_in_the_middle_as_one() -> None:
    body = [name for at in never_again(2000) for name in ("RUN", ("SMI", "NMI", "INTERRUPT")[at])]
    (vcpu,) = read_text(qemu_log([*CREATION, *PUT, *body, *PUT, "RUN"])).vcpus
    kinds = [phase.kind for phase in vcpu.phases]
    assert kinds.count(PhaseKind.MIXED) == 1
    assert kinds[-2:] == [PhaseKind.RESET, PhaseKind.RUN]
    assert [put.run is not None for put in vcpu.puts] == [True, True]
    assert sum(phase.count for phase in vcpu.phases) == vcpu.ioctls


# --- nonsense ---

_NUMBERS = st.sampled_from([f"{one.number:#x}" for one in ioctls()])
_NAMES = st.sampled_from([one.name for one in ioctls()]) | st.sampled_from(
    ["KVM_NEW_THING", "TCGETS", "A or KVM_RUN"]
)
_SMALL = st.integers(0, 3).map(str)
_RESULTS = st.sampled_from(["= 0", "= -1 EINVAL (x)", "= ?", "<unfinished ...>", ""])
_PIDS = st.sampled_from(["", "[pid 1] ", "2 "])
_VALID = st.one_of(
    st.builds("kvm_vcpu_ioctl cpu_index {}, type {}, arg 0x1".format, _SMALL, _NUMBERS),
    st.builds("kvm_vm_ioctl type {}, arg 0x1".format, _NUMBERS),
    st.builds("kvm_run_exit cpu_index {}, reason {}".format, _SMALL, st.integers(0, 40)),
    st.builds("{}ioctl({}, {}, 0x7) {}".format, _PIDS, _SMALL, _NAMES | _NUMBERS, _RESULTS),
    st.builds("{}<... ioctl resumed>, 0) {}".format, _PIDS, _RESULTS),
    st.builds(
        "{}ioctl({}<anon_inode:kvm-vcpu:{}>, {}, {{efer={}}}) {}".format,
        *(_PIDS, _SMALL, _SMALL, _NAMES, _SMALL, _RESULTS),
    ),
    st.builds("a-{} [0] sys_ioctl(fd: {}, cmd: {}, arg: 1)".format, _SMALL, _SMALL, _NUMBERS),
    st.builds("a-{} [0] sys_ioctl -> {}".format, _SMALL, st.sampled_from(["0x0", "0x5", "f" * 16])),
)
_CHEAP = st.text(st.characters(exclude_categories=[]), max_size=80)


@given(st.lists(_VALID | _CHEAP, max_size=60))
def test_any_lines_raise_nothing_but_our_errors(texts: list[str]) -> None:
    data = "\n".join(texts).encode("utf-8", "surrogatepass")
    try:
        trace = read_trace(BytesSource(data))
    except SvmStreamError:
        return
    for vcpu in trace.vcpus:
        assert sum(phase.count for phase in vcpu.phases) == vcpu.ioctls
    for verbose in (True, False):
        for line in render(trace, verbose=verbose):
            assert line.plain.isprintable()
    json.dumps(trace.to_json())


@given(st.data())
def test_any_bytes_changed_in_a_real_log_are_harmless(data: st.DataObject) -> None:
    text = bytearray(_REAL_TEXT)
    for _ in range(data.draw(st.integers(1, 20))):
        at = data.draw(st.integers(0, len(text) - 1))
        if data.draw(st.booleans()):
            text[at] = data.draw(st.integers(0, 255))
        else:
            del text[at : at + data.draw(st.integers(1, 100))]
    try:
        trace = read_trace(BytesSource(bytes(text)))
    except SvmStreamError:
        return
    for line in render(trace, verbose=True):
        assert line.plain.isprintable()
    json.dumps(trace.to_json())


_REAL_TEXT = b"".join(
    [
        real_text(REAL / "refused.strace").encode(),
        real_text(REAL / "refused.ftrace").encode(),
        real_text(STREAMS / LOGS[0]["file"]).encode(),
    ]
)


@given(st.permutations([*PUT, "RUN"]))
def test_any_order_is_judged(order: list[str]) -> None:
    trace = read_text(qemu_log([*CREATION, *order]))
    (put,) = trace.vcpus[0].puts
    assert put.verdict.value in ("ok", "violates", "cannot be judged")
