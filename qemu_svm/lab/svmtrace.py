"""The TCG plugin svmtrace, built when it is needed.

Its source is in ``plugins/svmtrace`` of a checkout, or in ``_data`` of an installed package.
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
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.suites import cache

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "_data" / "svmtrace"
SOURCE = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "plugins" / "svmtrace"
EMULATORS = ("10.0", "11.1")
"""Release lines of the QEMUs that svmtrace works in."""
_SECONDS = 120  # limit for a build
_FILES = ("svmtrace.c", "log.c", "memory.c", "svmtrace.h", "qemu_api.h", "Makefile")


def plugin() -> Path:
    """Return the path of the plugin in the cache; build it if it is not there.

    :raises LabError: the source or the compiler is missing, or it does not compile.
    """
    if not (SOURCE / "Makefile").is_file():
        raise LabError(
            f"the source of svmtrace is not at {SOURCE}",
            hint="pip install --force-reinstall qemu-svm",
        )
    digest = hashlib.sha256()
    with host_faults("read the source of svmtrace"):
        for name in _FILES:
            digest.update((SOURCE / name).read_bytes())
    path = cache.folder() / f"svmtrace-{digest.hexdigest()[:16]}.so"
    if not path.exists():
        with host_faults("build svmtrace", hint=cache.HINT):
            path.parent.mkdir(parents=True, exist_ok=True)
            _build(path)
    return path


def _build(path: Path) -> None:
    if shutil.which("make") is None or shutil.which("cc") is None:
        raise LabError(
            "svmtrace has to be compiled, and make or cc is not installed",
            hint="apt-get install gcc make libc6-dev",
        )
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
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
        new.replace(path)


def arguments(log: Path) -> tuple[str, ...]:
    """Return the emulator's arguments that load the plugin, which then writes ``log``.

    :raises LabError: see :func:`plugin`.
    """
    return ("-plugin", f"{comma(plugin())},out={comma(log)}")
