"""Reads a vCPU's own structures out of the memory of the kernel that runs here.

Root reads kernel memory through ``/proc/kcore``, an ELF file whose segments are ranges of
virtual addresses (Linux ``fs/proc/kcore.c``); it is opened for reading only.  A vCPU is found
by its file descriptor: ``init_task`` (``/proc/kallsyms``), the list of tasks, the task's table
of files, the private data of the file, which is the ``struct kvm_vcpu`` that ``struct
vcpu_svm`` begins with.

Where everything is, is said by a *map*, which comes from :mod:`qemu_svm.inside.layout`::

    {"task": {"tasks": 2192, "pid": 2416, "files": 3048}, "files": {"fdt": 32},
     "fdtable": {"max_fds": 0, "fd": 8}, "file": {"private_data": 200},
     "vm": 0, "id": [36, 4], "ranges": [[296, 300], …],
     "pages": {"vmcb01": 6488, "vmcb02": 6680}, "hidden": [[64, 16], …],
     "shadowed": [144, [[1360, 8]]],
     "pointers": {"vmcb": {"at": 6480, "pages": ["vmcb01", "vmcb02"]},
                  "mmu": {"at": 968, "members": {"root_mmu": 976, "guest_mmu": 1360}}}}

``ranges`` are parts of the structure; ``pages`` are offsets of pointers to pages of 4096 bytes,
of which the parts that are ``hidden`` (addresses of the host) are returned as zeros, those that
are ``shadowed`` if bit 0 of the byte before them (nested paging) is clear; of ``pointers`` only
the name of what they point to is returned.  No address of the host leaves this module, unless
the map has ``addresses``.

A look is read twice; what differs between the two is read again, and if it never
settles, the look says so.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

from qemu_svm.errors import EnvironmentFault

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

KCORE, KALLSYMS, BTF = "/proc/kcore", "/proc/kallsyms", "/sys/kernel/btf"
LOCKDOWN, KPTR_RESTRICT = "/sys/kernel/security/lockdown", "/proc/sys/kernel/kptr_restrict"
PAGE = 4096

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_LOAD = 1
_SEGMENTS = 4096  # more than any kcore has
_TASKS = 1 << 20  # steps through the list of tasks
_CHUNK = 1 << 18
_PIECE = 64  # bytes that are compared at once
_NEAR = 2048  # bytes between two parts that are read rather than left out
_TRIES = 3  # pairs of reads before a look counts as changing

Json = dict[str, Any]


class Gone(EnvironmentFault):
    """What was to be read is not there (any more)."""


class KernelMemory:
    """The memory of the running kernel, read-only.

    :param path: ``/proc/kcore``.
    :raises EnvironmentFault: it cannot be opened; the hint says why.
    """

    def __init__(self, path: str = KCORE) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise EnvironmentFault(
                f"kernel memory cannot be read: {path}: {error.strerror}", hint=_way_out(error)
            ) from None
        try:
            self._segments = self._load(path)
        except BaseException:
            self.close()
            raise

    def _load(self, path: str) -> list[tuple[int, int, int]]:
        head = os.pread(self._fd, _EHDR.size, 0)
        if len(head) < _EHDR.size or head[:5] != b"\x7fELF\x02":
            raise EnvironmentFault(f"{path} is not a 64-bit ELF file")
        fields = _EHDR.unpack(head)
        start, count = fields[5], fields[10]
        if not 0 < count < _SEGMENTS:
            raise EnvironmentFault(f"{path} has {count} segments")
        table = os.pread(self._fd, count * _PHDR.size, start)
        found = []
        for kind, _flags, offset, address, _physical, size, _memory, _align in _PHDR.iter_unpack(
            table[: len(table) // _PHDR.size * _PHDR.size]
        ):
            if kind == _LOAD:
                found.append((address, address + size, offset))
        return found

    def read(self, address: int, size: int) -> bytes:
        """Return bytes at a virtual address.

        :raises Gone: there is no such memory.
        """
        for start, end, offset in self._segments:
            if start <= address and address + size <= end:
                try:
                    data = os.pread(self._fd, size, offset + address - start)
                except OSError as error:
                    raise Gone(f"kernel memory cannot be read: {error.strerror}") from None
                if len(data) == size:
                    return data
                break
        raise Gone("kernel memory cannot be read: no such address")

    def number(self, address: int, size: int = 8) -> int:
        """Return a number.

        :raises Gone: there is no such memory.
        """
        return int.from_bytes(self.read(address, size), "little")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _way_out(error: OSError) -> str:
    if lockdown() == "confidentiality":
        return "kernel lockdown forbids it: boot without lockdown=confidentiality"
    if isinstance(error, FileNotFoundError):
        return "a kernel with CONFIG_PROC_KCORE, and /proc mounted, is needed"
    return "run it as root, on the host itself and not in a container"


def lockdown() -> str:
    """Return the state of kernel lockdown: ``none``, ``integrity``, ``confidentiality``."""
    words = _text(LOCKDOWN).split()
    return next((word.strip("[]") for word in words if word.startswith("[")), "none")


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(_CHUNK).strip()
    except OSError:
        return ""


def symbol(name: str, path: str = KALLSYMS) -> int:
    """Return the address of a symbol of the kernel.

    :raises EnvironmentFault: it is not listed, or addresses are hidden.
    """
    wanted = f" {name}\n".encode()
    rest = b""
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                text = rest + chunk
                place = text.find(wanted)
                if place >= 0:
                    line = text[text.rfind(b"\n", 0, place) + 1 : place]
                    return _address(int(line.split()[0], 16), path)
                rest = text[text.rfind(b"\n") + 1 :]
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror}") from None
    raise EnvironmentFault(f"{path} does not list {name}")


def _address(value: int, path: str) -> int:
    if value == 0:
        restrict = _text(KPTR_RESTRICT) or "unknown"
        raise EnvironmentFault(
            f"{path} hides addresses (kernel.kptr_restrict is {restrict})",
            hint="run it as root; if it is 2: sysctl kernel.kptr_restrict=1",
        )
    return value


def type_files(folder: str = BTF) -> dict[str, str]:
    """Return the paths of the kernel's types by name: ``vmlinux``, ``kvm_amd`` if there."""
    names = ("vmlinux", "kvm", "kvm_amd")
    return {name: f"{folder}/{name}" for name in names if os.path.exists(f"{folder}/{name}")}


