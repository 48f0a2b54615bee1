"""Any input as random-access bytes.

:func:`open_source` opens a path or ``-`` (standard input) and examines the first
bytes: a plain file is read in place, a pipe or a compressed file through a
temporary copy; in a container (libvirt, qcow2, a file with other data before the
stream), the stream is located first.
"""

from __future__ import annotations

from qemu_svm.source.base import BackingFile, Source
from qemu_svm.source.offset import OffsetSource
from qemu_svm.source.opener import open_source
from qemu_svm.source.plain import BytesSource, FileSource
from qemu_svm.source.spool import SpoolSource

__all__ = [
    "BackingFile",
    "BytesSource",
    "FileSource",
    "OffsetSource",
    "Source",
    "SpoolSource",
    "open_source",
]
