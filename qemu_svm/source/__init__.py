"""Any input made into random-access bytes.

:func:`open_source` takes a path or ``-`` and looks at the first bytes: a plain
file is read in place, a pipe or a compressed file through a temporary one.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import IO

from qemu_svm.errors import SourceError
from qemu_svm.limits import DEFAULT, MIB, Limits
from qemu_svm.source import compressed
from qemu_svm.source.base import Source
from qemu_svm.source.plain import BytesSource, FileSource
from qemu_svm.source.spool import SpoolSource

__all__ = ["BytesSource", "FileSource", "Source", "SpoolSource", "open_source"]

_HEAD = 16


def open_source(path: str, limits: Limits = DEFAULT) -> Source:
    """Open a stream for reading.

    :param path: a file name, or ``-`` for standard input.
    :raises SourceError: no such file, a directory, no permission.
    """
    if path == "-":
        return _open_stdin(limits)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot open '{path}': {error.strerror}") from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise SourceError(f"'{path}' is a directory, not a stream")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return _spool(os.fdopen(fd, "rb", buffering=MIB), path, limits)
        compression = compressed.sniff(os.pread(fd, _HEAD, 0))
        if compression == "none":
            return FileSource(fd, path)
        return _spool(os.fdopen(fd, "rb", buffering=MIB), path, limits)
    except OSError as error:
        os.close(fd)
        raise SourceError(f"cannot read '{path}': {error.strerror}") from error
    except SourceError:
        os.close(fd)
        raise


def _open_stdin(limits: Limits) -> Source:
    fd = os.dup(sys.stdin.fileno())
    plain = stat.S_ISREG(os.fstat(fd).st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == 0
    if plain and compressed.sniff(os.pread(fd, _HEAD, 0)) == "none":
        return FileSource(fd, "-")
    return _spool(os.fdopen(fd, "rb", buffering=MIB), "-", limits)


def _spool(raw: IO[bytes], path: str, limits: Limits) -> Source:
    assert isinstance(raw, io.BufferedReader)
    compression = compressed.sniff(raw.peek(_HEAD)[:_HEAD])
    read = raw.read1 if compression == "none" else compressed.reader(raw, compression, path)
    return SpoolSource(
        read, path, compression=compression, limit=limits.spool_bytes, close=raw.close
    )
