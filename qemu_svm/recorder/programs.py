"""The eBPF programs of the recorder, and the maps through which they are spoken to.

One runs at the entry of every system call, one at its exit (raw tracepoints ``sys_enter`` and
``sys_exit``); if the children of a process are recorded as well, a third one runs when a process
or thread is started (``sched_process_fork``).  All return at once unless the process is in the
map ``watched``.  Of an ioctl of KVM they write a message to the ring buffer: a header
(:data:`HEADER`) and the data.  Of KVM_RUN only the first one after another ioctl on its
descriptor gives messages.

Since Linux 7.0 a program on a raw tracepoint may be preempted, and is not run for another task on
that CPU meanwhile (``__bpf_trace_run()``).  There several copies of each program are attached, and
a call is written by the first that runs: the map ``threads`` says what has been done of it.

Source: Linux ``include/trace/events/syscalls.h``, ``sched.h`` (arguments of the tracepoints),
``arch/x86/include/asm/ptrace.h`` (struct pt_regs), ``kernel/bpf/ringbuf.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from qemu_svm.recorder.assembler import Program, assemble
from qemu_svm.recorder.shapes import (
    CAP_XSAVE2,
    CHECK_EXTENSION,
    COUNT_XSAVE,
    CREATE_VCPU,
    KVM_RUN,
    MOST,
    POINTED,
    TOO_BIG,
)

HEADER = struct.Struct("<IIQQIiQqQII")
"""A message's kind, length of its data, time in ns (CLOCK_MONOTONIC), process and thread,
number of the ioctl, file descriptor, argument, result, extra (see the kinds), length that was
wanted, flags."""

MOST_COPIES = 3

ENTRY, EXIT, FORK = 1, 2, 3
"""Kinds of messages.  ENTRY of KVM_RUN: extra is the number of runs before it.  EXIT of
KVM_RUN: extra are the 8 bytes from ``exit_reason`` on, :data:`UNKNOWN` if they cannot be read.
FORK: a process that was started by a recorded one."""

UNKNOWN = (1 << 64) - 1

UNREADABLE = 1
"""Flag: the data is in memory that could not be read without a page fault."""

SCRATCH_SIZE = HEADER.size + MOST + 1 + POINTED
DESCRIPTOR = struct.Struct("<QQQQ")
"""Value of the map ``descriptors``: an ioctl came since the last KVM_RUN; number of KVM_RUN;
a KVM_RUN is being recorded; address of the ``kvm_run`` mapping."""

SETTING_XSAVE, SETTING_LOST = 0, 1
"""Keys of the map ``settings``: bytes of XSAVE's area; messages for which there was no room."""

_ENTERED, _LEFT = 1, 2
"""Values of the map ``threads``: another copy has seen the call's entry, or its exit."""

_NUMBERS = {
    "ENTERED": _ENTERED,
    "LEFT": _LEFT,
    "SYS_mmap": 9,
    "SYS_ioctl": 16,
    "SYS_clone": 56,
    "SYS_clone3": 435,
    "KVM_TYPE": 0xAE,
    "KVM_RUN": KVM_RUN,
    "KVM_CREATE_VCPU": CREATE_VCPU,
    "KVM_CHECK_EXTENSION": CHECK_EXTENSION,
    "KVM_CAP_XSAVE2": CAP_XSAVE2,
    "COUNT_XSAVE": COUNT_XSAVE,
    "TOO_BIG": TOO_BIG,
    "MOST": MOST,
    "POINTED": POINTED,
    "UNREADABLE": UNREADABLE,
    "ENTRY": ENTRY,
    "EXIT": EXIT,
    "FORK": FORK,
    "PT_R9": 64,
    "PT_DX": 96,
    "EXIT_REASON": 8,  # offset in struct kvm_run
    "DATA": HEADER.size,
}

