"""Where svmstream writes, and which programs it calls."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qemu_svm.doctor.model import Check, State
from qemu_svm.source.spool import spool_directory

_DISK = "disk"
_TOOLS = "programs"
_GIB = 1 << 30
_LAB_BYTES = 3 * _GIB

_PROGRAMS = (
    ("qemu-system-x86_64", "qemu-system-x86", "restore, compat, the lab", {"restore", "lab"}),
    ("mmdebstrap", "mmdebstrap", "building the lab", {"lab"}),
    ("as", "binutils", "building the lab's guests", {"lab"}),
    ("lzop", "lzop", "streams compressed with lzop", set[str]()),
)
"""Program, Debian package, what it is for, purposes that need it."""


def cache_directory() -> Path:
    """Where the lab keeps what it built."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "qemu-svm"


def judge_places(target: Path) -> Iterator[Check]:
    """Judge the folders that are written to.

    :param target: where captures are to go.
    """
    temporary = Path(spool_directory() or tempfile.gettempdir())
    yield _folder("captures", target, 0, frozenset({"capture"}))
    yield _folder("temporary", temporary, 0, frozenset())
    yield _folder("lab's cache", cache_directory(), _LAB_BYTES, frozenset({"lab"}))


def judge_programs() -> Iterator[Check]:
    """Judge the programs that some verbs call."""
    for name, package, purpose, needed in _PROGRAMS:
        path = shutil.which(name)
        if path is not None:
            yield Check(_TOOLS, name, State.OK, path)
        else:
            yield Check(
                _TOOLS, name, State.MISSING, "not there", f"needed for {purpose}",
                f"apt install {package}", frozenset(needed),
            )  # fmt: skip


def _folder(name: str, folder: Path, wanted: int, needed: frozenset[str]) -> Check:
    # A folder that does not exist yet is judged by the first of its parents that does.
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Check(
            _DISK, name, State.MISSING, f"{folder}: {error.strerror}", "nothing can be written",
            "choose another folder, or get write access", needed,
        )  # fmt: skip
    found = f"{folder}: {free / _GIB:.1f} GiB free"
    if free < wanted:
        return Check(
            _DISK, name, State.WARNING, found,
            f"the lab takes about {wanted / _GIB:.0f} GiB", "make room, or set XDG_CACHE_HOME",
        )  # fmt: skip
    return Check(_DISK, name, State.OK, found)
