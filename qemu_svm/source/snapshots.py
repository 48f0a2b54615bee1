"""The snapshots of a qcow2 image that hold a stream."""

from __future__ import annotations

import os
from contextlib import suppress

from qemu_svm.errors import SourceError
from qemu_svm.source.plain import FileSource
from qemu_svm.source.qcow2 import read_image, read_snapshots

_QCOW2 = b"QFI\xfb"


def snapshot_names(path: str) -> list[str] | None:
    """Return the names (or ids, where names are not unique) of an image's snapshots with VM state.

    None for anything but a qcow2 image, and for one that is compressed.

    :raises SourceError: the image is damaged.
    """
    head = b""
    with suppress(OSError, ValueError), open(path, "rb") as file:
        head = file.read(len(_QCOW2))
    if head != _QCOW2:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot open '{path}': {error.strerror}") from error
    with FileSource(fd, path) as source:
        entries = read_snapshots(source, read_image(source))
    saved = [one.details for one in entries if one.details.vm_state_size]
    names = [one.name for one in saved]
    return [one.name if one.name and names.count(one.name) == 1 else one.id for one in saved]
