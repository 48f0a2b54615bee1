"""A recording of either form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from qemu_svm.errors import Malformed, SourceError, StreamError, SvmStreamError
from qemu_svm.kvm import numbers
from qemu_svm.kvm.numbers import Level
from qemu_svm.recording.binary import BinaryReader, BinaryWriter, is_binary
from qemu_svm.recording.jsonl import JsonReader, JsonWriter, is_jsonl
from qemu_svm.recording.records import Descriptor, Ended, Header, Ioctl, Record
from qemu_svm.source.base import Source

Form = Literal["binary", "jsonl"]
HEAD = 4096
"""Bytes from which :func:`is_recording` knows a recording."""
_CREATE_VM, _CREATE_VCPU = 0xAE01, 0xAE41
_CREATES = frozenset({_CREATE_VM, _CREATE_VCPU})
_DESCRIPTORS = 1 << 14


def is_recording(head: bytes) -> bool:
    """Return whether input that starts with ``head`` is a recording, of either form."""
    return is_binary(head) or is_jsonl(head)


class Descriptors:
    """What the file descriptors of a recording are, as far as it shows."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Level, int | None]] = {}

    def seen(self, record: Record) -> Record:
        """Learn from the next record; return it, with the level of its descriptor if it lacks it.

        An ioctl that only one kind of descriptor has tells the kind too.
        """
        if isinstance(record, Descriptor):
            kind = record.kind
            if kind is not None:
                self._keep(record.fd, kind)
        elif isinstance(record, Ioctl):
            if record.level is not None and _impossible(record, record.level):
                record = record._replace(level=None, index=None)
            if record.level is None:
                record = self._levelled(record)
            if record.nr == _CREATE_VM and record.ret >= 0:
                self._keep(record.ret, (Level.VM, None))
            elif record.nr == _CREATE_VCPU and record.ret >= 0:
                self._keep(record.ret, (Level.VCPU, record.arg))
        return record

    def _levelled(self, call: Ioctl) -> Ioctl:
        known = self._known.get(call.fd)
        if known is not None and _impossible(call, known[0]):
            del self._known[call.fd]
            known = None
        if known is None:
            ioctl = numbers.by_number(call.nr)
            if ioctl is None or len(ioctl.levels) != 1:
                return call
            known = (ioctl.levels[0], None)
            self._keep(call.fd, known)
        return call._replace(level=known[0], index=known[1])

    def _keep(self, fd: int, kind: tuple[Level, int | None]) -> None:
        if len(self._known) < _DESCRIPTORS or fd in self._known:
            self._known[fd] = kind


def _impossible(call: Ioctl, level: Level) -> bool:
    # It succeeded, and such a descriptor does not have it: its number is another one's now.
    ioctl = numbers.by_number(call.nr)
    return call.ret >= 0 and ioctl is not None and level not in ioctl.levels


@dataclass
class Recording:
    """An open recording; iterate it once for its records.

    Iteration ends at damage, which is in :attr:`damage` then.  Levels that the calls lack are
    those of the descriptors that the recording names before.

    :param path: name of the file.
    :param form: ``binary`` or ``jsonl``.
    :ivar ended: the end record; None in a recording that was cut, or whose recorder wrote none.
    :ivar damage: why the recording could not be read to its end.
    :ivar count: records that were read.
    """

    path: str
    form: Form
    header: Header
    _reader: BinaryReader | JsonReader = field(repr=False)
    _source: Source = field(repr=False)
    ended: Ended | None = None
    damage: SvmStreamError | None = None
    count: int = 0

    def __iter__(self) -> Iterator[Record]:
        descriptors = Descriptors()
        usual: set[tuple[int, Level]] = set()
        try:
            for record in self._reader:
                self.count += 1
                if type(record) is Ioctl and record.level is not None:
                    # Whose level is known, and possible, tells nothing more.
                    key = (record.nr, record.level)
                    if key in usual:
                        yield record
                        continue
                    ioctl = numbers.by_number(record.nr)
                    plain = ioctl is not None and record.level in ioctl.levels
                    if plain and record.nr not in _CREATES:
                        usual.add(key)
                if isinstance(record, Ended):
                    self.ended = record
                yield descriptors.seen(record)
        except SourceError as damage:
            self.damage = damage
        except StreamError as damage:
            damage.path = self.path
            self.damage = damage
        if self.damage is None:
            self.damage = self._source.damage


def read_recording(source: Source) -> Recording:
    """Open a recording of either form, read its header, and return it.

    :raises Malformed: the input is not a recording.
    :raises Truncated: its header is cut.
    :raises Unsupported: it is of another version.
    """
    head = source.read_at(0, HEAD)
    if is_binary(head):
        binary = BinaryReader(source)
        return Recording(source.path, "binary", binary.header, binary, source)
    if is_jsonl(head):
        jsonl = JsonReader(source)
        return Recording(source.path, "jsonl", jsonl.header, jsonl, source)
    damage = Malformed(
        "not a recording of KVM's ioctls",
        offset=0,
        expected="'SVMIOCTL', or JSON with \"svmstream-recording\" in the first line",
        found=head[:8].hex(" "),
    )
    damage.path = source.path
    raise damage


def writer(file: BinaryIO, form: Form, header: Header) -> BinaryWriter | JsonWriter:
    """Return a writer; the header is written at once."""
    return BinaryWriter(file, header) if form == "binary" else JsonWriter(file, header)
