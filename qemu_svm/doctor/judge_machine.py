"""Judges the directories, programs, lab and terminal that svmstream uses."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

from qemu_svm.doctor.model import Check, CheckState
from qemu_svm.errors import LabError
from qemu_svm.lab.suites import apt, build, cache
from qemu_svm.lab.suites.catalogue import SUITES
from qemu_svm.recorder.ways import ways
from qemu_svm.source.spool import spool_directory

_DISK = "disk"
_PROGRAMS = "programs"
_RECORD = "record"
_LAB = frozenset({"lab"})
_MIB = 1 << 20

_COLUMNS = 80

_CALLED = (
    ("qemu-system-x86_64", "qemu-system-x86", "the lab", {"lab"}),
    ("setpriv", "util-linux", "the lab", {"lab"}),
    ("as", "binutils", "the lab's guests", {"lab"}),
    ("lzop", "lzop", "streams compressed by lzop", set[str]()),
)
"""Program, Debian package, its user, purposes that need it."""


def judge_places(captures: Path, ram: int = 0) -> Iterator[Check]:
    """Judge the directories that are written to.

    :param captures: directory for captures.
    :param ram: bytes of RAM of the guest to be captured.
    """
    temporary = Path(os.environ.get("TMPDIR") or spool_directory() or "/tmp")
    yield _folder(
        "captures", captures, "choose another --directory", wanted=ram, needed={"capture"}
    )
    yield _folder("temporary", temporary, "set TMPDIR")
    yield _folder(
        "lab's cache", cache.folder(), "set XDG_CACHE_HOME", wanted=build.SPACE, needed=_LAB
    )


def judge_lab() -> Iterator[Check]:
    """Judge whether the lab's emulated AMD host is built, or can be built."""
    built = [suite for suite in SUITES if cache.find(suite)]
    if built:
        kernels = ", ".join(f"Linux {one.kernel} with QEMU {one.qemu}" for one in built)
        yield Check("lab", "suites", CheckState.OK, kernels)
        return
    try:
        apt.require_tools()
    except LabError as error:
        yield Check(
            "lab", "suites", CheckState.MISSING, f"none built; {error.what}",
            "there is no emulated AMD host", error.hint or "", _LAB,
        )  # fmt: skip
    else:
        yield Check("lab", "suites", CheckState.NOTE, "none built yet", "", "svmstream lab build")


def judge_programs() -> Iterator[Check]:
    """Judge the programs that some verbs call."""
    for name, package, purpose, needed in _CALLED:
        path = shutil.which(name)
        if path is not None:
            yield Check(_PROGRAMS, name, CheckState.OK, path)
        else:
            yield Check(
                _PROGRAMS, name, CheckState.MISSING if needed else CheckState.NOTE, "not installed",
                f"needed for {purpose}", f"apt install {package}", frozenset(needed),
            )  # fmt: skip


def judge_recorder() -> Iterator[Check]:
    """Judge which way ``record`` would take; it is tried."""
    found = ways()
    if not found.bpf:
        yield Check(_RECORD, "eBPF", CheckState.OK, "its programs can be loaded")
    else:
        yield Check(
            _RECORD, "eBPF", CheckState.NOTE, found.bpf,
            "record uses ptrace: a process that runs already is slowed",
        )  # fmt: skip
    if not found.ptrace:
        state = CheckState.MISSING if found.bpf else CheckState.NOTE
        yield Check(
            _RECORD, "ptrace", state, "Yama forbids all tracing (kernel.yama.ptrace_scope=3)",
            "nothing can be recorded by ptrace", "use eBPF, as root", frozenset({"record"}),
        )  # fmt: skip
    elif found.yama and found.bpf:
        yield Check(
            _RECORD, "ptrace", CheckState.NOTE, f"kernel.yama.ptrace_scope={found.yama}",
            "without root only commands can be recorded that record starts",
        )  # fmt: skip
    else:
        yield Check(_RECORD, "ptrace", CheckState.OK, "permitted")


def judge_terminal(columns: int | None, encoding: str, *, colour: bool) -> Check:
    """Judge the terminal.

    :param columns: its width; None if the output is not a terminal.
    """
    if columns is None:
        return Check(
            "terminal",
            "output",
            CheckState.NOTE,
            f"not a terminal, {encoding}: lines are not wrapped, no progress is shown",
        )
    found = f"{columns} columns, {encoding}, {'colour' if colour else 'no colour'}"
    if columns < _COLUMNS:
        return Check(
            "terminal",
            "output",
            CheckState.WARNING,
            found,
            "reports are laid out for 80 columns",
            "widen the terminal",
        )
    return Check("terminal", "output", CheckState.OK, found)


def _folder(
    name: str, folder: Path, do: str, *, wanted: int = 0, needed: AbstractSet[str] = frozenset()
) -> Check:
    # A directory that does not exist yet is judged by its closest existing parent.
    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Check(
            _DISK, name, CheckState.MISSING, f"{folder}: {error.strerror or error}",
            "nothing can be written there", do, frozenset(needed),
        )  # fmt: skip
    found = f"{folder.absolute()}, {free // _MIB} MiB free"
    if free < wanted:
        return Check(
            _DISK, name, CheckState.MISSING, found, f"{wanted // _MIB} MiB may be needed",
            f"make room, or {do}", frozenset(needed),
        )  # fmt: skip
    return Check(_DISK, name, CheckState.OK, found)
