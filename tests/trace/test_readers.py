"""One line at a time: every spelling of the three kinds of log."""

from __future__ import annotations

import pytest

from qemu_svm.kvm.numbers import Level
from qemu_svm.trace.calls import Call, Descriptors, Format, RunExit, VcpuId, errno_name
from qemu_svm.trace.ftrace import Ftrace
from qemu_svm.trace.qemu_log import QemuLog
from qemu_svm.trace.strace import Strace


def _strace() -> Strace:
    return Strace(Descriptors(16), 16)


def _ftrace() -> Ftrace:
    return Ftrace(Descriptors(16), 16)


def _only(found: list[Call | RunExit] | None) -> Call:
    assert found is not None
    (call,) = found
    assert isinstance(call, Call)
    return call


# --- QEMU ---


@pytest.mark.parametrize(
    "text",
    [
        "kvm_vcpu_ioctl cpu_index 3, type 0x4140aecd, arg 0x7ffd2c5f1a40",
        "123@1795345676.199948:kvm_vcpu_ioctl cpu_index 3, type 0x4140aecd, arg (nil)",
        "2024-01-02T03:04:05Z host qemu[1]: kvm_vcpu_ioctl cpu_index 3, type 0x4140aecd, arg 0x7",
        " qemu-12 [000] .... 1.2: tracing_mark_write: kvm_vcpu_ioctl cpu_index 3, type 0x4140AECD",
        "kvm_vcpu_ioctl cpu_index 3, type 0xffffffff4140aecd, arg 0x0",
    ],
)
def test_qemu_vcpu_lines(text: str) -> None:
    call = _only(QemuLog().read(7, text))
    assert call == Call(7, "KVM_SET_SREGS2", 0x4140_AECD, Level.VCPU, VcpuId(3))


@pytest.mark.parametrize(
    ("text", "name", "level"),
    [
        ("kvm_ioctl type 0xae01, arg (nil)", "KVM_CREATE_VM", Level.SYSTEM),
        ("9@1.000002:kvm_vm_ioctl type 0xae41, arg (nil)", "KVM_CREATE_VCPU", Level.VM),
        (
            "kvm_device_ioctl dev fd 12, type 0x4018aee1, arg 0x7f",
            "KVM_SET_DEVICE_ATTR",
            Level.DEVICE,
        ),
        ("kvm_vm_ioctl type 0x4010aef0, arg 1", "KVM ioctl nr 0xf0 (write 16 bytes)", Level.VM),
    ],
)
def test_qemu_other_lines(text: str, name: str, level: Level) -> None:
    call = _only(QemuLog().read(1, text))
    assert (call.name, call.level, call.vcpu, call.value) == (name, level, None, None)


def test_qemu_exit_lines() -> None:
    reader = QemuLog()
    found = reader.read(4, "kvm_run_exit cpu_index 2, reason 17")
    assert found == [RunExit(4, VcpuId(2), 17)]
    assert reader.finish() == []
    assert reader.format is Format.QEMU


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kvm_vcpu_ioctl cpu_index x, type 0x1, arg 0",
        "kvm_vcpu_ioctl cpu_index 99999999999, type 0xae80, arg 0",
        "kvm_vcpu_ioctl cpu_index 0, type zzz",
        "qemu_ioctl type 0xae80",
        "kvm_run_exit cpu_index 0, reason",
    ],
)
def test_lines_that_are_not_qemus(text: str) -> None:
    assert QemuLog().read(1, text) is None


# --- strace ---

_PREFIXES = [
    "",
    "[pid 27643] ",
    "[pid    43] ",
    "27643 ",
    "27643  ",
    "19:10:13.963889 ",
    "[pid 27643] 19:10:13 ",
    "27610      0.000580 ",
    "27621 1795461015.012655 ",
    "     0.000041 ",
    "[ 0x7f] [pid 1] ",
]


