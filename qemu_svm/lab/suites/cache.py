"""The cache of built suites and kernels, and of files made from them.

::

    $XDG_CACHE_HOME/qemu-svm/
      bookworm/             a built suite; appears by one rename
        root/               its files, mounted read-only in boxes
        manifest.json       mirror, date, exact version of every package
      linux-6.12.105-1/     a kernel by its exact version, in the same form
      .bookworm.XXXXXXXX/   being built, or left by a build that was killed
      workshop-6.1.176-1/   headers, source and compiler, to build kvm-amd
      modules/              what was built there
      boot/                 made from a suite's kernel: unpacked kernel, initrd
      lock/                 one file each: shared while used, exclusive while changed
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qemu_svm.errors import LabError
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.progress import SILENT, Progress

LAYOUT = 1
"""Version of the layout of what is built; what has another layout is built again."""

KERNEL = "linux-"
"""How the names of kernels begin; suites have other names."""

WORKSHOP = "workshop-"
"""Start of the names of roots in which modules are built."""

MODULES = "modules"
"""Directory of modules that were built, beside :data:`WORKSHOP`."""

HINT = "set XDG_CACHE_HOME to a directory that can be written and has space"
"""What helps if the cache cannot be used."""


class Item(Protocol):
    """Something that the cache holds: a suite, or a kernel."""

    @property
    def name(self) -> str:
        """Its name in the cache."""


@dataclass(frozen=True, slots=True)
class Named:
    """Something of which only the name is known."""

    name: str


def folder() -> Path:
    """Return the cache directory, which may not exist yet.

    :raises LabError: neither XDG_CACHE_HOME nor a home directory is known.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification says to ignore it then
        try:
            base = Path("~/.cache").expanduser()
        except RuntimeError as error:
            raise LabError("there is no home directory for the cache", hint=HINT) from error
    return base / "qemu-svm"


@dataclass(frozen=True)
class Manifest:
    """The record of a built suite or kernel, kept beside its files.

    :param suite: Debian's name of the suite that the packages are from.
    :param built: date and time in ISO 8601, UTC.
    :param release: the kernel's release, such as ``6.1.0-50-amd64``.
    :param packages: exact versions by package.
    :param remarks: notable events of the build, such as an expired Release file.
    """

    suite: str
    mirror: str
    built: str
    release: str
    packages: dict[str, str]
    remarks: tuple[str, ...] = ()
    layout: int = field(default=LAYOUT)

    @property
    def kernel(self) -> str:
        """Version of the kernel's package."""
        return self.packages[f"linux-image-{self.release}"]

    @property
    def qemu(self) -> str:
        """Version of QEMU's package; a kernel alone has none."""
        return self.packages["qemu-system-x86"]

    def save(self, path: Path) -> None:
        """Write it as JSON and sync it to the disk."""
        with path.open("w") as file:
            json.dump(asdict(self), file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Built:
    """A suite or a kernel in the cache.

    :param name: its name there.
    """

    name: str
    path: Path
    manifest: Manifest

    @property
    def is_suite(self) -> bool:
        """Whether it has a QEMU and a user land, not only a kernel."""
        return not self.name.startswith(KERNEL)

    @property
    def root(self) -> Path:
        """Its files; those of a suite are the root of a file system."""
        return self.path / "root"

    @property
    def modules(self) -> Path:
        """The directory of the kernel's modules."""
        return self.root / "usr/lib/modules" / self.manifest.release

    @property
    def vmlinuz(self) -> Path:
        """The kernel image; newer suites have it in the directory of the modules."""
        boot = self.root / "boot" / f"vmlinuz-{self.manifest.release}"
        return boot if boot.exists() else self.modules / "vmlinuz"

    def size(self) -> int:
        """Return the bytes on disk."""
        total = 0
        for top, _folders, names in os.walk(self.path):
            for name in names:
                total += os.lstat(os.path.join(top, name)).st_blocks * 512
        return total


def find(item: Item) -> Built | None:
    """Return a suite or a kernel if it is built and has this layout; else None."""
    path = folder() / item.name
    try:
        raw: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        raw["remarks"] = tuple(raw["remarks"])
        manifest = Manifest(**raw)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Built(item.name, path, manifest) if manifest.layout == LAYOUT else None


def kernels() -> list[Built]:
    """Return the kernels that were built by their exact version, by name."""
    names = sorted(path.name for path in folder().glob(f"{KERNEL}*"))
    return [found for name in names if (found := find(Named(name)))]


def workshops() -> list[Named]:
    """Return the roots in which modules are built, by name."""
    return [Named(path.name) for path in sorted(folder().glob(f"{WORKSHOP}*"))]


@contextlib.contextmanager
def lock(item: Item, *, shared: bool, progress: Progress = SILENT) -> Iterator[int]:
    """Hold the lock of a suite or a kernel: shared to use it, exclusive to change it.

    :raises LabError: the cache directory cannot be made.
    """
    path = folder() / "lock" / item.name
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with host_faults(f"use the cache directory {folder()}", hint=HINT):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note(f"waiting for {item.name}: another process builds, uses or removes it")
            fcntl.flock(handle, how)
        yield handle
    finally:
        os.close(handle)


def leftovers(item: Item) -> list[Path]:
    """Return the directories of builds that were killed; call it with the exclusive lock held."""
    return sorted(folder().glob(f".{item.name}.*"))


def remove(path: Path) -> None:
    """Remove a directory of the cache, even if files in it are not writable.

    :raises LabError: it cannot be removed.
    """

    def writable(function: Callable[..., Any], name: str, _info: object) -> None:
        os.chmod(os.path.dirname(name), 0o700)
        function(name)

    with host_faults(f"remove {path}"):
        shutil.rmtree(path, onerror=writable)


def _remove_at_once(path: Path) -> None:
    # If this is interrupted, something of which a part is removed must not look built.
    with host_faults(f"remove {path}"):
        if path.is_dir():
            hidden = path.with_name(f".{path.name.lstrip('.')}.gone")
            remove(path.rename(hidden))
        else:
            path.unlink()


def clean(items: Iterable[Item], progress: Progress = SILENT) -> list[Path]:
    """Remove suites and kernels, what killed builds left, and the files made from them.

    Waits for boxes that use them.

    :returns: the paths that were removed.
    :raises LabError: something cannot be removed.
    """
    gone: list[Path] = []
    for item in items:
        if not folder().exists():
            break
        with lock(item, shared=False, progress=progress):
            found = leftovers(item)
            found += [path for path in (folder() / item.name,) if path.exists()]
            for made, pattern in (("boot", f"*{item.name}-*"), (MODULES, f"{item.name}-*")):
                found += sorted((folder() / made).glob(pattern))
            for path in found:
                _remove_at_once(path)
            gone += found
    return gone
