"""Kernel memory and types, made up: small enough to be damaged in every way."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

BASE = 0xFFFF_8880_0000_0000
TASKS, PID, FILES, FDT, MAX_FDS, FD, PRIVATE = 0x10, 0x20, 0x28, 0x08, 0x00, 0x08, 0x18


class Memory:
    """Kernel memory in a file of the form of ``/proc/kcore``."""

    def __init__(self, path: Path, size: int = 0x10000) -> None:
        self.path = path
        self.data = bytearray(size)
        self.end = 0x1000
        self.files = 0

    def take(self, size: int) -> int:
        """Room for a structure."""
        place, self.end = self.end, self.end + size
        return BASE + place

    def put(self, address: int, value: int, size: int = 8) -> None:
        start = address - BASE
        self.data[start : start + size] = value.to_bytes(size, "little")

    def save(self) -> Path:
        offset = 64 + 56
        head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), 4, 62, 1, 0, 64,
                           0, 0, 64, 56, 1, 0, 0, 0)  # fmt: skip
        load = struct.pack("<IIQQQQQQ", 1, 4, offset, BASE, 0, len(self.data), len(self.data), 1)
        self.path.write_bytes(head + load + bytes(self.data))
        return self.path


def process(memory: Memory, pid: int, files: Mapping[int, int]) -> int:
    """A list of tasks with one process besides init; return the address of init_task."""
    init, task = memory.take(0x100), memory.take(0x100)
    for one, other in ((init, task), (task, init)):
        memory.put(one + TASKS, other + TASKS)
        memory.put(one + TASKS + 8, other + TASKS)
    memory.put(task + PID, pid, 4)
    table, fdt, array = memory.take(0x40), memory.take(0x40), memory.take(0x80)
    memory.put(task + FILES, table)
    memory.put(table + FDT, fdt)
    memory.put(fdt + MAX_FDS, 16, 4)
    memory.put(fdt + FD, array)
    memory.files = array
    for fd, private in files.items():
        file = memory.take(0x40)
        memory.put(array + 8 * fd, file)
        memory.put(file + PRIVATE, private)
    return init


def close(memory: Memory, fd: int) -> None:
    """Close a file of the process."""
    memory.put(memory.files + 8 * fd, 0)


MAP = {
    "vm": 0x60,
    "task": {"tasks": TASKS, "pid": PID, "files": FILES},
    "files": {"fdt": FDT},
    "fdtable": {"max_fds": MAX_FDS, "fd": FD},
    "file": {"private_data": PRIVATE},
    "id": [0x04, 4],
    "ranges": [[0x08, 0x10], [0x40, 8]],
    "pages": {"vmcb01": 0x20, "vmcb02": 0x28},
    "hidden": [[0x40, 16]],
    "shadowed": [0x90, [[0x558, 8]]],
    "pointers": {
        "current": {"at": 0x30, "pages": ["vmcb01", "vmcb02"]},
        "mmu": {"at": 0x38, "members": {"root_mmu": 0x48, "guest_mmu": 0x50}},
    },
}


def kallsyms(path: Path, init: int) -> Path:
    path.write_text(f"ffffffff81000000 T _text\n{init:016x} D init_task\nffffffff82000000 b end\n")
    return path


class TypesFile:
    """BTF, written type by type; returns the number of each."""

    def __init__(self, first: int = 1, strings: int = 0) -> None:
        self._first, self._string_base = first, strings
        self._types: list[bytes] = []
        self._strings = bytearray(b"\0" if not strings else b"")

    def name(self, text: str) -> int:
        if not text:
            return 0
        place = self._string_base + len(self._strings)
        self._strings += text.encode() + b"\0"
        return place

    def _add(self, name: str, kind: int, size: int, *, count: int = 0, flag: int = 0,
             rest: bytes = b"") -> int:  # fmt: skip
        info = flag << 31 | kind << 24 | count
        self._types.append(struct.pack("<III", self.name(name), info, size) + rest)
        return self._first + len(self._types) - 1

    def integer(self, name: str, size: int) -> int:
        return self._add(name, 1, size, rest=struct.pack("<I", size * 8))

    def pointer(self, target: int) -> int:
        return self._add("", 2, target)

    def array(self, element: int, count: int) -> int:
        return self._add("", 3, 0, rest=struct.pack("<III", element, element, count))

    def named(self, name: str, target: int) -> int:
        return self._add(name, 8, target)

    def struct(self, name: str, size: int, *members: tuple[str, int, int], kind: int = 4) -> int:
        """Members are name, type, offset in bytes."""
        rest = b"".join(
            struct.pack("<III", self.name(one), inner, 8 * at) for one, inner, at in members
        )
        return self._add(name, kind, size, count=len(members), rest=rest)

    def bits(self, name: str, size: int, *members: tuple[str, int, int, int]) -> int:
        """Members are name, type, first bit, number of bits."""
        rest = b"".join(
            struct.pack("<III", self.name(one), inner, width << 24 | first)
            for one, inner, first, width in members
        )
        return self._add(name, 4, size, count=len(members), flag=1, rest=rest)

    def enumeration(self, name: str, **values: int) -> int:
        rest = b"".join(struct.pack("<II", self.name(one), value) for one, value in values.items())
        return self._add(name, 6, 4, count=len(values), rest=rest)

    @property
    def ends(self) -> tuple[int, int]:
        """Number after the last type, offset after the last string: where a module begins."""
        return self._first + len(self._types), self._string_base + len(self._strings)

    def data(self) -> bytes:
        types = b"".join(self._types)
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types),
                           len(self._strings))  # fmt: skip
        return head + types + bytes(self._strings)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
