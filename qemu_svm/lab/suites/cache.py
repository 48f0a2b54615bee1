"""The cache: suites that were built once, and what was made of them.

::

    $XDG_CACHE_HOME/qemu-svm/
      bookworm/             one built suite; appears by one rename
        root/               its files, served read-only to boxes
        manifest.json       where from, when, exact version of every package
      .bookworm.XXXXXXXX/   being built (or left over by a build that was killed)
      boot/                 made of a suite's kernel: unpacked kernel, initrd
      lock/                 one file a suite: shared while used, exclusive while changed
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qemu_svm.errors import LabError
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites.catalogue import SUITES, Suite

#: Raised when the layout changes; a suite of another layout is built again.
LAYOUT = 1


def folder() -> Path:
    """The cache folder; not necessarily there yet."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # to be ignored, says the XDG specification
        base = Path("~/.cache").expanduser()
    return base / "qemu-svm"


@dataclass(frozen=True)
class Manifest:
    """What is known of a built suite; stands beside its files.

    :param built: when, in ISO 8601, UTC.
    :param release: the kernel's release, ``6.1.0-50-amd64``.
    :param packages: exact version of every package.
    :param remarks: what a reader should know, such as an expired Release file.
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
        """Version of QEMU's package."""
        return self.packages["qemu-system-x86"]

    def save(self, path: Path) -> None:
        """Write as JSON, and make sure that it is on disk."""
        with path.open("w") as file:
            json.dump(asdict(self), file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Built:
    """A suite in the cache."""

    suite: Suite
    path: Path
    manifest: Manifest

    @property
    def root(self) -> Path:
        """The suite's files, as the root of a file system."""
        return self.path / "root"

    @property
    def modules(self) -> Path:
        """The kernel's modules."""
        return self.root / "usr/lib/modules" / self.manifest.release

    @property
    def vmlinuz(self) -> Path:
        """The kernel; newer suites keep it among its modules."""
        boot = self.root / "boot" / f"vmlinuz-{self.manifest.release}"
        return boot if boot.exists() else self.modules / "vmlinuz"

    def size(self) -> int:
        """Bytes on disk."""
        total = 0
        for top, _folders, names in os.walk(self.path):
            for name in names:
                total += os.lstat(os.path.join(top, name)).st_blocks * 512
        return total


def find(suite: Suite) -> Built | None:
    """Return the suite if it is built, and by this layout."""
    path = folder() / suite.name
    try:
        raw: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        raw["remarks"] = tuple(raw["remarks"])
        manifest = Manifest(**raw)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Built(suite, path, manifest) if manifest.layout == LAYOUT else None


@contextlib.contextmanager
def lock(suite: Suite, *, shared: bool, progress: Progress = SILENT) -> Iterator[int]:
    """Hold the lock of one suite: shared to use it, exclusive to change it.

    :raises LabError: the cache folder cannot be made.
    """
    path = folder() / "lock" / suite.name
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unusable(error) from error
    try:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note(f"waiting for {suite.name}: another process builds, uses or removes it")
            fcntl.flock(handle, how)
        yield handle
    finally:
        os.close(handle)


def _unusable(error: OSError) -> LabError:
    return LabError(
        f"the cache folder {folder()} cannot be used: {error.strerror}",
        hint="set XDG_CACHE_HOME to a folder that can be written",
    )


def leftovers(suite: Suite) -> list[Path]:
    """Folders of builds that were killed; call with the exclusive lock held."""
    return sorted(folder().glob(f".{suite.name}.*"))


def remove(path: Path) -> None:
    """Remove a folder of the cache, also where the files in it are not writable."""

    def writable(function: Callable[..., Any], name: str, _info: object) -> None:
        os.chmod(os.path.dirname(name), 0o700)
        function(name)

    shutil.rmtree(path, onerror=writable)


def _remove_at_once(path: Path) -> None:
    # A suite that is half gone must not look built, should this be interrupted.
    if path.is_dir():
        hidden = path.with_name(f".{path.name.lstrip('.')}.gone")
        remove(path.rename(hidden))
    else:
        path.unlink()


def clean(suites: tuple[Suite, ...] = SUITES, progress: Progress = SILENT) -> list[Path]:
    """Remove built suites (waits for boxes that use them), leftovers and their initrds.

    :returns: what was removed.
    """
    gone: list[Path] = []
    for suite in suites:
        if not folder().exists():
            break
        with lock(suite, shared=False, progress=progress):
            found = leftovers(suite)
            found += [path for path in (folder() / suite.name,) if path.exists()]
            found += sorted((folder() / "boot").glob(f"*{suite.name}-*"))
            for path in found:
                _remove_at_once(path)
            gone += found
    return gone
