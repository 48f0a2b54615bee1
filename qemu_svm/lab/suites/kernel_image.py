"""Unpacking of a kernel image, so that the emulator need not do it at every start.

A ``bzImage`` contains the kernel's ELF file compressed; the setup header says where
(kernel: Documentation/arch/x86/boot.rst): ``setup_sects`` at 0x1f1, ``HdrS`` at
0x202, ``payload_offset`` and ``payload_length`` at 0x248, counted from the end of the
setup sectors.  QEMU starts the bare ELF file through its PVH entry.  Unpacking under
TCG takes seconds; here it is done once.
"""

from __future__ import annotations

import lzma
import struct

from qemu_svm.errors import LabError

_XZ = b"\xfd7zXZ\0"
_ZSTD = b"\x28\xb5\x2f\xfd"
_LIMIT = 512 << 20  # bytes; a kernel has 60 MB
_HEADER = 0x250


def unpacked(image: bytes) -> bytes | None:
    """Return the ELF file in a bzImage; None if it is in another form.

    :raises LabError: it is damaged.
    """
    if image[0x202:0x206] != b"HdrS" or len(image) < _HEADER:
        return None
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    found = decompressed(image[start : start + length])
    return found if found is not None and found.startswith(b"\x7fELF") else None


def decompressed(data: bytes) -> bytes | None:
    """Decompress xz or zstd; return None if the data is neither.

    :raises LabError: it is damaged.
    """
    try:
        if data.startswith(_XZ):
            return lzma.LZMADecompressor().decompress(data, _LIMIT)
        if data.startswith(_ZSTD):
            import zstandard

            try:
                return zstandard.ZstdDecompressor().decompressobj().decompress(data)
            except zstandard.ZstdError as error:
                raise LabError(f"damaged zstd data in a suite: {error}") from error
    except lzma.LZMAError as error:
        raise LabError(f"damaged xz data in a suite: {error}") from error
    return None