# r7: process and thread.  In another PID namespace than the kernel's first one, numbers are
# those of the namespace, in which the process must be as well.
_WHO = """
    call get_current_pid_tgid
    r7 = r0
"""
_WHO_IN_NAMESPACE = """
    r1 = NAMESPACE_DEVICE
    r2 = NAMESPACE_INODE
    r2 <<= 32           ; unsigned
    r2 >>= 32
    r3 = r10
    r3 += -8
    r4 = 8
    call get_ns_current_pid_tgid
    if r0 != 0 goto out
    r1 = *(u32 *)(r10 - 8)      ; thread
    r7 = *(u32 *)(r10 - 4)      ; process
    r7 <<= 32
    r7 |= r1
"""

_WATCHED = """
    r1 = r7
    r1 >>= 32
    *(u32 *)(r10 - 8) = r1
    r1 = map watched
    r2 = r10
    r2 += -8
    call map_lookup_elem
    if r0 == 0 goto out
"""

# The descriptor in the lower half of r1, with the process of r7: the key of the map descriptors.
_DESCRIPTOR_KEY = """
    r2 = r7
    r2 >>= 32
    r2 <<= 32
    r2 |= r1
    *(u64 *)(r10 - 32) = r2
"""

# r0: what is known of the descriptor whose key was made, or 0.
_DESCRIPTOR = """
    r1 = map descriptors
    r2 = r10
    r2 += -32
    call map_lookup_elem
"""

# r0: what has been done of this thread's call; -40 is free.
_THREAD = """
    *(u64 *)(r10 - 40) = r7
    r1 = map threads
    r2 = r10
    r2 += -40
    call map_lookup_elem
    if r0 != 0 goto thread_known
    *(u64 *)(r10 - 32) = 0
    r1 = map threads
    r2 = r10
    r2 += -40
    r3 = r10
    r3 += -32
    r4 = 0
    call map_update_elem
    r1 = map threads
    r2 = r10
    r2 += -40
    call map_lookup_elem
    if r0 == 0 goto out
thread_known:
"""

# r9: room for a message, with its header; KIND and SLOT are the program's.  Behind it r6, r7
# and the arguments of the system call are free: number, descriptor, argument are in the header.
_HEADER = """
    *(u32 *)(r10 - 8) = SLOT
    r1 = map scratch
    r2 = r10
    r2 += -8
    call map_lookup_elem
    if r0 == 0 goto out
    r9 = r0
    *(u32 *)(r9 + 0) = KIND
    *(u32 *)(r9 + 4) = 0
    call ktime_get_ns
    *(u64 *)(r9 + 8) = r0
    *(u64 *)(r9 + 16) = r7
    *(u32 *)(r9 + 24) = r8
    r1 = *(u64 *)(r10 - 48)     ; descriptor
    *(u32 *)(r9 + 28) = r1
    r1 = *(u64 *)(r10 - 64)     ; argument
    *(u64 *)(r9 + 32) = r1
    r1 = *(u64 *)(r10 - 16)     ; result
    *(u64 *)(r9 + 40) = r1
    r1 = *(u64 *)(r10 - 24)     ; extra
    *(u64 *)(r9 + 48) = r1
    *(u32 *)(r9 + 56) = 0
    *(u32 *)(r9 + 60) = 0
"""

