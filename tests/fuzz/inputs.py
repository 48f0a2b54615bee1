"""Inputs in the form in which they are fuzzed: small, and with what a mutation cannot know.

A mutation seldom makes a valid checksum, a page of 4096 bytes or a description that fits;
so the targets build these around the bytes that they are given.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

from qemu_svm import api
from qemu_svm.limits import DEFAULT
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from qemu_svm.stream.tail import find_description
from qemu_svm.vmruns import structs
from tests.conftest import STREAMS
from tests.source.test_containers import made_image, save_image
from tests.stream.ram.test_multifd import initial, packet
from tests.stream.ram.test_postcopy import discard
from tests.stream.ram.test_ram import capabilities, compressed, delta, mapped
from tests.support import builders, snapshots
from tests.support.builders import PAGE, Section, page, word, zero
from tests.vmruns.written import Writer, vmcb

CAPTURE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
_LEAVES = re.compile(r'(?<=: )(?:"[^"]*"|-?[0-9.]+|true|false|null)')
LARGEST = 4096
"""Bytes of an input; what the targets build around it comes on top."""


def u32(name: str) -> dict[str, object]:
    return {"name": name, "type": "uint32", "size": 4}


SECTIONS = (
    Section("timer", bytes(12), [u32("ticks"), {"name": "now", "type": "int64", "size": 8}]),
    Section("serial", b"\0\0\0\7" + b"\5text", [u32("rate")], instance=1),
    Section(
        "0000:00:03.0/virtio-net", bytes(40), [{"name": "virtio", "type": "opaque", "size": 40}]
    ),
)


def small_streams() -> Iterator[bytes]:
    """Whole streams of some hundred bytes."""
    blocks = {"pc.ram": 16 * PAGE, "vga.vram": 4 * PAGE}
    zeros = zero(0, "pc.ram") + zero(PAGE) + zero(0, "vga.vram")
    yield builders.stream(SECTIONS, [zeros, zero(2 * PAGE, "pc.ram")], blocks)
    yield builders.stream(SECTIONS, [zeros], blocks, footers=False, describe=False)
    yield builders.stream(SECTIONS, [zeros], blocks, config=b"")
    config = capabilities("x-ignore-shared", "postcopy-ram", "mapped-ram", "multifd")
    yield builders.stream(SECTIONS[:1], [], {"m": PAGE}, config=config)
    package = builders.named(builders.RecordType.FULL, 9, "timer", 0, 1, bytes(12))
    commands = builders.command(3, bytes(4)) + builders.command(5, bytes(8)) + discard((0, 2))
    yield builders.stream([], [zeros]) + commands + builders.command(8, word(len(package))[4:])


@cache
def vcpu_payload() -> bytes:
    """The section of a vCPU in L2, of a real capture."""
    with open_source(str(CAPTURE)) as source:
        stream = read_stream(source)
        record = next(one for one in stream.sections() if one.name == "cpu")
        return source.read_at(record.payload, record.payload_size)


@cache
def vcpu_entry() -> Section:
    """The same with its description."""
    with open_source(str(CAPTURE)) as source:
        found = find_description(source, DEFAULT)
    assert found is not None
    document = json.loads(found.text)
    device = next(one for one in document["devices"] if one["name"] == "cpu")
    return Section(
        "cpu", b"", device["fields"], device.get("subsections", []), 0, device["version"]
    )


def vcpu_stream(payload: bytes) -> bytes:
    """A stream of one vCPU."""
    section = vcpu_entry()
    section = Section("cpu", payload, section.fields, section.subsections, 0, section.version)
    config = builders.configuration("pc-i440fx-10.0")
    return builders.stream([section], [], {"pc.ram": 16 * PAGE}, config=config)


def patched(base: bytes, patches: bytes) -> bytes:
    """Overwrite ``base``: offset (16 bits), length (8 bits), bytes; and so on."""
    out = bytearray(base)
    at = 0
    while at + 3 < len(patches):
        where = int.from_bytes(patches[at : at + 2], "big") % len(base)
        size = patches[at + 2] % 17
        new = patches[at + 3 : at + 3 + size][: len(base) - where]
        out[where : where + len(new)] = new
        at += 3 + size
    return bytes(out)


ODD = (
    None,
    -1,
    1 << 64,
    10**400,
    1.5,
    True,
    "",
    "x",
    "0x",
    "0x" + "f" * 40,
    "\ud800",
    [],
    {},
    [{}],
)
"""Values of JSON that are not expected."""


def edited(document: Any, edits: bytes) -> Any:
    """Return a document with other values: number of the leaf (16 bits), which value (8 bits)."""
    text = json.dumps(document)
    leaves = [found.span() for found in _LEAVES.finditer(text)]
    changes = {}
    for at in range(0, len(edits) - 2, 3):
        number = int.from_bytes(edits[at : at + 2], "big") % len(leaves)
        changes[leaves[number]] = edits[at + 2]
    for (start, end), which in sorted(changes.items(), reverse=True):
        if which < len(ODD):
            new = json.dumps(ODD[which])
        elif which & 1 and text[start] == '"':
            new = json.dumps(hex(which * 0x0101010101010101))
        else:
            new = str(which)
        text = text[:start] + new + text[end:]
    return json.loads(text)


@cache
def document() -> Any:
    """What ``inspect --json`` says of a vCPU in L2."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(vcpu_stream(vcpu_payload()))
        file.flush()
        with api.open(file.name) as dump:
            return dump.inspect().to_json()