@pytest.mark.parametrize("prefix", _PREFIXES)
@pytest.mark.parametrize(
    "call",
    [
        "ioctl(9<anon_inode:kvm-vcpu:2>, KVM_SET_NESTED_STATE, 0x5635)",
        "ioctl(9<anon_inode:kvm-vcpu:2>, 0x4080aebf, 0x5635)      ",
        "ioctl(9<anon_inode:kvm-vcpu:2>, 0x4080aebf /* KVM_SET_NESTED_STATE */, 0x5635)",
        "ioctl(9<anon_inode:kvm-vcpu:2>, KVM_PPC_X or KVM_SET_NESTED_STATE, {a=1, b=[2, 3]})",
        "ioctl(9<anon_inode:kvm-vcpu:2>, _IOC(_IOC_WRITE, 0xae, 0xbf, 0x80), 0x5635)",
    ],
)
@pytest.mark.parametrize(
    ("result", "value", "error"),
    [
        (" = 0", 0, None),
        (" = -1 EINVAL (Invalid argument)", -1, "EINVAL"),
        (" = -1 EINVAL (Invalid argument) <0.000054>", -1, "EINVAL"),
        (" = 0 <0.000054>", 0, None),
        (" = 0 (INJECTED)", 0, None),
        (" = ? ERESTARTSYS (To be restarted if SA_RESTART is set)", None, None),
        ("", None, None),
    ],
)
def test_strace_lines(
    prefix: str, call: str, result: str, value: int | None, error: str | None
) -> None:
    found = _only(_strace().read(5, prefix + call + result))
    assert (found.line, found.name) == (5, "KVM_SET_NESTED_STATE")
    assert (found.number, found.level) == (0x4080_AEBF, Level.VCPU)
    assert found.vcpu == VcpuId(2, 9)
    assert (found.value, found.error) == (value, error)


def test_strace_halves() -> None:
    reader = _strace()
    assert reader.read(1, "[pid 7] ioctl(9<anon_inode:kvm-vcpu:0>, KVM_RUN <unfinished ...>") == []
    assert reader.read(2, "[pid 8] ioctl(9, KVM_SET_REGS, {rax=0} <unfinished ...>") == []
    regs = _only(reader.read(3, "[pid 8] <... ioctl resumed>) = -1 EFAULT (Bad address)"))
    assert (regs.line, regs.name, regs.error) == (2, "KVM_SET_REGS", "EFAULT")
    run = _only(reader.read(4, "[pid 7] <... ioctl resumed>, 0) = 0"))
    assert (run.line, run.name, run.value) == (1, "KVM_RUN", 0)
    assert reader.read(5, "[pid 7] <... ioctl resumed>, 0) = 0") is None
    assert reader.finish() == []


def test_strace_halves_that_never_meet() -> None:
    reader = _strace()
    reader.read(1, "7 ioctl(9<anon_inode:kvm-vcpu:0>, KVM_RUN, 0 <unfinished ...>")
    (left,) = reader.finish()
    assert isinstance(left, Call)
    assert (left.name, left.value, left.error) == ("KVM_RUN", None, None)
    assert reader.finish() == []


def test_strace_of_many_threads_is_bounded() -> None:
    reader = Strace(Descriptors(16), 3)
    for pid in range(10):
        assert reader.read(pid, f"{pid} ioctl(9, KVM_RUN, 0 <unfinished ...>") == []
    assert len(reader.finish()) == 3


def test_strace_without_y_learns_from_create_vcpu() -> None:
    reader = _strace()
    made = _only(reader.read(1, "ioctl(4, KVM_CREATE_VCPU, 3) = 5"))
    assert made.vcpu == VcpuId(3, 5, 1)
    assert made.level is Level.VM
    run = _only(reader.read(2, "ioctl(5, KVM_RUN, 0) = 0"))
    assert run.vcpu == made.vcpu
    again = _only(reader.read(3, "ioctl(4, 0xae41 /* KVM_CREATE_VCPU */, 0x1 /* x */ 1) = 5"))
    assert again.vcpu is not None
    assert again.vcpu.created == 3
    assert again.vcpu != made.vcpu
    failed = _only(reader.read(4, "ioctl(4, KVM_CREATE_VCPU, 3) = -1 EEXIST (File exists)"))
    assert (failed.vcpu, failed.error) == (None, "EEXIST")
    named = _only(reader.read(5, "ioctl(4, KVM_CREATE_VCPU, 9) = 6<anon_inode:kvm-vcpu:9>"))
    assert named.vcpu == VcpuId(9, 6, 5)


