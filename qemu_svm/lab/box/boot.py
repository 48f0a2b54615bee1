"""The kernel and the initrd that a box boots, made once per kernel.

The initrd has busybox, modules and the agent.

An initrd is a cpio archive in the "newc" format (kernel:
Documentation/driver-api/early-userspace/buffer-format.rst): per file 13 numbers
of 8 hexadecimal digits after the magic 070701, the name, the content, both
padded to 4 bytes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from qemu_svm.lab.host import host_faults
from qemu_svm.lab.suites import cache
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.suites.kernel_image import unpacked
from qemu_svm.lab.suites.modules import in_order

_AGENT = ("agent.py", "channels.py", "frames.py")
# The agent's files have the same place as in the package, without the rest of it.
_AGENT_PLACE = "agent/qemu_svm/lab/box/inside"

_DIRECTORY = 0o040755
_PROGRAM = 0o100755
_DATA = 0o100644
_CONSOLE = 0o020600
_CONSOLE_DEVICE = (5, 1)


def kernel(built: Built) -> Path:
    """Return the file of a kernel, unpacked if possible, which boots sooner.

    :raises LabError: the cache cannot be written.
    """
    name = f"{built.name}-{built.manifest.release}-{built.manifest.kernel}.elf"
    return _made(name, lambda: unpacked(built.vmlinuz.read_bytes()) or built.vmlinuz.read_bytes())


def initrd(built: Built, user: Built, replaced: Mapping[str, bytes] | None = None) -> Path:
    """Return the file of the initrd for a kernel.

    :param user: the suite that its busybox is from.
    :param replaced: modules in place of the kernel's, by file name.
    :raises LabError: the cache cannot be written, or the kernel lacks a module.
    """
    ours = {name: _ours(name) for name in ("init", *_AGENT)}
    busybox = user.manifest.packages["busybox-static"]
    digest = hashlib.sha256(f"{built.manifest.kernel} {busybox}".encode())
    replaced = replaced or {}
    digest.update(" ".join(replaced).encode())
    for content in (*ours.values(), *replaced.values()):
        digest.update(content)
    return _made(
        f"{built.name}-{digest.hexdigest()[:16]}.initrd",
        lambda: _archive(built, user, ours, replaced),
    )


def _made(name: str, make: Callable[[], bytes]) -> Path:
    # From the cache, or made now; two processes that make it at once make the same.
    path = cache.folder() / "boot" / name
    if path.exists():
        return path
    with host_faults(f"write {path}", hint=cache.HINT):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{name}.", delete=False) as file:
            try:
                file.write(make())
                file.flush()
                os.fsync(file.fileno())
                os.rename(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    return path


def _ours(name: str) -> bytes:
    return (files("qemu_svm.lab.box") / "inside" / name).read_bytes()


def _archive(
    built: Built, user: Built, ours: dict[str, bytes], replaced: Mapping[str, bytes]
) -> bytes:
    out = bytearray()
    for name in ("dev", "proc", "sys", "new", "bin", "modules", *_parents(_AGENT_PLACE)):
        out += _entry(name, _DIRECTORY)
    out += _entry("dev/console", _CONSOLE, device=_CONSOLE_DEVICE)
    out += _entry("bin/busybox", _PROGRAM, (user.root / "usr/bin/busybox").read_bytes())
    modules = in_order(built)
    for name, content in modules:
        out += _entry(f"modules/{name}", _DATA, replaced.get(name, content))
    order = "".join(f"{name}\n" for name, _content in modules)
    out += _entry("modules/order", _DATA, order.encode())
    out += _entry("init", _PROGRAM, ours["init"])
    for name in _AGENT:
        out += _entry(f"{_AGENT_PLACE}/{name}", _DATA, ours[name])
    out += _entry("TRAILER!!!", 0)
    return bytes(out)


def _parents(place: str) -> list[str]:
    parts = place.split("/")
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def _entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    encoded = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
