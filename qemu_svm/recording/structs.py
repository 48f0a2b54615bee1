"""Layout of a recording, version 1: what a recorder writes.

A header of 168 bytes, then records.  All integers are little-endian, every record is a
multiple of 8 bytes, and begins with its size, so a recording that was cut is readable up to
its last complete record.  A recorder without construct writes it with :mod:`struct`::

    HEADER = struct.Struct("<8sHHIQQI64s64sI")
    RECORD = struct.Struct("<IBBHQIIiIQqII")

    file.write(HEADER.pack(b"SVMIOCTL", 1, 0, pid, realtime, monotonic, vendor, release, exe, by))
    size = 56 + len(data_in) + len(data_out) + 7 & ~7
    file.write(RECORD.pack(size, kind, level, index, time, duration, tid, fd, nr, arg, ret,
                           len(data_in), len(data_out)) + data_in + data_out)
    file.write(bytes(-(len(data_in) + len(data_out)) % 8))

======  ====  =========  =========================================================
offset  size  header
======  ====  =========  =========================================================
0       8     magic      ``SVMIOCTL``
8       2     version    1
10      2     flags      :class:`HeaderFlag`
12      4     pid        of the process that was recorded
16      8     realtime   nanoseconds since 1970 when recording began
24      8     monotonic  the same moment on the clock of the records
32      4     vendor     0 AMD, 1 Intel, 2 another
36      64    release    of the kernel (``uname -r``), zero-padded
100     64    exe        name of the program, zero-padded
164     4     recorder   :class:`Recorder`
======  ====  =========  =========================================================

======  ====  =========  =========================================================
offset  size  record
======  ====  =========  =========================================================
0       4     size       of the whole record with its padding: 56 or more
4       1     kind       :class:`Kind`
5       1     level      0 unknown, 1 system, 2 VM, 3 vCPU, 4 device
6       2     index      of the vCPU, or number of the VM; 0xffff if it is not known
8       8     time       nanoseconds (CLOCK_MONOTONIC) when the call was entered
16      4     duration   nanoseconds until it returned; 0xffffffff for longer
20      4     tid        thread
24      4     fd         signed
28      4     nr         the ioctl's number: 32 bits, whatever libc sign-extended
32      8     arg        the third argument: an address, or a number
40      8     ret        signed; an errno is negative
48      4     in_len     bytes that the kernel was given, at most 65536
52      4     out_len    bytes that it returned, at most 65536
56            in, out, then zeros up to a multiple of 8
======  ====  =========  =========================================================

Which bytes are an ioctl's payload is the table of :mod:`qemu_svm.recording.payload`.
The meaning of ``arg`` and of the payload in the kinds that are no calls: :class:`Kind`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from construct import (
    Bytes,
    Const,
    Int8ul,
    Int16ul,
    Int32sl,
    Int32ul,
    Int64sl,
    Int64ul,
    Struct,
)

MAGIC = b"SVMIOCTL"
VERSION = 1
PAYLOAD = 1 << 16
"""Most bytes of ``in`` and of ``out``."""
NO_INDEX = 0xFFFF
LONGEST = (1 << 32) - 1
"""Duration of a call that took longer than 32 bits of nanoseconds."""

HEADER = Struct(
    "magic" / Const(MAGIC),
    "version" / Int16ul,
    "flags" / Int16ul,
    "pid" / Int32ul,
    "realtime" / Int64ul,
    "monotonic" / Int64ul,
    "vendor" / Int32ul,
    "release" / Bytes(64),
    "exe" / Bytes(64),
    "recorder" / Int32ul,
)
RECORD = Struct(
    "size" / Int32ul,
    "kind" / Int8ul,
    "level" / Int8ul,
    "index" / Int16ul,
    "time" / Int64ul,
    "duration" / Int32ul,
    "tid" / Int32ul,
    "fd" / Int32sl,
    "nr" / Int32ul,
    "arg" / Int64ul,
    "ret" / Int64sl,
    "in_len" / Int32ul,
    "out_len" / Int32ul,
)


RUNS = Struct("fd" / Int32sl, "index" / Int32ul, "runs" / Int64ul)
"""How often a vCPU ran; the end record has one for each."""


class HeaderFlag(IntFlag):
    """Flags of the header."""

    REDACTED = 1
    """What is a host's was masked (``--redact``)."""
    ATTACHED = 2
    """The process ran when recording began."""


class Recorder(IntEnum):
    """What recorded it."""

    UNKNOWN = 0
    BPF = 1
    PTRACE = 2
    PRELOAD = 3


class Kind(IntEnum):
    """Kinds of records."""

    CALL = 1
    """An ioctl."""
    RUN = 2
    """The first KVM_RUN of a vCPU after another ioctl: ``arg`` is how often it ran before
    that, ``out`` the exit reason (4 bytes), or empty if that is not known."""
    LOST = 3
    """``arg`` calls are missing here."""
    MISSING = 4
    """An ioctl with an argument that could not be read, as a whole or in part."""
    FD = 5
    """``fd`` is what ``out`` says, the text of the link in /proc/PID/fd."""
    ATTACHED = 6
    """Recording began in a running process; ``arg`` descriptors of KVM were open."""
    END = 7
    """The last record: ``arg`` is the reason (:class:`End`), ``out`` has a :data:`RUNS` for
    each vCPU."""
    MEMORY = 8
    """Guest memory (``--ram``): ``arg`` is the guest-physical address, ``in`` the bytes, ``fd``
    the VM's descriptor or -1."""


class End(IntEnum):
    """Why a recording ended."""

    UNKNOWN = 0
    EXITED = 1
    """The process ended."""
    STOPPED = 2
    """The recorder was told to stop."""
    LIMIT = 3
    """A limit of the recorder was reached."""


VENDORS = ("amd", "intel", "other")
LEVELS = (None, "system", "vm", "vcpu", "device")