def build_id(notes: str = "/sys/module/kvm_amd/notes/.note.gnu.build-id") -> str:
    """Return the build id of the module that is loaded (hexadecimal); empty if unknown."""
    try:
        with open(notes, "rb") as file:
            data = file.read(PAGE)
    except OSError:
        return ""
    if len(data) < 16:
        return ""
    names, size = struct.unpack_from("<II", data)
    start = 12 + (names + 3 & ~3)
    return data[start : start + size].hex()


class Tasks:
    """The tasks of this kernel.

    :param layout: the map.
    """

    def __init__(self, memory: KernelMemory, layout: Json) -> None:
        self._memory = memory
        self._layout = layout
        self._init = symbol("init_task")

    def task(self, pid: int) -> int:
        """Return the address of a process; the youngest are looked at first.

        :raises Gone: there is no such process.
        """
        places = self._layout["task"]
        read, offset = self._memory.number, places["tasks"]
        current: int = self._init
        for _ in range(_TASKS):
            current = read(current + offset + 8) - offset  # prev
            if current == self._init:
                break
            if read(current + places["pid"], 4) == pid:
                return current
        raise Gone(f"process {pid} is not in the kernel's list of tasks")

    def private(self, pid: int, fd: int) -> int:
        """Return the private data of a file that a process has open.

        :raises Gone: it is not open.
        """
        return self.private_of(self.task(pid), pid, fd)

    def private_of(self, task: int, pid: int, fd: int) -> int:
        """Return the private data of a file that a process has open.

        :param task: the address of the process.
        :raises Gone: it is not open, or the process is not there any more.
        """
        layout, read = self._layout, self._memory.number
        if read(task + layout["task"]["pid"], 4) != pid:
            raise Gone(f"process {pid} has ended")
        files = read(task + layout["task"]["files"])
        if not files:
            raise Gone(f"process {pid} has ended")
        table = read(files + layout["files"]["fdt"])
        if fd >= read(table + layout["fdtable"]["max_fds"], 4):
            raise Gone(f"process {pid} has no file {fd}")
        file = read(read(table + layout["fdtable"]["fd"]) + 8 * fd)
        if not file:
            raise Gone(f"process {pid} has closed file {fd}")
        return int(read(file + layout["file"]["private_data"]))


