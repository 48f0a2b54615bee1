"""Which files are looks that were kept; :mod:`qemu_svm.inside.kept` reads them."""

from __future__ import annotations

import os
import re

_START = re.compile(rb'\s*\{\s*"schema_version":\s*\d+,\s*"kernel":\s*"[^"]*",\s*"process":\s*\{')
_HEAD = 1024  # bytes


def is_kept(path: str) -> bool:
    """Whether a file may be a kept look: a regular file that begins as the document does."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return _START.match(file.read(_HEAD)) is not None
    except (OSError, ValueError):
        return False
