"""The recordings of the repository, and recordings made for a test."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from qemu_svm.errors import SvmStreamError
from qemu_svm.recording.recording import Form, read_recording, writer
from qemu_svm.recording.records import Header, Ioctl, Record
from qemu_svm.source import BytesSource, open_source
from tests.conftest import STREAMS

QEMU = STREAMS / "recordings/qemu7.2-linux6.1-nested.attached.jsonl.zst"
FIRECRACKER = STREAMS / "recordings/order-firecracker.ptrace.jsonl.zst"
STREAM = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"


@cache
def real(path: object = QEMU) -> tuple[Record, ...]:
    """Every record of a recording of the repository."""
    with open_source(str(path)) as source:
        found = read_recording(source)
        records = tuple(found)
        assert found.damage is None
        return records


def made(records: Iterable[Record], form: Form = "binary", header: Header | None = None) -> bytes:
    """A recording of these records."""
    file = io.BytesIO()
    one = writer(file, form, header or Header())
    for record in records:
        one.write(record)
    return file.getvalue()


def read(data: bytes) -> tuple[list[Record], SvmStreamError | None]:
    """The records of a recording, and why it could not be read to its end."""
    found = read_recording(BytesSource(data))
    return list(found), found.damage


def bare(records: Iterable[Record]) -> list[Record]:
    """The records without their place in the file."""
    return [
        one._replace(number=0) if isinstance(one, Ioctl) else replace(one, number=0)
        for one in records
    ]
