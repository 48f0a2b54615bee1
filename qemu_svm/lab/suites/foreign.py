"""Programs of a suite, run on the host with the suite's own loader and libraries.

This needs neither root nor chroot, and works across releases in both directions.
"""

from __future__ import annotations

from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"
"""The directory of a suite's libraries, relative to its root."""


def on_host(root: Path, program: str) -> list[str]:
    """Return the start of a command line that runs a program of a suite.

    :param root: the suite's files.
    :param program: path relative to the root, such as ``usr/bin/python3``.
    """
    loader = root / LIBRARIES / "ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(root / LIBRARIES), str(root / program)]
