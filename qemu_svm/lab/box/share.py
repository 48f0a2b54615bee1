"""The directory that a box shares with the host: /share inside.

That of a box with a foreign kernel or module has a limit that the host's kernel keeps: it is
a tmpfs, reached through a descriptor alone.  It is mounted in a mount namespace that ends at
once, so no mount is ever seen by others, and it is gone with the last process that has it.
What the box makes in it are plain files and directories, whatever it asks for: QEMU keeps
owners, modes, links and devices beside them (``security_model=mapped-file``; QEMU,
docs "9psetup"), so the host can open what it finds there without being led elsewhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.host import host_faults, mortal

LIMIT = 2 << 30
"""Bytes in the share of a box with a foreign kernel or module."""
FILES = 20_000
"""Files and directories in it."""

_MAKE = """\
mount -t tmpfs -o "size=$1,nr_inodes=$2,mode=0700,nosuid,nodev,noexec" share "$3" && cd "$3" \
    && echo made && read -r _
"""


@dataclass(frozen=True, slots=True)
class Share:
    """A directory for a box.

    :param limited: it has a limit, and nothing else of the host can be reached from it.
    """

    path: Path
    limited: bool = False

    @property
    def full(self) -> str | None:
        """What it has no more room for, as words; None if it has room, or no limit."""
        if not self.limited:
            return None
        try:
            found = os.statvfs(self.path)
        except OSError:
            return None
        if found.f_bavail and found.f_favail:
            return None
        size = found.f_blocks * found.f_frsize
        return f"the box has filled its share: {size >> 20} MiB, {found.f_files} files"


@contextmanager
def limited_share(size: int = LIMIT) -> Iterator[Share]:
    """Make a share with a limit, for the time of the context.

    :param size: bytes.
    :raises LabError: it cannot be made: it needs root, or user namespaces.
    """
    handle = _made(size)
    try:
        # A path that the emulator and other processes of this user can use too.
        yield Share(Path(f"/proc/{os.getpid()}/fd/{handle}"), limited=True)
    finally:
        os.close(handle)


def forget(path: Path) -> None:
    """Remove a file in a share, if it is there; a box may have made something else of it."""
    with suppress(OSError):
        path.unlink()


def discard(path: Path) -> None:
    """Remove a directory in a share, as far as what a box made there lets that be done."""
    with suppress(OSError, RecursionError):
        shutil.rmtree(path)


def _made(size: int) -> int:
    command = ["unshare", "--mount", "--propagation", "private"]
    command += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command += ["--", "sh", "-c", _MAKE, "share", str(size), str(FILES), "/mnt"]
    with host_faults("make a share with a limit"), subprocess.Popen(
        mortal(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() == b"made\n":
            handle = os.open(f"/proc/{process.pid}/cwd", os.O_RDONLY | os.O_DIRECTORY)
            process.stdin.close()
            return handle
        words = process.stderr.read(4096).decode(errors="replace").strip().splitlines()
    raise LabError(
        "the share of a box with a foreign kernel or module needs a limit, which cannot be set: "
        + (words[-1] if words else "unshare failed"),
        hint="it needs root, or user namespaces",
    )
