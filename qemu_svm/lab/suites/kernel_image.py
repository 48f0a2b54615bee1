"""The kernel itself, unpacked, so that the emulator need not do it at every start.

A ``bzImage`` carries the kernel's ELF file compressed; its place stands in the setup
header (kernel: Documentation/arch/x86/boot.rst): ``setup_sects`` at 0x1f1, ``HdrS`` at
0x202, ``payload_offset`` and ``payload_length`` at 0x248, counted from the end of the
setup sectors.  QEMU starts the bare ELF file through its PVH entry.  Unpacking under
TCG costs seconds; here it is done once.
"""

from __future__ import annotations

import lzma
import struct

_XZ = b"\xfd7zXZ\0"
_ZSTD = b"\x28\xb5\x2f\xfd"
#: The kernel is 60 MB; something that unpacks to more than this is not one.
_LIMIT = 512 << 20


def unpacked(image: bytes) -> bytes | None:
    """Return the ELF file out of a bzImage, or None where it is packed in another way."""
    if image[0x202:0x206] != b"HdrS":
        return None
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    packed = image[start : start + length]
    if packed.startswith(_XZ):
        found = lzma.LZMADecompressor().decompress(packed, _LIMIT)
    elif packed.startswith(_ZSTD):
        import zstandard

        found = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    else:
        return None
    return found if found.startswith(b"\x7fELF") else None
