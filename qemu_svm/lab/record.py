"""Captures of the lab in files, each with a record from which it can be repeated."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from qemu_svm.lab import capture, linux, vm
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.box.share import forget
from qemu_svm.lab.capture import Capture
from qemu_svm.lab.guests import LINUX, LINUX_IN_LINUX, Guest, assemble
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.vm import Settings, Vm
from qemu_svm.qmp.output import Output, writing
from qemu_svm.results import Result

RECORD = ".json"
"""Suffix of the record's file."""

_LOG = "ioctls.log"
_LEVEL = 19
_QUICK, _LARGE = 6, 16 << 20  # the level of compression above that size


@dataclass(frozen=True, slots=True)
class Origin:
    """How captures are made.

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
    """One capture, or several of one run."""

    verb: ClassVar[str] = "lab_capture"
    records: tuple[CaptureRecord, ...]


def capture_files(
    box: BoxSession,
    origin: Origin,
    files: Sequence[str],
    *,
    replace: bool = False,
    trace: str | None = None,
) -> CaptureRecords:
    """Run a guest in a box and capture it, once for each file.

    Each file gets a record beside it, with the suffix :data:`RECORD`; a stream whose name
    ends in ``.zst`` is compressed.

    :param replace: existing files may be replaced.
    :param trace: file for QEMU's log of the vCPU ioctls up to the last save.
    :raises OutputExists: a file exists and ``replace`` is not set.
    :raises EnvironmentFault: a file cannot be written.
    :raises LabError: the guest does not run, or was never saved in the wanted state.
    """
    records = []
    start, capture_once = _ways(origin, None if trace is None else _LOG)
    with start(box) as running:
        for number, file in enumerate(files):
            if number:
                running.qmp.execute("cont")
            taken = capture_once(running)
            record = _record(file, taken, origin)
            _write(taken.path, file, record, replace=replace)
            records.append(record)
    if trace is not None:
        _write(box.share / _LOG, trace, None, replace=replace)
    return CaptureRecords(tuple(records))


def _ways(
    origin: Origin, log: str | None
) -> tuple[Callable[[BoxSession], AbstractContextManager[Vm]], Callable[[Vm], Capture]]:
    # How the guest is started, and how it is captured.
    guest, settings = origin.guest, origin.settings
    if guest is LINUX:
        return lambda box: linux.started(box, settings, trace=log), linux.capture
    if guest is LINUX_IN_LINUX:
        inner = partial(linux.started, settings=settings, trace=log, inner=True)
        return inner, linux.capture_inner
    image = assemble(guest)
    return (
        lambda box: vm.running(box, settings, image=image.data, trace=log),
        lambda running: capture.capture(running, guest, image),
    )


def _record(file: str, taken: Capture, origin: Origin) -> CaptureRecord:
    with host_faults(f"read {taken.path}"), taken.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = os.fstat(stream.fileno()).st_size
    return CaptureRecord(file, size, digest, taken.tries, taken.flags, origin)


def _write(source: Path, path: str, record: CaptureRecord | None, *, replace: bool) -> None:
    # The stream, or a log, and its record get their names together.
    suffixes = () if record is None else (RECORD,)
    try:
        with writing(path), Output(path, suffixes, replace=replace) as output:
            with source.open("rb") as stream, open(output.writer(), "wb") as file:
                if path.endswith(".zst"):
                    import zstandard

                    level = _LEVEL if os.fstat(stream.fileno()).st_size < _LARGE else _QUICK
                    zstandard.ZstdCompressor(level).copy_stream(stream, file)
                else:
                    shutil.copyfileobj(stream, file)
            if record is not None:
                text = json.dumps(CaptureRecords((record,)).to_json(), indent=1) + "\n"
                os.write(output.create(RECORD), text.encode())
            output.commit()
    finally:
        forget(source)