# Data of the ioctl r8: as the map says, else as its number encodes.  SIZE, EACH and POINTER
# are offsets in struct Shape, DIRECTION is the bit of the number.
_DATA = """
    r7 = 0
    r1 = *(u64 *)(r9 + 40)
    if r1 s>= 0 goto data
    r1 += TOO_BIG
    if r1 != 0 goto send
data:
    *(u32 *)(r10 - 8) = r8
    r1 = map shapes
    r2 = r10
    r2 += -8
    call map_lookup_elem
    r6 = r0
    if r6 != 0 goto shaped
    r1 = r8
    r1 >>= DIRECTION
    r1 &= 1
    if r1 == 0 goto send
    r7 = r8
    r7 >>= 16
    r7 &= 0x3fff
    goto copy
shaped:
    r7 = *(u32 *)(r6 + SIZE)
    r1 = *(u64 *)(r9 + 40)      ; a list that is too short: only its header was written
    if r1 s< 0 goto copy
    r1 = *(u32 *)(r6 + EACH)
    if r1 == 0 goto copy
    r1 = *(u32 *)(r6 + 20)      ; where the count is
    if r1 == COUNT_XSAVE goto xsave
    r3 = *(u64 *)(r9 + 32)
    r3 += r1
    r1 = r10
    r1 += -8
    r2 = 4
    call probe_read_user
    if r0 != 0 goto unreadable
    r1 = *(u32 *)(r10 - 8)
    r2 = *(u32 *)(r6 + EACH)
    r1 *= r2
    r2 = *(u32 *)(r6 + 16)      ; base
    r1 += r2
    goto longest
xsave:
    *(u32 *)(r10 - 8) = 0
    r1 = map settings
    r2 = r10
    r2 += -8
    call map_lookup_elem
    if r0 == 0 goto out
    r1 = *(u64 *)(r0 + 0)
longest:
    if r1 <= r7 goto copy
    r7 = r1
copy:
    if r7 == 0 goto send
    r1 = r7
    if r1 <= 0x7fffffff goto told
    r1 = 0x7fffffff
told:
    *(u32 *)(r9 + 56) = r1
    if r7 <= MOST goto fits
    r7 = MOST
fits:
    r1 = r9
    r1 += DATA
    r2 = r7
    r3 = *(u64 *)(r9 + 32)
    call probe_read_user
    if r0 != 0 goto unreadable
    if r6 == 0 goto send
    r1 = *(u32 *)(r6 + POINTER)
    if r1 == 0 goto send
    r1 &= 0x1f
    r2 = r9
    r2 += r1
    r3 = *(u64 *)(r2 + DATA)
    r1 = r9
    r1 += r7
    r1 += DATA
    r2 = POINTED
    call probe_read_user
    if r0 != 0 goto send
    r7 += POINTED
    goto send
unreadable:
    *(u32 *)(r9 + 60) = UNREADABLE
    r7 = 0
send:
    *(u32 *)(r9 + 4) = r7
    r1 = map ring
    r2 = r9
    r3 = r7
    r3 += DATA
    r4 = 0
    call ringbuf_output
    if r0 == 0 goto out
    *(u32 *)(r10 - 8) = 1
    r1 = map settings
    r2 = r10
    r2 += -8
    call map_lookup_elem
    if r0 == 0 goto out
    r1 = 1
    lock *(u64 *)(r0 + 0) += r1
out:
    r0 = 0
    exit
"""

# Its stack: -8 keys; -16 result, -24 extra, -32 process and descriptor; -64 argument (dx),
# -56 number (si), -48 descriptor (di).  r1 points to the registers and the number.
_ENTER = f"""
    r6 = r1
    r1 = *(u64 *)(r6 + 8)
    if r1 != SYS_ioctl goto out
{_WHO}{_WATCHED}
    r1 = r10
    r1 += -64
    r2 = 24
    r3 = *(u64 *)(r6 + 0)
    r3 += PT_DX
    call probe_read_kernel
    if r0 != 0 goto out
    r8 = *(u32 *)(r10 - 56)
    r1 = r8
    r1 >>= 8
    r1 &= 0xff
    if r1 != KVM_TYPE goto out
    r1 = COPIES
    if r1 <= 1 goto first
{_THREAD}
    r1 = *(u64 *)(r0 + 0)
    *(u64 *)(r0 + 0) = ENTERED
    if r1 != ENTERED goto first
    r1 = COPY                   ; the first copy has not run: a thread that was killed in a call
    if r1 != 0 goto out
first:
    *(u64 *)(r10 - 16) = 0
    *(u64 *)(r10 - 24) = 0
    r1 = *(u32 *)(r10 - 48)
{_DESCRIPTOR_KEY}
{_DESCRIPTOR}
    if r0 != 0 goto known
    *(u64 *)(r10 - 96) = 1      ; a descriptor that was open before: as after an ioctl
    *(u64 *)(r10 - 88) = 0
    *(u64 *)(r10 - 80) = 0
    *(u64 *)(r10 - 72) = 0
    r1 = map descriptors
    r2 = r10
    r2 += -32
    r3 = r10
    r3 += -96
    r4 = 0
    call map_update_elem
{_DESCRIPTOR}
    if r0 == 0 goto out
known:
    if r8 == KVM_RUN goto run
    *(u64 *)(r0 + 0) = 1
    goto header
run:
    r1 = *(u64 *)(r0 + 8)
    *(u64 *)(r10 - 24) = r1
    r1 += 1
    *(u64 *)(r0 + 8) = r1
    r1 = *(u64 *)(r0 + 0)
    if r1 == 0 goto out
    *(u64 *)(r0 + 0) = 0
    *(u64 *)(r0 + 16) = 1
header:
{_HEADER}{_DATA}"""