class Watcher:
    """Looks at one vCPU again and again; returns what has changed.

    :param address: of its ``struct vcpu_svm``.
    :param identity: its id, which must be in the structure.
    :raises Gone: something else is there.
    """

    def __init__(self, memory: KernelMemory, layout: Json, address: int, identity: int) -> None:
        self._memory = memory
        self._layout = layout
        self.address = address
        self._raw: dict[str, bytes | None] = {}
        self._seen: dict[str, bytes | None] = {}
        self._names: dict[str, str | None] = {}
        self._plan()
        offset, size = layout["id"]
        if memory.number(address + offset, size) != identity:
            raise Gone(
                f"no vCPU {identity} where the kernel's types say: the types are not this kernel's"
            )

    def _plan(self) -> None:
        # Spans to be read, and where in them each part is: a call costs more than its bytes.
        layout = self._layout
        points = {**layout["pages"], **{k: one["at"] for k, one in layout["pointers"].items()}}
        wanted = [*(tuple(one) for one in layout["ranges"]), *((at, 8) for at in points.values())]
        self._spans: list[tuple[int, int]] = []
        for offset, size in sorted(wanted):
            if self._spans and offset <= sum(self._spans[-1]) + _NEAR:
                start, before = self._spans[-1]
                self._spans[-1] = start, max(before, offset + size - start)
            else:
                self._spans.append((offset, size))
        self._parts = [self._place(*one) for one in layout["ranges"]]
        self._points = {name: self._place(at, 8) for name, at in points.items()}

    def _place(self, offset: int, size: int) -> tuple[int, int, int]:
        # Number of the span, first byte in it, end.
        for number, (start, whole) in enumerate(self._spans):
            if start <= offset < start + whole:
                return number, offset - start, offset - start + size
        raise AssertionError("every part is in a span")

    def look(self) -> Json:
        """Return what has changed since the last look.

        :returns: ``parts``: by part lists of offset and bytes (hexadecimal), or null if a page
            is not allocated; ``points``: names by pointer; ``changing`` if two reads differed
            each time.
        :raises Gone: the vCPU is not there any more.
        """
        parts, pointers = self._read()
        settled = False
        for _ in range(_TRIES):
            before = parts, pointers
            parts, pointers = self._read()
            settled = (parts, pointers) == before
            if settled:
                break
        names = {name: self._name(name, pointers) for name in self._layout["pointers"]}
        parts, raw = {name: self._shown(name, data) for name, data in parts.items()}, parts
        found: Json = {
            "parts": {
                name: None if data is None else _delta(self._seen.get(name), data)
                for name, data in parts.items()
                if name not in self._seen or self._seen[name] != data
            },
            "points": {
                name: value
                for name, value in names.items()
                if name not in self._names or self._names[name] != value
            },
        }
        if not settled:
            found["changing"] = True
        if self._layout.get("addresses"):
            pages = {name: pointers[name] for name in self._layout["pages"]}
            found["addresses"] = {"vcpu": self.address, **pages}
        self._raw, self._seen, self._names = raw, parts, names
        return found

    def _read(self) -> tuple[dict[str, bytes | None], dict[str, int]]:
        read, base = self._memory.read, self.address
        spans = [read(base + offset, size) for offset, size in self._spans]
        pointers = {
            name: int.from_bytes(spans[number][start:end], "little")
            for name, (number, start, end) in self._points.items()
        }
        svm = b"".join(spans[number][start:end] for number, start, end in self._parts)
        parts: dict[str, bytes | None] = {"svm": svm}
        for name in self._layout["pages"]:
            page = pointers[name]
            parts[name] = read(page, PAGE) if page else None
        return parts, pointers

    def _shown(self, name: str, data: bytes | None) -> bytes | None:
        # A part without the addresses of the host.
        if data is None or name == "svm" or self._layout.get("addresses"):
            return data
        if self._raw.get(name) == data:
            return self._seen[name]
        shown = bytearray(data)
        paging, shadowed = self._layout["shadowed"]
        hidden = self._layout["hidden"] + ([] if data[paging] & 1 else shadowed)
        for offset, size in hidden:
            shown[offset : offset + size] = bytes(size)
        return bytes(shown)

    def _name(self, name: str, pointers: dict[str, int]) -> str | None:
        # What a pointer points to, or None if that is unknown.
        wanted, one = pointers[name], self._layout["pointers"][name]
        for page in one.get("pages", ()):
            if wanted and pointers[page] == wanted:
                return str(page)
        for member, offset in one.get("members", {}).items():
            if self.address + offset == wanted:
                return str(member)
        return None


def _delta(before: bytes | None, after: bytes) -> list[list[Any]]:
    # Runs of bytes that changed, as [offset, hexadecimal]; at first compared with zeros.
    old = before if before is not None and len(before) == len(after) else bytes(len(after))
    runs: list[list[int]] = []
    for whole in range(0, len(after), _PIECE):
        if old[whole : whole + _PIECE] == after[whole : whole + _PIECE]:
            continue
        for start in range(whole, min(whole + _PIECE, len(after)), 8):
            if old[start : start + 8] == after[start : start + 8]:
                continue
            if runs and start <= runs[-1][1]:
                runs[-1][1] = start + 8
            else:
                runs.append([start, start + 8])
    return [[start, after[start:end].hex()] for start, end in runs]


class Inside:
    """What the agent needs to look at vCPUs of its own processes.

    :param layout: the map.
    :raises EnvironmentFault: kernel memory cannot be read.
    """

    def __init__(self, layout: Json) -> None:
        self._layout = layout
        self._memory = KernelMemory()
        try:
            self._tasks = Tasks(self._memory, layout)
        except BaseException:
            self._memory.close()
            raise

    def watch(self, pid: int, fd: int, identity: int) -> Watcher:
        """Find a vCPU by its file descriptor.

        :raises Gone: it is not there.
        """
        address = self._tasks.private(pid, fd)
        return Watcher(self._memory, self._layout, address, identity)

    def close(self) -> None:
        """Close kernel memory."""
        self._memory.close()
