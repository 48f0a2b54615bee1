"""Records of the lab's captures, from which a capture can be repeated."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from qemu_svm.lab.capture import Capture
from qemu_svm.lab.guests import Guest
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.vm import Settings
from qemu_svm.results import Result


@dataclass(frozen=True, slots=True)
class Origin:
    """How captures were made.

    :param recipe: the command line.
    :param versions: exact package versions of the box.
    :param settings: of the QEMU in the box.
    :param box: options of the box, without defaults.
    """

    recipe: str
    versions: Mapping[str, str]
    guest: Guest
    settings: Settings
    box: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CaptureRecord:
    """One capture, and how it was made.

    :param file: path of the stream, as given by the user.
    :param size: bytes of the stream, uncompressed.
    :param sha256: of the uncompressed stream, in hexadecimal.
    :param tries: number of saves, this one included.
    :param flags: of the nested state of each vCPU; None if it has none.
    """

    file: str
    size: int
    sha256: str
    tries: int
    flags: tuple[int | None, ...]
    origin: Origin


@dataclass(frozen=True, slots=True, repr=False)
class CaptureRecords(Result):
    """The captures of one run."""

    verb: ClassVar[str] = "lab_capture"
    records: tuple[CaptureRecord, ...]


def record(file: str, taken: Capture, origin: Origin) -> CaptureRecord:
    """Return the record of a capture whose stream is still in the box's share.

    :param file: path of the stream, as given by the user.
    :raises LabError: the stream cannot be read.
    """
    with host_faults(f"read {taken.path}"), taken.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = os.fstat(stream.fileno()).st_size
    return CaptureRecord(file, size, digest, taken.tries, taken.flags, origin)