# As above; its stack has also: -40 the task; -128 r9, -120 r8, -112 ax, -104 cx, -96 dx, -88 si,
# -80 di, -72 number of the system call.  r1 points to the registers and the result.
_EXIT = f"""
    r6 = r1
{_WHO}{_WATCHED.replace("if r0 == 0 goto out", "if r0 != 0 goto watched")}
    r1 = FOLLOW
    if r1 == 0 goto out
    r1 = *(u64 *)(r6 + 8)
    if r1 != 0 goto out
    call get_current_task
    *(u64 *)(r10 - 40) = r0
    r1 = map newborn
    r2 = r10
    r2 += -40
    call map_lookup_elem
    if r0 == 0 goto out
    goto born
watched:
    r1 = r10
    r1 += -128
    r2 = 64
    r3 = *(u64 *)(r6 + 0)
    r3 += PT_R9
    call probe_read_kernel
    if r0 != 0 goto out
    r1 = *(u64 *)(r6 + 8)
    *(u64 *)(r10 - 16) = r1
    *(u64 *)(r10 - 24) = -1     ; kvm_run is not known
    r1 = *(u64 *)(r10 - 96)
    *(u64 *)(r10 - 64) = r1
    r1 = *(u64 *)(r10 - 80)
    *(u64 *)(r10 - 48) = r1
    r9 = *(u64 *)(r10 - 72)
    if r9 == SYS_ioctl goto ioctl
    r1 = *(u64 *)(r10 - 16)
    if r1 s< 0 goto out
    if r9 == SYS_mmap goto mmap
    r2 = FOLLOW
    if r2 == 0 goto out
    if r1 != 0 goto out
    if r9 == SYS_clone goto thread
    if r9 == SYS_clone3 goto thread
    goto out
born:                           ; a new process that returns from its parent's call
    *(u32 *)(r10 - 4) = 1
    r1 = map watched
    r2 = r10
    r2 += -8
    r3 = r10
    r3 += -4
    r4 = 0
    call map_update_elem
    *(u64 *)(r10 - 16) = 0
    *(u64 *)(r10 - 24) = 0
    *(u64 *)(r10 - 48) = 0
    *(u64 *)(r10 - 64) = 0
    r8 = 0
{_HEADER.replace("= KIND", "= FORK")}
    r1 = map ring
    r2 = r9
    r3 = DATA
    r4 = 0
    call ringbuf_output
thread:                         ; a new thread: its process is watched
    call get_current_task
    *(u64 *)(r10 - 40) = r0
    r1 = map newborn
    r2 = r10
    r2 += -40
    call map_delete_elem
    goto out
mmap:                           ; the kvm_run of a vCPU, which KVM_CREATE_VCPU has entered
    r1 = *(u64 *)(r10 - 128)    ; offset in the file
    if r1 != 0 goto out
    r1 = *(u32 *)(r10 - 120)
{_DESCRIPTOR_KEY}
{_DESCRIPTOR}
    if r0 == 0 goto out
    r1 = *(u64 *)(r10 - 16)
    *(u64 *)(r0 + 24) = r1
    goto out
ioctl:
    r8 = *(u32 *)(r10 - 88)
    r1 = r8
    r1 >>= 8
    r1 &= 0xff
    if r1 != KVM_TYPE goto out
    r1 = COPIES
    if r1 <= 1 goto first
{_THREAD}
    r1 = *(u64 *)(r0 + 0)
    *(u64 *)(r0 + 0) = LEFT
    if r1 == ENTERED goto first
    r1 = COPY                   ; this one is the first: no copy has run at the entry
    if r1 != 0 goto out
first:
    if r8 == KVM_RUN goto run
    r1 = *(u64 *)(r10 - 16)
    if r1 s<= 0 goto header
    if r8 == KVM_CHECK_EXTENSION goto extension
    if r8 != KVM_CREATE_VCPU goto header
{_DESCRIPTOR_KEY}
    *(u64 *)(r10 - 128) = 1
    *(u64 *)(r10 - 120) = 0
    *(u64 *)(r10 - 112) = 0
    *(u64 *)(r10 - 104) = 0
    r1 = map descriptors
    r2 = r10
    r2 += -32
    r3 = r10
    r3 += -128
    r4 = 0
    call map_update_elem
    goto header
extension:
    r2 = *(u64 *)(r10 - 96)
    if r2 != KVM_CAP_XSAVE2 goto header
    *(u32 *)(r10 - 8) = 0
    *(u64 *)(r10 - 40) = r1
    r1 = map settings
    r2 = r10
    r2 += -8
    r3 = r10
    r3 += -40
    r4 = 0
    call map_update_elem
    goto header
run:
    r1 = *(u32 *)(r10 - 80)
{_DESCRIPTOR_KEY}
{_DESCRIPTOR}
    if r0 == 0 goto out
    r1 = *(u64 *)(r0 + 16)
    if r1 == 0 goto out
    *(u64 *)(r0 + 16) = 0
    r3 = *(u64 *)(r0 + 24)
    if r3 == 0 goto header
    r3 += EXIT_REASON
    r1 = r10
    r1 += -24
    r2 = 8
    call probe_read_user
    if r0 == 0 goto header
    *(u64 *)(r10 - 24) = -1
header:
{_HEADER}{_DATA}"""