def test_strace_without_any_name_knows_vcpus_by_their_ioctls() -> None:
    reader = _strace()
    # Ioctls that descriptors of several kinds take prove nothing.
    early = _only(reader.read(1, "ioctl(3, KVM_GET_MSRS, 0x7) = 1"))
    assert (early.vcpu, early.level) == (None, Level.SYSTEM)
    cap = _only(reader.read(2, "ioctl(8, KVM_ENABLE_CAP, 0x7) = 0"))
    assert (cap.vcpu, cap.level) == (None, Level.VM)
    regs = _only(reader.read(3, "ioctl(13, KVM_SET_REGS, 0x7) = 0"))
    assert regs.vcpu == VcpuId(None, 13)
    assert regs.vcpu.label == "vCPU of fd 13"
    msrs = _only(reader.read(4, "ioctl(13, KVM_GET_MSRS, 0x7) = 1"))
    assert (msrs.vcpu, msrs.level) == (regs.vcpu, Level.VCPU)
    future = _only(reader.read(5, "ioctl(13, KVM_SOMETHING_NEW, 0x7) = 1"))
    assert (future.vcpu, future.number, future.name) == (regs.vcpu, None, "KVM_SOMETHING_NEW")
    other = _only(reader.read(6, "ioctl(8, KVM_SOMETHING_NEW, 0x7) = 1"))
    assert (other.vcpu, other.level) == (None, Level.VM)


def test_descriptors_are_bounded() -> None:
    reader = Strace(Descriptors(2), 16)
    calls = [_only(reader.read(fd, f"ioctl({fd}, KVM_SET_REGS, 0x7) = 0")) for fd in range(5)]
    assert [call.vcpu is not None for call in calls] == [True, True, False, False, False]
    assert [call.level for call in calls] == [Level.VCPU] * 5


def test_strace_shows_efer() -> None:
    line = "ioctl(5, KVM_SET_SREGS, {cs={base=0, ...}, cr8=0, efer=5376, apic_base=0xfee00900}) = 0"
    assert _only(_strace().read(1, line)).efer == 0x1500
    assert _only(_strace().read(1, line.replace("5376", "0x1500"))).efer == 0x1500
    assert _only(_strace().read(1, line.replace("SET", "GET"))).efer == 0x1500
    assert _only(_strace().read(1, line.replace("SET_SREGS", "SET_REGS"))).efer is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ioctl(0, TCGETS, 0x7ffe0271df20)  = -1 ENOTTY (Inappropriate ioctl for device)",
        "ioctl(0, SNDCTL_TMR_START or TCSETS, {c_iflag=, ...}) = -1 ENOTTY (x)",
        "ioctl(0, 0x5401, 0x7) = 0",
        "ioctl(0, _IOC(_IOC_READ, 0x54, 0x1, 0x4), 0x7) = 0",
        "ioctl(0, _IOC(_IOC_READ, words, 0x1, 0x4), 0x7) = 0",
        "ioctl(0, _IOC(0x1), 0x7) = 0",
        "sys_ioctl(5, KVM_RUN, 0) = 0",
        "ioctl(5)",
        "<... read resumed>) = 0",
        "[pid 7] <... ioctl resumed>) = 0",
        'write(1, "ioctl(5, KVM_RUN, 0) = 0", 24) = 24',
        "--- SIGUSR1 {si_signo=SIGUSR1} ---",
    ],
)
def test_lines_that_are_not_straces(text: str) -> None:
    assert _strace().read(1, text) is None


# --- the kernel's events ---

_TASKS = [
    "      python3.11-1672    [001] .....  4239.655907: ",
    "           <...>-1672    [001] .....  4239.655907: ",
    "    CPU 0/KVM-1672    (   1672) [001] ..... 4239.655907: ",
    "    python3-1672  [001]  4239.655907: ",
    "python3  1672 [001]  4239.655907:     syscalls:",
    "CPU 0/KVM  1670/1672 [001]  4239.655907: ",
    "",
]


