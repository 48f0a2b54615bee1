"""The kernel's side of eBPF: what it refuses, what is lost, whom the programs see."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu_svm.recorder import bpf, by_bpf, by_ptrace, ways
from qemu_svm.recorder.assembler import assemble
from qemu_svm.recorder.by_bpf import BpfSource
from qemu_svm.recorder.events import Entered, Left, Lost
from qemu_svm.recorder.process import Process, find

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="eBPF needs root")
needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="needs KVM")
GET_API_VERSION, GET_SUPPORTED_CPUID = 0xAE00, 0xC008AE05


@pytest.fixture
def wake() -> Iterator[int]:
    ends = os.pipe()
    yield ends[0]
    for one in ends:
        os.close(one)


@pytest.fixture
def kvm() -> Iterator[int]:
    fd = os.open("/dev/kvm", os.O_RDWR)
    yield fd
    os.close(fd)


@needs_root
def test_a_program_that_the_verifier_rejects() -> None:
    program = assemble("r0 = 0\nr0 = *(u64 *)(r1 + 4096)\nexit", {}, {})
    with pytest.raises(
        bpf.BpfError,
        match=r"verifier rejects the program 'wrong' at instruction 1, "
        r"'r0 = \*\(u64 \*\)\(r1 \+ 4096\)': .*4096.*use --how ptrace",
    ):
        bpf.load(program, "wrong")


@needs_root
@needs_kvm
def test_what_does_not_fit_in_the_ring_is_counted(kvm: int, wake: int) -> None:
    source = BpfSource(1 << 12, wake, follow=False)
    try:
        source.watch(find(os.getpid()), children=False, late=True)
        for _ in range(100):
            fcntl.ioctl(kvm, GET_API_VERSION, 0)
        events = [*source.wait(0), *source.stop()]
    finally:
        source.close()
    seen = [one for one in events if isinstance(one, (Entered, Left))]
    lost = sum(one.count for one in events if isinstance(one, Lost))
    assert len(seen) + lost == 200
    assert 20 < len(seen) < 60  # 72 bytes each


@needs_root
@needs_kvm
def test_no_other_process_is_seen(kvm: int, wake: int) -> None:
    source = BpfSource(1 << 16, wake, follow=False)
    code = "import fcntl, os; fcntl.ioctl(os.open('/dev/kvm', 2), 0xAE00, 0)"
    try:
        source.watch(find(os.getpid()), children=False, late=True)
        subprocess.run([sys.executable, "-c", code], check=True)
        assert list(source.wait(0)) == []
        room = bytearray(8 + 40 * 256)
        room[0] = 1
        with pytest.raises(OSError, match="too long"):
            fcntl.ioctl(kvm, GET_SUPPORTED_CPUID, room)
        room[0:2] = b"\0\1"
        fcntl.ioctl(kvm, GET_SUPPORTED_CPUID, room)
        os.close(os.dup(kvm))
        refused, found = [one for one in source.wait(0) if isinstance(one, Left)]
    finally:
        source.close()
    assert (refused.result, refused.data) == (-errno.E2BIG, b"\1" + bytes(7))
    length = 8 + 40 * room[0]
    assert found.data == bytes(room[:length])
    assert (found.pid, found.fd) == (os.getpid(), kvm)


@needs_root
@needs_kvm
def test_copies_of_the_programs_write_each_call_once(
    kvm: int, wake: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on kernels that may preempt them."""
    monkeypatch.setattr(by_bpf, "_preempts", lambda _release: True)
    source = BpfSource(1 << 16, wake, follow=True)
    try:
        source.watch(find(os.getpid()), children=False, late=True)
        for _ in range(3):
            fcntl.ioctl(kvm, GET_API_VERSION, 0)
        events = list(source.wait(0))
    finally:
        source.close()
    assert [type(one) for one in events] == [Entered, Left] * 3


@pytest.mark.parametrize(
    ("release", "copies"),
    [("6.18.44-fc", False), ("6.19.1", False), ("7.0-rc1", True), ("7.2.12+deb14-amd64", True),
     ("10.1", True), ("", False)],
)  # fmt: skip
def test_which_kernels_may_preempt_a_program(release: str, *, copies: bool) -> None:
    assert by_bpf._preempts(release) == copies


@needs_root
def test_nothing_stays_in_the_kernel() -> None:
    """Neither descriptors nor, seen by another process, programs: there is no pin."""
    before = len(os.listdir("/proc/self/fd"))
    assert ways.ways().bpf == ""
    assert len(os.listdir("/proc/self/fd")) == before
    assert not list(Path("/sys/fs/bpf").glob("*svm*"))


def test_a_pid_that_is_used_again_is_another_process() -> None:
    now = find(os.getpid())
    assert now.is_alive()
    assert not Process(now.pid, now.start + 1, now.user).is_alive()
    assert not Process(now.pid, now.start, now.user + 1).is_alive()
    assert not Process(4194304, 1, 0).is_alive()


@pytest.mark.parametrize(
    ("number", "root", "words"),
    [
        (errno.EPERM, False, "needs root, or CAP_BPF and CAP_PERFMON"),
        (errno.EPERM, True, "record on the host"),
        (errno.ENOSYS, True, "CONFIG_BPF_SYSCALL is off"),
        (errno.EINVAL, True, r"no ring buffer.*needs Linux 5\.8 or later"),
    ],
)
def test_what_a_kernel_refuses(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch, *, root: bool
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(bpf, "_bpf", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    with pytest.raises(bpf.BpfError, match=words):
        bpf.make_map(bpf.RINGBUF, 0, 0, 1 << 16, "ring")


def test_a_kernel_that_is_locked_down(monkeypatch: pytest.MonkeyPatch) -> None:
    program = assemble("call probe_read_kernel\nexit", {}, {})
    said = "0: (85) call bpf_probe_read_kernel#113\nunknown func bpf_probe_read_kernel#113\n"
    for state, words in (("confidentiality", "locked down"), ("none", "needs Linux 5.8")):
        monkeypatch.setattr(bpf, "locked_down", lambda state=state: state)
        error = bpf._rejected(OSError(errno.EINVAL, "x"), program, "enter", said)
        assert words in str(error)
        assert "unknown func bpf_probe_read_kernel#113" in str(error)


@pytest.mark.parametrize(
    ("yama", "own", "words"),
    [
        (0, False, r"record as root, or as its user \(uid 12\)"),
        (1, True, r"to root only \(kernel\.yama\.ptrace_scope=1\)"),
        (3, True, "forbids all tracing until the next boot"),
    ],
)
def test_why_a_process_cannot_be_traced(
    yama: int, words: str, monkeypatch: pytest.MonkeyPatch, *, own: bool
) -> None:
    monkeypatch.setattr(by_ptrace, "yama", lambda: yama)
    user = os.geteuid() if own else 12
    error = by_ptrace._not_traced(Process(1, 1, user), 0, PermissionError(errno.EPERM, "no"))
    with pytest.raises(type(error), match=words):
        raise error
    traced = by_ptrace._not_traced(Process(1, 1, user), 77, PermissionError(errno.EPERM, "no"))
    assert "process 77 traces it already" in str(traced)
