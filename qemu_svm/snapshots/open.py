"""Which form an input has, and the machine that comes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

from qemu_svm.errors import LimitExceeded, SourceError
from qemu_svm.limits import Limits
from qemu_svm.machine import Machine
from qemu_svm.recording.recording import is_recording, read_recording
from qemu_svm.snapshots import cloud_hypervisor, firecracker, raw
from qemu_svm.snapshots.assemble import assemble
from qemu_svm.snapshots.forms import (
    DOCUMENT,
    FIRECRACKER,
    NESTED,
    RECORDING,
    SELFTEST,
    WORDS,
    Beside,
)
from qemu_svm.snapshots.parts import FIXED, LEAST, Part, Snapshot, part, unique
from qemu_svm.snapshots.recorded import every_put, read_puts
from qemu_svm.snapshots.text import parse_json
from qemu_svm.source import Source, open_source

BESIDE = {
    "nested": ("NESTED_STATE",),
    "sregs": ("SREGS", "SREGS2"),
    "regs": ("REGS",),
    "msrs": ("MSRS",),
    "events": ("VCPU_EVENTS",),
    "debugregs": ("DEBUGREGS",),
    "mp-state": ("MP_STATE",),
    "xsave": ("XSAVE",),
    "xcrs": ("XCRS",),
    "lapic": ("LAPIC",),
    "cpuid": ("CPUID2",),
}
"""Parts that can be given in files of their own: the option, and the structures it takes."""

_MAGIC = b"QEVM"
_LEAST_JSON = b'"schema_version"'
_HEAD = 4096
_MOST_SELFTEST = 1 << 18


def is_recorded(path: str) -> bool:
    """Return whether a file is a recording; it may be compressed.

    :raises SourceError: it cannot be read.
    """
    if os.path.isdir(path):
        return False
    with open_source(path) as source:
        return is_recording(source.read_at(0, _HEAD))


def open_folder(path: str, limits: Limits, beside: Beside, owned: ExitStack) -> Machine | None:
    """Return the machine of a folder with a snapshot; None if it is none.

    :param owned: closes what stays open.
    :raises SourceError: the snapshot cannot be read.
    """
    if not cloud_hypervisor.is_folder(path):
        return None
    return _machine(cloud_hypervisor.read_folder(path, limits), path, limits, beside, owned)


def read_state(source: Source, limits: Limits, beside: Beside, owned: ExitStack) -> Machine | None:
    """Return the machine of an input that is no stream; None if it has no form known here.

    :param owned: closes what stays open.
    :raises SourceError: it has such a form, and cannot be read.
    """
    head = source.read_at(0, _HEAD)
    if head.startswith(_MAGIC) or source.container != "plain":
        return None
    found = (
        _of_vmm(source, head, limits, beside)
        or _raw(source, head)
        or _document(source, head, limits)
    )
    if found is None:
        return None
    machine = _machine(found, source.path, limits, beside, owned)
    made = machine.stream.source
    made.compression, made.layers = source.compression, source.layers
    return machine


def every_state(source: Source, limits: Limits) -> Iterator[Machine]:
    """Yield the machine of each put of a recording, as :func:`read_state` for each number.

    :raises SourceError: no vCPU has a put.
    :raises StreamError: it is no recording.
    """
    for snapshot, puts in every_put(read_recording(source), limits):
        yield assemble(replace(snapshot, puts=puts), source.path, limits)


def _machine(
    found: Snapshot, path: str, limits: Limits, beside: Beside, owned: ExitStack
) -> Machine:
    if found.file is not None:
        owned.enter_context(found.file)
    for option, value, form in (
        ("memory", beside.memory, FIRECRACKER),
        ("put", beside.put, RECORDING),
        ("vm", beside.vm, RECORDING),
    ):
        if value is not None and found.form != form:
            raise SourceError(
                f"--{option} does not belong to a {WORDS[found.form]}",
                hint=f"it is for a {WORDS[form]}",
            )
    if beside.files:
        more = tuple(_beside(beside.files))
        names = {one.name for one in more}
        if "SREGS" in names or "SREGS2" in names:
            names |= {"SREGS", "SREGS2"}
        kept = (one for one in found.parts if one.vcpu or one.name not in names)
        found = replace(found, parts=unique((*kept, *more), limits))
    return assemble(found, path, limits)


def _of_vmm(source: Source, head: bytes, limits: Limits, beside: Beside) -> Snapshot | None:
    if firecracker.is_state(head):
        data = _whole(source, limits)
        return firecracker.read_state(data, source.path, beside.memory, limits)
    if is_recording(head):
        recording = read_recording(source)
        snapshot, puts = read_puts(recording, limits, put=beside.put, vm=beside.vm)
        return replace(snapshot, puts=puts)
    return None


def _raw(source: Source, head: bytes) -> Snapshot | None:
    size = source.size()
    if raw.is_nested(head, size):
        data = source.read_at(0, size)
        return Snapshot(NESTED, (part("NESTED_STATE", 0, data, source.path),))
    if raw.SELFTEST_LEAST <= size < _MOST_SELFTEST:
        data = source.read_at(0, size)
        if raw.is_selftest(data):
            return Snapshot(SELFTEST, tuple(raw.selftest_parts(data)))
    return None


def _document(source: Source, head: bytes, limits: Limits) -> Snapshot | None:
    if head.lstrip()[:1] != b"{" or _LEAST_JSON not in head:
        return None
    from qemu_svm.snapshots.document import document_parts, is_document

    tree = parse_json(_whole(source, limits), source.path, limits)
    if not is_document(tree):
        return None
    return Snapshot(DOCUMENT, unique(document_parts(tree, source.path), limits))


def _whole(source: Source, limits: Limits) -> bytes:
    size = source.size()
    if size > limits.snapshot_bytes:
        raise LimitExceeded(
            f"'{source.path}' is larger than the limit",
            offset=0,
            expected=f"at most {limits.snapshot_bytes} bytes",
            found=f"{size}",
            hint="raise it with --limit snapshot_bytes=NUMBER",
        )
    return source.read_at(0, size)


def _beside(files: Mapping[str, str]) -> Iterator[Part]:
    for option, path in files.items():
        names = BESIDE[option]
        with open_source(path) as source:
            data = source.read_at(0, 1 << 17)
        sizes = {LEAST[name]: name for name in names}
        name = sizes.get(len(data), names[0])
        if name in FIXED and len(data) not in sizes:
            wanted = " or ".join(f"{size} bytes (KVM_GET_{one})" for size, one in sizes.items())
            raise SourceError(
                f"--{option} '{path}' has {len(data)} bytes", hint=f"expected {wanted}"
            )
        yield part(name, 0, data, f"--{option} '{os.path.basename(path)}'")
