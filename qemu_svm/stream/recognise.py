"""Other inputs that are easily mistaken for a migration stream."""

from __future__ import annotations

from qemu_svm.stream.constants import Command, RamFlag, RecordType

_MAGICS = (
    (b"LibvirtQemud", "a libvirt save image"),
    (b"QFI\xfb", "a qcow2 image"),
    (b"\x7fELF", "an ELF file"),
    (b"MVEQ", "a stream with its bytes swapped"),
    (b"QCPR", "a CPR state file, not a migration stream"),
    (b"\x11\x22\x33\x44", "an extra multifd channel, not the main one"),
    (b"\x89LZO", "lzop-compressed data"),
)
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


def seen_elsewhere(head: bytes) -> str | None:
    """Return a name for input that starts with ``head``; None if it is unknown.

    :param head: the first 16 bytes or more.
    """
    for magic, what in _MAGICS:
        if head.startswith(magic):
            return what
    if len(head) < 4:
        return None
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
