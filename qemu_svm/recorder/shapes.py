"""How much data each of KVM's ioctls has, and which way it goes.

The number of an ioctl encodes a size and a direction.  Both are wrong for some: lists are
longer than their header, and a few directions are encoded the wrong way round.

Source: Linux ``include/uapi/linux/kvm.h``, ``arch/x86/kvm/x86.c``, ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Optional

from qemu_svm.kvm.numbers import keyed_by_number

KVM_RUN = 0xAE80
CREATE_VM = 0xAE01
CREATE_VCPU = 0xAE41
CHECK_EXTENSION = 0xAE03
CAP_XSAVE2 = 208
XSAVE_SIZE = 4096
"""Bytes of struct kvm_xsave if KVM_CAP_XSAVE2 does not say more."""

MOST = 0x3FFF
"""Bytes of an argument that are recorded at most; what is behind a pointer comes on top."""

POINTED = 8
"""Bytes that are recorded of what a pointer in an argument points to."""

TOO_BIG = 7
"""E2BIG: how KVM reports the length that a list needs."""

SHAPE_SIZE = 32
"""Bytes of :meth:`Shape.packed`."""

COUNT_NONE = 0xFFFF
COUNT_XSAVE = 0xFFFE


@dataclass(frozen=True)
class Shape:
    """Data of an ioctl: ``max(size, base + each * count)`` bytes each way.

    :param size_in: bytes that the kernel reads at least.
    :param size_out: bytes that it writes at least.
    :param each_in: bytes for each counted entry that the kernel reads; 0 if it reads none.
    :param each_out: bytes for each entry that it writes.
    :param base: bytes before the first entry.
    :param count_at: offset of the count (32 bits) in the argument; :data:`COUNT_NONE`;
        :data:`COUNT_XSAVE` for the size of XSAVE's area in this VM.
    :param pointer_in: offset of a pointer to a value that the kernel reads; 0 for none.
    :param pointer_out: offset of a pointer to a value that it writes.
    """

    size_in: int = 0
    size_out: int = 0
    each_in: int = 0
    each_out: int = 0
    base: int = 0
    count_at: int = COUNT_NONE
    pointer_in: int = 0
    pointer_out: int = 0

    def packed(self) -> bytes:
        """The same for the BPF programs: eight u32."""
        return struct.pack(
            "<8I", self.size_in, self.size_out, self.each_in, self.each_out, self.base,
            self.count_at, self.pointer_in, self.pointer_out,
        )  # fmt: skip


_LIST = {"base": 8, "count_at": 0, "size_in": 8}
_TABLE: Mapping[str, Shape] = {
    "GET_NESTED_STATE": Shape(size_in=8, size_out=128, each_out=1, count_at=4),
    "SET_NESTED_STATE": Shape(size_in=128, each_in=1, count_at=4),
    "GET_MSRS": Shape(size_out=8, each_in=16, each_out=16, **_LIST),
    "SET_MSRS": Shape(each_in=16, **_LIST),
    "SET_CPUID": Shape(each_in=24, **_LIST),
    "SET_CPUID2": Shape(each_in=40, **_LIST),
    "GET_CPUID2": Shape(size_out=8, each_out=40, **_LIST),
    "GET_SUPPORTED_CPUID": Shape(size_out=8, each_out=40, **_LIST),
    "GET_EMULATED_CPUID": Shape(size_out=8, each_out=40, **_LIST),
    "GET_SUPPORTED_HV_CPUID": Shape(size_out=8, each_out=40, **_LIST),
    "GET_MSR_INDEX_LIST": Shape(size_in=4, size_out=4, each_out=4, base=4, count_at=0),
    "GET_MSR_FEATURE_INDEX_LIST": Shape(size_in=4, size_out=4, each_out=4, base=4, count_at=0),
    "GET_REG_LIST": Shape(size_out=8, each_out=8, **_LIST),
    "SET_GSI_ROUTING": Shape(each_in=48, **_LIST),
    "SET_SIGNAL_MASK": Shape(size_in=4, each_in=1, base=4, count_at=0),
    "SET_XSAVE": Shape(size_in=XSAVE_SIZE, each_in=1, count_at=COUNT_XSAVE),
    "GET_XSAVE2": Shape(size_out=XSAVE_SIZE, each_out=1, count_at=COUNT_XSAVE),
    "SET_ONE_REG": Shape(size_in=16, pointer_in=8),
    "GET_ONE_REG": Shape(size_in=16, size_out=16, pointer_out=8),
    "SET_DEVICE_ATTR": Shape(size_in=24, pointer_in=16),
    "GET_DEVICE_ATTR": Shape(size_in=24, size_out=24, pointer_out=16),
    "GET_IRQCHIP": Shape(size_in=8, size_out=520),
    "SET_IRQCHIP": Shape(size_in=520),  # encoded as if the kernel wrote it, as are the next
    "SET_PIT": Shape(size_in=72),
    "MEMORY_ENCRYPT_REG_REGION": Shape(size_in=16),
    "MEMORY_ENCRYPT_UNREG_REGION": Shape(size_in=16),
    "GET_DIRTY_LOG": Shape(size_in=16),
}


def shapes() -> dict[int, Shape]:
    """Return the ioctls whose number does not tell the whole, by number."""
    return keyed_by_number(_TABLE)


_SHAPES = shapes()


def shape_of(number: int) -> Shape:
    """Return the shape of an ioctl: of the table, or what its number encodes."""
    known = _SHAPES.get(number)
    if known is not None:
        return known
    size = number >> 16 & 0x3FFF
    return Shape(size if number >> 30 & 1 else 0, size if number >> 31 & 1 else 0)


Read = Callable[[int, int], Optional[bytes]]
"""Reads memory of the recorded process: address, length; None if it cannot be read."""


def data_in(number: int, argument: int, read: Read, xsave: int) -> bytes | None:
    """Read what the kernel is given; None if it cannot be read.

    :param xsave: bytes of XSAVE's area.
    """
    shape = shape_of(number)
    size = _size(shape, shape.size_in, shape.each_in, _count(shape, argument, read, xsave))
    return _data(size, shape.pointer_in, argument, read)


def data_out(number: int, argument: int, result: int, read: Read, xsave: int) -> bytes | None:
    """Read what the kernel has written; None if it cannot be read.

    :param result: what the ioctl returned; a negative errno.
    """
    shape = shape_of(number)
    if result == -TOO_BIG and shape.each_out:
        return read(argument, shape.size_out)
    if result < 0:
        return b""
    size = _size(shape, shape.size_out, shape.each_out, _count(shape, argument, read, xsave))
    return _data(size, shape.pointer_out, argument, read)


def _size(shape: Shape, size: int, each: int, count: bytes | None) -> int | None:
    if not each:
        return size
    if count is None:
        return None
    return max(size, shape.base + each * int.from_bytes(count, "little"))


def _count(shape: Shape, argument: int, read: Read, xsave: int) -> bytes | None:
    if shape.count_at == COUNT_XSAVE:
        return xsave.to_bytes(4, "little")
    return b"" if shape.count_at == COUNT_NONE else read(argument + shape.count_at, 4)


def _data(size: int | None, pointer: int, argument: int, read: Read) -> bytes | None:
    data = None if size is None else read(argument, min(size, MOST))
    if data is None or not pointer:
        return data
    address = int.from_bytes(data[pointer : pointer + 8], "little")
    return data + (read(address, POINTED) or b"")
