"""The state of QEMU inside a saved domain of Xen (``xl save``, ``xl migrate``).

A file begins with ``Xen saved domain``; the stream that xl sends with ``LibxlFmt``.  Between
them and the state of QEMU is the guest's memory, in a format of Xen's own.  The state is at
the end, in a record of type 3 (EMULATOR_CONTEXT): type and length (32 bits each), number and
index of the emulator, then the bytes of ``xen-save-devices-state``.  Older toolstacks wrote
``DeviceModelRecord0002`` and a length instead.

Source: Xen ``docs/specs/libxl-migration-stream.pandoc`` (version 2) and
``tools/libs/light/libxl_sr_stream_format.h``, ``libxl_internal.h`` (QEMU_SIGNATURE), 4.17.
"""

from __future__ import annotations

from qemu_svm.limits import MIB
from qemu_svm.source.base import Source
from qemu_svm.source.offset import SCANNED, STREAM_MAGIC

_SIGNATURES = (b"DeviceModelRecord0002", b"QemuDeviceModelRecord")
XEN = (b"Xen saved domain", b"LibxlFmt", *(name[:16] for name in _SIGNATURES))
"""First bytes of the file, of the stream in it, and of older states of QEMU alone."""

_EMULATOR_CONTEXT = 3
_RECORD = 16  # type, length, number and index of the emulator
_BEFORE = 32
_STEP = MIB


def find_emulator(source: Source) -> tuple[int, int] | None:
    """Return where QEMU's state starts and its length, sought from the end; None if nowhere.

    Up to 64 MiB are looked at: device state is smaller, and last.
    """
    size = source.size()
    end = size
    while end > max(0, size - SCANNED):
        start = max(0, end - _STEP)
        data = source.read_at(max(0, start - _BEFORE), end - start + 2 * _BEFORE)
        base = max(0, start - _BEFORE)
        hit = data.rfind(STREAM_MAGIC)
        while hit >= 0:
            length = _length(data[max(0, hit - _BEFORE) : hit], size - base - hit)
            if length is not None:
                return base + hit, length
            hit = data.rfind(STREAM_MAGIC, 0, hit)
        end = start
    return None


def _length(before: bytes, left: int) -> int | None:
    # The length of the state that follows ``before``; None if no record begins it.
    record, word = before[-_RECORD:], before[-4:]
    for order in ("little", "big"):
        kind = int.from_bytes(record[:4], order)
        length = int.from_bytes(record[4:8], order) - 8
        if kind == _EMULATOR_CONTEXT and 0 < length <= left:
            return length
        length = int.from_bytes(word, order)
        if before[:-4].endswith(_SIGNATURES) and 0 < length <= left:
            return length
    return left if before.endswith(_SIGNATURES) else None
