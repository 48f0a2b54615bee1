"""The last resort: an exception that no verb expects is a bug of ours, and is reported as one."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

from qemu_svm import __version__
from qemu_svm.cli.status import EXIT_BUG, print_error


def report_bug(error: Exception) -> int:
    """Write the traceback to a file of its own and print one line; return the exit status.

    The file is new, in ``TMPDIR`` or ``/tmp``, and only the user can read it.
    """
    try:
        where = f"the traceback is in {_write(error)}"
    except OSError as failure:
        where = f"no traceback: {failure.strerror}"
    words = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    print_error(f"this is a bug in svmstream: {words} ({where})")
    return EXIT_BUG


def _write(error: Exception) -> str:
    # mkstemp never opens a file that exists, and lets nobody else read it.
    fd, path = tempfile.mkstemp(prefix="svmstream-bug-", suffix=".txt")
    with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
        python = sys.version.split()[0]
        file.write(f"svmstream {__version__}, Python {python}, Linux {os.uname().release}\n")
        file.write(f"command: {sys.argv!r}\n")
        file.writelines(traceback.format_exception(error))
    return path
