"""COMMAND records: names, and payloads as values.

Commands travel between sections.  Their payloads have a fixed length, except those
that name a RAM block.  PACKAGED announces how many bytes of records follow it.

Source: QEMU ``migration/savevm.c`` (``loadvm_process_command`` and
neighbours), 5.2 to 10.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qemu_svm.stream.constants import Command
from qemu_svm.stream.reader import name_text
from qemu_svm.stream.vmstate.values import Value

_NUMBERS: Mapping[str, tuple[tuple[str, int], ...]] = {
    Command.PING.name: (("value", 4),),
    Command.POSTCOPY_ADVISE.name: (("page_sizes", 8), ("target_page_size", 8)),
    Command.PACKAGED.name: (("bytes", 4),),
}


_NAMES: Mapping[int, str] = {command.value: command.name for command in Command}


def command_name(number: int) -> str:
    """Return the name of a command, or ``command NUMBER`` if it is unknown."""
    return _NAMES.get(number) or f"command {number}"


def is_known(name: str) -> bool:
    """Whether :func:`command_name` knows the command by this name."""
    return name in Command.__members__


def command_values(name: str, payload: bytes, offset: int) -> Value:
    """Return the payload of a command as a tree; of unknown commands, as bytes.

    :param name: the command's name, as :func:`command_name` returns it.
    :param offset: of the payload in the stream.
    """
    children = tuple(_fields(name, payload, offset))
    value = None if children or not payload else payload
    return Value(name, "command", offset, len(payload), value, children)


def discarded(payload: bytes) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return block and ranges ``(start, length)`` (bytes) of a POSTCOPY_RAM_DISCARD."""
    tree = command_values(Command.POSTCOPY_RAM_DISCARD.name, payload, 0)
    name = tree.child("block")
    ranges = (child for child in tree.children if child.name.startswith("["))
    return (
        name.value if name is not None and isinstance(name.value, str) else "",
        tuple((one.number("start"), one.number("length")) for one in ranges),
    )


def _fields(name: str, payload: bytes, offset: int) -> Iterator[Value]:
    layout = _NUMBERS.get(name, ())
    if layout and len(payload) == sum(size for _, size in layout):
        at = 0
        for field, size in layout:
            yield _number(field, payload, offset, at, size)
            at += size
    elif name == Command.RECV_BITMAP.name and payload:
        yield from _block(payload, offset, 0)
    elif name == Command.POSTCOPY_RAM_DISCARD.name and len(payload) > 2:
        yield _number("version", payload, offset, 0, 1)
        yield from _block(payload, offset, 1)
        start = 3 + payload[1]  # a zero byte ends the name
        for index, at in enumerate(range(start, len(payload) - 15, 16)):
            members = (
                _number("start", payload, offset, at, 8),
                _number("length", payload, offset, at + 8, 8),
            )
            yield Value(f"[{index}]", "range", offset + at, 16, None, members)


def _number(name: str, payload: bytes, offset: int, at: int, size: int) -> Value:
    value = int.from_bytes(payload[at : at + size], "big")
    return Value(name, f"uint{8 * size}", offset + at, size, value)


def _block(payload: bytes, offset: int, at: int) -> Iterator[Value]:
    text = payload[at + 1 : at + 1 + payload[at]]
    yield Value("block", "counted string", offset + at, 1 + len(text), name_text(text))
