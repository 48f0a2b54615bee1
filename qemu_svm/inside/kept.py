"""A look that was kept in a file: the document that ``svmstream inside --json`` prints.

It may come from another host, so it is read as untrusted input.
"""

from __future__ import annotations

import json
from typing import Any

from qemu_svm.errors import SourceError
from qemu_svm.inside.looking import InsideLook, State, VcpuLook
from qemu_svm.inside.view import Inside

_LIMIT = 64 << 20  # bytes; a vCPU has some 30 KB
_PARTS = (("selector", "base", "limit", "attrib"), ("base", "limit"))


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
    values = {_typed(name, str): _value(value) for name, value in found["inside"].items()}
    for name, kind in (("guest_mode", int), ("arch.regs_avail", int)):
        _typed(values.get(name, 0), kind)
    gone = found["gone"]
    return VcpuLook(
        _typed(found["id"], int), _typed(found["vm"], int), State(found["state"]), _checked(values),
        gone=gone if gone is None else _typed(gone, str),
    )  # fmt: skip


def _checked(values: Inside) -> Inside:
    # What is computed with has the kind that a look has.
    for name, value in values.items():
        if name in ("current", "mmu") or isinstance(value, list):
            continue
        _typed(value, int)
    return values


def _value(found: Any) -> Any:
    if isinstance(found, dict):
        for parts in _PARTS:
            if found.keys() == set(parts):
                return [_number(found[name]) for name in parts]
        raise TypeError
    if isinstance(found, str) and found[:2] in ("0x", "-0"):
        return _number(found)
    return found


def _number(text: Any) -> int:
    return int(_typed(text, str), 16)


def _typed(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value
