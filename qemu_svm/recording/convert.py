"""A recording in its other form, or without what is the host's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import BinaryIO, ClassVar, cast

from qemu_svm.errors import EnvironmentFault, OutputExists, SvmStreamError
from qemu_svm.recorder import log, redact
from qemu_svm.recording.recording import Form, read_recording, writer
from qemu_svm.recording.records import Ioctl, Memory, Record
from qemu_svm.recording.values import masked
from qemu_svm.results import Result
from qemu_svm.source.base import Source


@dataclass(frozen=True, slots=True, repr=False)
class Converted(Result):
    """A recording that was written anew.

    :param path: of the recording that was read.
    :param output: of the one that was written.
    :param form: of the one that was written, ``binary`` or ``jsonl``.
    :param records: records that were written.
    :param damage: why the recording could not be read to its end.
    """

    verb: ClassVar[str] = "converted"
    path: str
    output: str
    form: Form
    records: int
    redacted: bool
    damage: SvmStreamError | None = None


def convert(source: Source, output: str, *, without_host: bool = False) -> Converted:
    """Write a recording anew: JSON lines if ``output`` ends in ``.jsonl``, else binary.

    With a further ``.zst`` it is compressed.  Only its owner may read it.

    :param without_host: leave out addresses of the VMM, bytes that it did not write, MSRs and
        guest memory.
    :raises StreamError: the input is not a recording.
    :raises OutputExists: there is such a file.
    :raises EnvironmentFault: it cannot be written.
    """
    recording = read_recording(source)
    name = output.removesuffix(".zst")
    form: Form = "jsonl" if name.endswith(".jsonl") else "binary"
    header = recording.header
    if without_host:
        header = replace(header, redacted=True)
    count = 0
    with _created(output, compress=name != output) as file:
        out = writer(file, form, header)
        for record in recording:
            kept = redacted(record) if without_host else record
            if kept is not None:
                out.write(kept)
                count += 1
    return Converted(source.path, output, form, count, without_host, recording.damage)


def redacted(record: Record) -> Record | None:
    """Return a record without what is the host's; None for guest memory."""
    if isinstance(record, Memory):
        return None
    if not isinstance(record, Ioctl) or record.runs is not None:
        return record
    left = redact.redacted(
        log.Record(
            log.CALL,
            record.time,
            number=record.nr,
            argument=record.arg,
            data_in=masked(record.name, record.given),
            data_out=masked(record.name, record.returned),
        )
    )
    return record._replace(arg=left.argument, given=left.data_in, returned=left.data_out)


@contextmanager
def _created(path: str, *, compress: bool) -> Iterator[BinaryIO]:
    # A new file; none is left if it cannot be written to its end.
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise OutputExists(path) from error
    except OSError as error:
        raise EnvironmentFault(f"cannot write '{path}': {error.strerror}") from error
    try:
        with os.fdopen(fd, "wb", buffering=1 << 16) as file:
            if not compress:
                yield file
            else:
                import zstandard

                with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as packed:
                    yield cast("BinaryIO", packed)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(path)
        if isinstance(error, OSError):
            raise EnvironmentFault(f"cannot write '{path}': {error.strerror}") from error
        raise
