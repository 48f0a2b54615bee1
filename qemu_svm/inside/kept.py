"""A look that was kept in a file: the document that ``svmstream inside --json`` prints.

It may come from another host, so it is read as untrusted input.
"""

from __future__ import annotations

import json
from typing import Any

from qemu_svm.errors import SourceError
from qemu_svm.inside.looking import InsideLook, State, VcpuLook

_LIMIT = 64 << 20  # bytes; a vCPU has some 30 KB
_BITS = 256  # more than any member has
_WORDS = frozenset({"current", "mmu"})
_SEGMENT, _TABLE = ("selector", "base", "limit", "attrib"), ("base", "limit")
_PARTS = dict.fromkeys(
    ("es", "cs", "ss", "ds", "fs", "gs", "tr", "ldtr"), _SEGMENT
) | dict.fromkeys(("gdtr", "idtr"), _TABLE)
"""Members that are segments and tables, by the last part of their names."""


def read_kept(path: str) -> InsideLook:
    """Read a kept look.

    :raises SourceError: it cannot be read, or is not one.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None
    if len(data) > _LIMIT:
        raise SourceError(f"{path} has more than {_LIMIT >> 20} MiB")
    return parse_kept(data, path)


def parse_kept(data: bytes, path: str) -> InsideLook:
    """Read a kept look from the content of its file.

    :param path: of the file, for errors and reports.
    :raises SourceError: it is not one.
    """
    try:
        found = json.loads(data)
        process = found["process"]
        return InsideLook(
            _typed(found["kernel"], str), _typed(process["pid"], int), _typed(process["name"], str),
            _typed(found["look"], int), tuple(_vcpu(one) for one in _typed(found["vcpus"], list)),
            path=path,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SourceError(
            f"{path} is a JSON file, but not one of svmstream inside",
            hint="svmstream inside --pid PID -o FILE makes one",
        ) from None


def _vcpu(found: dict[str, Any]) -> VcpuLook:
    members = _typed(found["inside"], dict)
    gone = found["gone"]
    return VcpuLook(
        _typed(found["id"], int), _typed(found["vm"], int), State(found["state"]),
        {name: _value(name, value) for name, value in members.items()},
        gone=gone if gone is None else _typed(gone, str),
    )  # fmt: skip


def _value(name: str, found: Any) -> Any:
    # Each member has the kind that a look gives it.
    if name in _WORDS:
        return _typed(found, str)
    parts = _PARTS.get(name.rpartition(".")[2])
    if parts is not None:
        return [_number(found[part]) for part in parts]
    return found if type(found) is int else _number(found)


def _number(text: Any) -> int:
    number = int(_typed(text, str), 16)
    if not 0 <= number < 1 << _BITS:
        raise ValueError
    return number


def _typed(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value
