"""What made a capture of the lab, so that it can be made again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from qemu_svm.lab.capture import Capture
from qemu_svm.lab.guests import Guest
from qemu_svm.lab.vm import Settings
from qemu_svm.results import Result


@dataclass(frozen=True, slots=True)
class Origin:
    """How captures are made.

    :param recipe: the command line.
    :param versions: exact package versions.
    :param box: options of the box that were given.
    """

    recipe: str
    versions: Mapping[str, str]
    guest: Guest
    settings: Settings
    box: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CaptureRecord:
    """One capture, and how it was made.

    :param file: the path that the user gave.
    :param size: bytes of the stream, uncompressed.
    :param sha256: of the stream, uncompressed, as hex digits.
    :param tries: saves that it took.
    :param flags: of the nested state of each vCPU, None where there is none.
    """

    file: str
    size: int
    sha256: str
    tries: int
    flags: tuple[int | None, ...]
    origin: Origin


@dataclass(frozen=True, slots=True, repr=False)
class CaptureRecords(Result):
    """One capture, or several of one run."""

    verb: ClassVar[str] = "lab_capture"
    records: tuple[CaptureRecord, ...]


def record(file: str, taken: Capture, origin: Origin) -> CaptureRecord:
    """Return the record of a capture whose stream is still in the box's share."""
    with taken.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    size = taken.path.stat().st_size
    return CaptureRecord(file, size, digest, taken.tries, taken.flags, origin)
