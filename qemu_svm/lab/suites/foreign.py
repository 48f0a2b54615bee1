"""Programs of a suite, run on the host: through the suite's own loader and libraries.

That needs neither root nor chroot, and works across releases in both directions.
"""

from __future__ import annotations

from pathlib import Path

#: Where a suite keeps its libraries, inside its root.
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def on_host(root: Path, program: str) -> list[str]:
    """Return the start of a command line that runs a program out of a suite's root.

    :param program: its path inside the root, ``usr/bin/python3``.
    """
    loader = root / LIBRARIES / "ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(root / LIBRARIES), str(root / program)]
