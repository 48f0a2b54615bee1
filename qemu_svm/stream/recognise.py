"""Other inputs that are easily mistaken for a migration stream."""

from __future__ import annotations

from typing import Literal

from qemu_svm.stream.constants import Command, RamFlag, RecordType

_MAGICS = (
    (b"LibvirtQemud", "a libvirt save image"),
    (b"QFI\xfb", "a qcow2 image"),
    (b"KDUMP   ", "a kdump file of makedumpfile or dump-guest-memory: open it with crash or drgn"),
    (b"DISKDUMP", "a diskdump file, made by makedumpfile: open it with crash"),
    (b"makedumpfile", "a flattened kdump file (dump-guest-memory makes such): open it with crash"),
    (b"\x04\x22\x4d\x18", "lz4-compressed data: decompress it with lz4 -d FILE"),
    (b"\x02\x21\x4c\x18", "lz4-compressed data: decompress it with lz4 -d FILE"),
    (b"SVMTRACE", "a log of svmtrace: svmstream vmruns FILE shows it"),
    (b"Xen saved domain", "a saved domain of Xen without the state of its QEMU"),
    (b"LibxlFmt", "a saved domain of Xen without the state of its QEMU"),
    (b"conectix", "a VHD image"),
    (b"KDMV", "a VMDK image"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"-----BEGIN", "a PEM file"),
    (b"MVEQ", "a stream with its bytes swapped"),
    (b"QCPR", "a CPR state file, not a migration stream"),
    (b"\x11\x22\x33\x44", "an extra multifd channel, not the main one"),
    (b"\x89LZO", "lzop-compressed data"),
)
HEAD = 512
"""Bytes from which every kind is recognised."""

_ELF_CORE = 4

RESUMED = bytes((RecordType.COMMAND, 0, Command.RECV_BITMAP))
"""First bytes of the second connection of a resumed postcopy migration."""

# The return path: 16-bit type and length; the types of fixed length.
_RETURN_PATH = {1: 4, 2: 4, 4: 12, 6: 4, 7: 0}
_NAMED = (3, 5)  # requested pages, and received bitmap: with the name of a block


LOG_HINT = "this is text: svmstream why FILE explains error messages and logs"
"""What to do with a log where a stream is expected."""

_CONTROL = frozenset(range(0x20)) - frozenset(b"\t\n\r\x1b")


def looks_like_text(head: bytes) -> bool:
    """Whether input that starts with ``head`` is text: no control characters, valid UTF-8."""
    if not head or not _CONTROL.isdisjoint(head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a character that the end of the head cuts
    return True


def _elf(head: bytes) -> str | None:
    if not head.startswith(b"\x7fELF") or len(head) < 18:
        return "an ELF file" if head.startswith(b"\x7fELF") else None
    order: Literal["little", "big"] = "big" if head[5] == 2 else "little"
    if int.from_bytes(head[16:18], order) == _ELF_CORE:
        return "an ELF core: open it with crash, drgn or gdb; 'svmstream mem core' makes such files"
    return "an ELF file"


def _skippable(head: bytes) -> str | None:
    # zstd begins so too, but was decompressed if it follows.
    if head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return (
            "a skippable frame of lz4 or zstd, without zstd behind it: if it is lz4, decompress it "
            "with lz4 -d FILE"
        )
    return None


def _tls(head: bytes) -> str | None:
    # A record: its type (handshake, or application data), version 3.x, length (RFC 8446, 5.1).
    if head[0] in (0x14, 0x15, 0x16, 0x17) and head[1] == 3 and head[2] <= 4:
        return (
            "one direction of a TLS connection: what is in it cannot be read; capture without "
            "tls-creds, or where the stream is not encrypted"
        )
    return None


def _tar(head: bytes) -> str | None:
    if head[257:262] == b"ustar":
        return "a tar archive: extract the stream first, with tar -xf FILE"
    return None


def _text(head: bytes) -> str | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<") and (b"<domain" in text or b"<?xml" in text):
        return "XML of libvirt, not a saved guest: 'virsh save' or 'svmstream capture' makes one"
    if text.startswith(b"{"):
        return "JSON: a description or a -dump-vmstate is given with --description or --qemu"
    if b"ioctl(" in head or b"kvm_vcpu_ioctl" in head or b"sys_enter_ioctl" in head:
        return "a log of ioctls: svmstream trace FILE shows it"
    return None


def seen_elsewhere(head: bytes) -> str | None:
    """Return a name for input that starts with ``head``; None if it is unknown.

    :param head: the first 16 bytes or more; 512 to recognise everything.
    """
    for magic, what in _MAGICS:
        if head.startswith(magic):
            return what
    if len(head) < 4:
        return None
    return (
        _skippable(head)
        or _elf(head)
        or _tls(head)
        or _tar(head)
        or _text(head)
        or _connection(head)
    )


def _connection(head: bytes) -> str | None:
    kind, length = int.from_bytes(head[:2], "big"), int.from_bytes(head[2:4], "big")
    if _RETURN_PATH.get(kind) == length or (kind in _NAMED and 0 < length < 300):
        return "the return path of a migration (the destination's replies)"
    if head.startswith(RESUMED):
        return (
            "the second connection of a resumed postcopy migration, which continues where the "
            "first one broke: read both with 'ram FIRST --channel SECOND'"
        )
    word, name = int.from_bytes(head[:8], "big"), head[9 : 9 + head[8]] if len(head) > 8 else b""
    named = word & 0xFFF in (RamFlag.PAGE, RamFlag.ZERO) and name.isascii() and name[:1].isalnum()
    if word == RamFlag.EOS or (word < 1 << 48 and named):
        return (
            "RAM records without a stream, such as the second connection of "
            "postcopy-preempt: read both with 'ram MAIN --channel THIS'"
        )
    return None
