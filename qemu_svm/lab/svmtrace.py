"""The plugin svmtrace, built when it is needed, and the log that it writes.

Its source stands beside this package in a checkout, not in an installed package.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.box.emulator import comma
from qemu_svm.lab.suites import cache

SOURCE = Path(__file__).resolve().parents[2] / "plugins" / "svmtrace"
EMULATORS = ("10.0", "11.1")
"""Release lines of QEMU that svmtrace works in."""
_SECONDS = 120
_FILES = ("svmtrace.c", "log.c", "memory.c", "svmtrace.h", "qemu_api.h", "Makefile")


def plugin() -> Path:
    """Return the plugin, built into the cache if it is not there yet.

    :raises LabError: no source, no compiler, or it does not compile.
    """
    if not (SOURCE / "Makefile").is_file():
        raise LabError(
            f"the source of svmtrace is not at {SOURCE}", hint="install from a checkout: pip -e"
        )
    digest = hashlib.sha256()
    for name in _FILES:
        digest.update((SOURCE / name).read_bytes())
    made = cache.folder() / f"svmtrace-{digest.hexdigest()[:16]}.so"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        _build(made)
    return made


def _build(made: Path) -> None:
    if shutil.which("make") is None or shutil.which("cc") is None:
        raise LabError("svmtrace must be compiled", hint="apt-get install gcc make libc6-dev")
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        new = Path(folder) / "svmtrace.so"
        done = subprocess.run(
            ["make", "-s", "-C", SOURCE, f"OUT={new}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise LabError(f"svmtrace does not compile: {lines[0] if lines else 'make failed'}")
        new.replace(made)


def arguments(log: Path) -> tuple[str, ...]:
    """Arguments of an emulator that make it write ``log``."""
    return ("-plugin", f"{comma(plugin())},out={comma(log)}")