# r1 points to the task that starts another one, and to that: before it runs for the first time.
_FORK = f"""
    r6 = r1
{_WHO}{_WATCHED}
    r1 = *(u64 *)(r6 + 8)
    *(u64 *)(r10 - 16) = r1
    *(u32 *)(r10 - 8) = 1
    r1 = map newborn
    r2 = r10
    r2 += -16
    r3 = r10
    r3 += -8
    r4 = 0
    call map_update_elem
out:
    r0 = 0
    exit
"""

TRACEPOINTS = {"sys_enter": _ENTER, "sys_exit": _EXIT, "sched_process_fork": _FORK}
_FIELDS = ("SIZE", "EACH", "POINTER", "DIRECTION", "KIND", "SLOT", "COPY")
_OF_ENTRY = (0, 8, 24, 30, ENTRY)
_OF_EXIT = (4, 12, 28, 31, EXIT)
"""What differs: offsets in struct Shape, the bit of the number, the kind of message."""


@dataclass(frozen=True)
class Variant:
    """Which programs are needed.

    :param namespace: device and inode of the PID namespace in which processes are numbered;
        None for the kernel's first one.
    :param follow: with what records the processes that are started by a recorded one.
    :param copies: of each program.
    """

    namespace: tuple[int, int] | None = None
    follow: bool = False
    copies: int = 1


def sources(variant: Variant) -> dict[str, str]:
    """Return the assembly of the programs by their raw tracepoint."""
    who = _WHO if variant.namespace is None else _WHO_IN_NAMESPACE
    return {
        name: text.replace(_WHO, who)
        for name, text in TRACEPOINTS.items()
        if variant.follow or name != "sched_process_fork"
    }


def programs(maps: Mapping[str, int], variant: Variant) -> list[tuple[str, Program]]:
    """Assemble the programs; return them with their raw tracepoint, in the order of attaching.

    :param maps: file descriptors of the maps, by name.
    """
    device, inode = variant.namespace or (0, 0)
    if inode >> 31:
        inode -= 1 << 32
    numbers = {
        **_NUMBERS,
        "NAMESPACE_DEVICE": device,
        "NAMESPACE_INODE": inode,
        "FOLLOW": int(variant.follow),
        "COPIES": variant.copies,
    }
    assembled = []
    for copy in range(variant.copies):
        for name, text in sources(variant).items():
            way = _OF_ENTRY if name == "sys_enter" else _OF_EXIT
            own = dict(zip(_FIELDS, (*way, 2 * copy + (name != "sys_enter"), copy)))
            assembled.append((name, assemble(text, {**numbers, **own}, maps)))
    return assembled