@pytest.mark.parametrize("task", _TASKS)
@pytest.mark.parametrize(
    "enter",
    [
        "sys_ioctl(fd: 5, cmd: 0x4080aebf, arg: 0x5573ac7e5030)",
        "sys_ioctl(fd: 5, cmd: 4080aebf, arg: 5573ac7e5030)",
        "sys_enter_ioctl:      fd: 0x00000005, cmd: 0x4080aebf, arg: 0x5573ac7e5030",
        "sys_enter_ioctl: fd: 0x5, cmd: 0xffffffff4080aebf",
    ],
)
@pytest.mark.parametrize(
    ("leave", "value", "error"),
    [
        ("sys_ioctl -> 0x0", 0, None),
        ("sys_ioctl -> 0xffffffffffffffea", -22, "EINVAL"),
        ("sys_exit_ioctl:       0xffffffffffffffea", -22, "EINVAL"),
        ("sys_exit_ioctl: 0x1", 1, None),
    ],
)
def test_event_lines(task: str, enter: str, leave: str, value: int, error: str | None) -> None:
    reader = _ftrace()
    assert reader.read(1, task + enter) == []
    call = _only(reader.read(2, task + leave))
    assert (call.line, call.name, call.number) == (1, "KVM_SET_NESTED_STATE", 0x4080_AEBF)
    assert call.vcpu == VcpuId(None, 5)
    assert (call.value, call.error) == (value, error)
    assert reader.read(3, task + leave) is None


def test_events_of_two_tasks_do_not_mix() -> None:
    reader = _ftrace()
    one, two = " a-1 [000] .... 1.0: ", " b-2 [001] .... 1.0: "
    reader.read(1, one + "sys_ioctl(fd: 5, cmd: 0xae80, arg: 0)")
    reader.read(2, two + "sys_ioctl(fd: 6, cmd: 0x4090ae82, arg: 0)")
    run = _only(reader.read(3, one + "sys_ioctl -> 0xfffffffffffffffc"))
    assert (run.name, run.error) == ("KVM_RUN", "EINTR")
    regs = _only(reader.read(4, two + "sys_ioctl -> 0x0"))
    assert (regs.name, regs.error) == ("KVM_SET_REGS", None)


def test_events_that_were_lost() -> None:
    reader = _ftrace()
    task = " a-1 [000] .... 1.0: "
    reader.read(1, task + "sys_ioctl(fd: 5, cmd: 0xae80, arg: 0)")
    first = _only(reader.read(2, task + "sys_ioctl(fd: 5, cmd: 0x4090ae82, arg: 0)"))
    assert (first.name, first.value) == ("KVM_RUN", None)
    second = _only(reader.read(3, task + "sys_ioctl(fd: 1, cmd: 0x5401, arg: 0)"))
    assert (second.name, second.value) == ("KVM_SET_REGS", None)
    assert reader.read(4, task + "sys_ioctl -> 0x0") is None
    assert reader.read(5, task + "sys_ioctl(fd: 1, cmd: 0x5401, arg: 0)") is None
    reader.read(6, task + "sys_ioctl(fd: 5, cmd: 0xae80, arg: 0)")
    (left,) = reader.finish()
    assert isinstance(left, Call)
    assert left.name == "KVM_RUN"


def test_events_of_many_tasks_are_bounded() -> None:
    reader = Ftrace(Descriptors(16), 3)
    for pid in range(10):
        reader.read(1, f" a-{pid} [000] .... 1.0: sys_ioctl(fd: 5, cmd: 0xae80, arg: 0)")
    assert len(reader.finish()) == 3


def test_events_learn_from_create_vcpu() -> None:
    reader = _ftrace()
    task = " a-1 [000] .... 1.0: "
    reader.read(1, task + "sys_ioctl(fd: 4, cmd: 0xae41, arg: 0x1)")
    made = _only(reader.read(2, task + "sys_ioctl -> 0x5"))
    assert (made.vcpu, made.level) == (VcpuId(1, 5, 1), Level.VM)
    reader.read(3, task + "sys_ioctl(fd: 4, cmd: 0xae41, arg: 0x1)")
    failed = _only(reader.read(4, task + "sys_ioctl -> 0xffffffffffffffef"))
    assert (failed.vcpu, failed.error) == (None, "EEXIST")


def test_errors_have_names() -> None:
    assert errno_name(0) is None
    assert errno_name(5) is None
    assert errno_name(-22) == "EINVAL"
    assert errno_name(-512) == "errno 512"
    assert errno_name(-5000) is None
