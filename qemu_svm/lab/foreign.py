"""Programs of a suite, run on the host: through the suite's own loader and libraries.

That needs neither root nor chroot, and works across releases in both directions.
"""

from __future__ import annotations

from pathlib import Path

_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def on_host(root: Path, program: str) -> list[str]:
    """Return the start of a command line that runs a program out of a suite's root.

    :param program: its path inside the root, ``usr/bin/python3``.
    """
    loader = root / _LIBRARIES / "ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(root / _LIBRARIES), str(root / program)]