@cache
def look() -> bytes:
    """A look into kernel memory, kept in a file."""
    return (Path(__file__).parents[1] / "inside/look-6.1.json").read_bytes()


@cache
def raw_state() -> bytes:
    """The ``struct kvm_nested_state`` of a vCPU in L2."""
    with api.open(CAPTURE) as dump:
        return snapshots.raw_parts(dump)["NESTED_STATE"]


_FILLS = (b"\0", b"\1", b"fill", b"\xff")


def ram_records(data: bytes) -> list[bytes]:
    """Parts of RAM records out of operations of four bytes; ``raw`` ones bring their own bytes."""
    parts, out, at = [], [], 0
    budget = 64  # pages with content
    while at + 4 <= len(data):
        kind, place, number, more = data[at : at + 4]
        at += 4
        offset, name = place % 24 * PAGE, (None, "pc.ram", "vga", "none")[more & 3]
        if kind % 9 == 0 and budget > 0:
            for one in range(min(number % 8 + 1, budget)):
                out.append(
                    page(offset + one * PAGE, _FILLS[more >> 2 & 3], name if not one else None)
                )
                budget -= 1
        elif kind % 9 == 1:
            out += [
                zero(offset + one * PAGE, name if not one else None) for one in range(number % 40)
            ]
        elif kind % 9 == 2:
            out.append(delta(offset, data[at : at + number % 40], name))
            at += number % 40
        elif kind % 9 == 3:
            out.append(compressed(offset, bytes((more,)) * PAGE, name))
        elif kind % 9 == 4:
            parts.append(b"".join(out))
            out = []
        elif kind % 9 == 5:
            out.append(builders.block_list({"pc.ram": 16 * PAGE, "vga": (number % 5) * PAGE}))
        elif kind % 9 == 6:
            out.append(word(offset | (number << 4 | more)))
        else:
            out.append(data[at : at + number % 64])
            at += number % 64
    return [*parts, b"".join(out)]


def ram_stream(data: bytes) -> bytes:
    """A stream with these RAM records, see :func:`ram_records`."""
    return builders.stream([], ram_records(data), {"pc.ram": 16 * PAGE, "vga": 4 * PAGE})


def mapped_stream(data: bytes) -> bytes:
    """A stream with mapped-ram whose first hundred bytes and bitmap are overwritten."""
    good = mapped(data[0] * 8 if data else 0, 0b1011 | 1 << 64, pages=70)
    start = good.index(b"\1m") - 8
    head = patched(good[start : start + 120], data[1:])
    return good[:start] + head + good[start + 120 :]


def sealed_log(data: bytes) -> bytes:
    """A log of svmtrace whose checksums are right wherever its sizes make sense."""
    out = bytearray(data)
    if len(out) >= 32:
        out[28:32] = zlib.crc32(out[:28]).to_bytes(4, "little")
    at = 32
    while at + 8 <= len(out):
        size = int.from_bytes(out[at : at + 4], "little")
        if size < 8 or at + size > len(out):
            break
        out[at + size - 4 : at + size] = zlib.crc32(out[at : at + size - 4]).to_bytes(4, "little")
        at += size
    return bytes(out)


def svmtrace_logs() -> Iterator[bytes]:
    """Small logs of svmtrace."""
    whole = Writer()
    entered = vmcb(0x80, rip=0x1000)
    number = whole.add(structs.RecordKind.VMRUN, rax=0x5000, address=0x5000, page=bytes(PAGE))
    whole.add(structs.RecordKind.EXIT, rax=0x5000, address=0x5000, entry=number, page=entered)
    whole.run(0x5000, entered, vmcb(0x60, rip=0x1003), vmrun=True)
    whole.add(structs.RecordKind.VMLOAD, flags=1)
    whole.add(structs.RecordKind.END, rax=1)
    yield bytes(whole.data)
    short = Writer(pages=1)
    short.run(0x7000, bytes(PAGE), vmcb(0x72), vcpu=1)
    yield bytes(short.data)
    yield bytes(Writer().data)


def packed(how: int, data: bytes) -> bytes:
    """Wrap ``data`` in up to three layers; two bits each say which."""
    for shift in (0, 2, 4):
        kind = how >> shift & 3
        if kind == 1:
            data = gzip.compress(data, 1, mtime=0)
        elif kind == 2:
            data = zstandard.ZstdCompressor(level=1).compress(data)
        elif kind == 3:
            data = bz2.compress(data, 1) if how & 64 else lzma.compress(data, preset=0)
    return data


def containers() -> Iterator[bytes]:
    """Small streams in containers and compressions."""
    stream = next(small_streams())
    yield save_image(stream)[:LARGEST]
    yield save_image(b"").replace(bytes(1000), b"")
    yield gzip.compress(stream)
    yield bz2.compress(stream)
    yield zstandard.ZstdCompressor().compress(stream)
    yield b"\x50\x2a\x4d\x18\4\0\0\0skip" + zstandard.ZstdCompressor().compress(stream)
    yield len(stream).to_bytes(8, "big") + stream
    yield bytes(512) + stream


def qcow2_images() -> Iterator[bytes]:
    """Small images."""
    for kind in ("plain", "deflate", "zstd"):
        yield made_image(b"QEVM\0\0\0\3" + bytes(600), bits=9, kind=kind)


def channels() -> Iterator[bytes]:
    """Multifd channels; the content of pages is added by the target."""
    yield initial(0) + packet(0, zeros=[1, 2]) + packet(1, flags=1)
    yield initial(1)
    yield initial(0) + packet(0, {3: 7})
