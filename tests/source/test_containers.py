"""Streams inside containers: the same stream as outside, and only our errors."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qemu_svm.errors import SourceError, StreamError
from qemu_svm.machine import read_machine
from qemu_svm.source import BytesSource, open_source
from qemu_svm.source.details import LibvirtDetails, SnapshotDetails
from qemu_svm.source.libvirt import domain_names
from qemu_svm.source.qcow2 import open_snapshot
from qemu_svm.source.structs import SAVE_IMAGES, QcowHeader, QcowHeader3, Snapshot
from qemu_svm.stream import Walk, read_stream
from tests.conftest import Run

DATA = Path(__file__).parent / "data"
XML = b"<domain><name>a</name></domain>"


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def lzop(data: bytes) -> bytes:
    return subprocess.run(["lzop", "-c"], input=data, capture_output=True, check=True).stdout


PACKERS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "none": (0, bytes),
    "gzip": (1, gzip.compress),
    "bzip2": (2, bz2.compress),
    "xz": (3, lambda data: lzma.compress(data, preset=0)),
    "lzop": (4, lzop),
    "zstd": (5, zst),
}


def save_image(payload: bytes, form: int = 0, **changes: Any) -> bytes:
    data = XML + b"\0" + b"<cookie/>\0" + bytes(1000)
    fields = {
        "magic": b"LibvirtQemudSave",
        "version": 2,
        "data_length": len(data),
        "was_running": 1,
        "format": form,
        "cookie_offset": len(XML) + 1,
        "unused": bytes(56),
    }
    order = changes.pop("order", "little")
    return SAVE_IMAGES[order].build({**fields, **changes}) + data + payload


def whole(path: Path | str) -> bytes:
    with open_source(str(path)) as source:
        return source.read_at(0, source.size())


# libvirt


@pytest.mark.qemu
@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("order", ["little", "big"])
def test_every_libvirt_format(name: str, order: str, sample: bytes, tmp_path: Path) -> None:
    form, pack = PACKERS[name]
    path = tmp_path / "a.save"
    path.write_bytes(save_image(pack(sample), form, order=order))
    with open_source(str(path)) as source:
        assert (source.container, source.compression) == ("libvirt", name)
        assert source.stream_offset == 92 + len(XML) + 1 + 1010
        assert source.read_at(0, source.size()) == sample
        details = source.details
        assert isinstance(details, LibvirtDetails)
        assert (details.byte_order, details.version, details.finished) == (order, 2, True)
        assert (details.xml, details.cookie) == (XML.decode(), "<cookie/>")


@pytest.mark.qemu
@pytest.mark.parametrize("name", ["raw", "xz", "lzop"])
def test_images_of_libvirt_itself(name: str) -> None:
    with open_source(str(DATA / f"libvirt9.0-{name}.save.zst")) as source:
        stream = read_stream(source)
        assert stream.complete
        assert not stream.problems
        assert len(read_machine(stream).vcpus) == 1
        details = source.details
        assert isinstance(details, LibvirtDetails)
        assert details.format == name
        assert "<name>svmstream-test</name>" in details.xml
        assert details.cookie is not None
        assert details.cookie.startswith("<cookie>")


def test_version_1_and_an_unfinished_save(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.save"
    path.write_bytes(
        save_image(sample, 99, magic=b"LibvirtQemudPart", version=1, cookie_offset=9999)
    )
    with open_source(str(path)) as source:
        details = source.details
        assert isinstance(details, LibvirtDetails)
        assert (details.version, details.format, details.finished) == (1, "raw", False)
        assert len(details.notes) == 2
        assert source.size() == len(sample)


def test_sparse_knows_its_place_in_the_file(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.save"
    path.write_bytes(save_image(sample, 6))
    for name in (path, tmp_path / "a.save.zst"):
        (tmp_path / "a.save.zst").write_bytes(zst(path.read_bytes()))
        with open_source(str(name)) as source:
            assert source.stream_offset == 92 + len(XML) + 1011


@pytest.mark.parametrize(
    ("xml", "names"),
    [
        ("<domain><name>a</name><uuid> 1-2 </uuid></domain>", ("a", " 1-2 ")),
        ("<x><domain type='kvm'><os><name>no</name></os><name>b&amp;c</name></domain></x>",
         ("b&c", None)),
        ("<domain><name>a</name><name>second</name></domain>", ("a", None)),
        ("<!DOCTYPE d [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>", (None, None)),
        ("<domain><name>a</name>", (None, None)),
        ("", (None, None)),
        ("\ud800", (None, None)),
    ],
)  # fmt: skip
def test_the_names_in_a_domains_xml(xml: str, names: tuple[str | None, str | None]) -> None:
    assert domain_names(xml) == names


@given(st.text(max_size=200))
def test_any_text_gives_names_or_none(xml: str) -> None:
    assert len(domain_names(f"<domain>{xml}</domain>")) == 2


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (save_image(b"", version=7), "version"),
        (save_image(b"", version=0), "version"),
        (save_image(b"")[:50], "ends inside the libvirt header"),
        (save_image(b"")[:200], "ends inside the XML"),
        (save_image(b"", data_length=1 << 31), "XML"),
        (save_image(bytes(100), 1), "but found 00 00"),
    ],
)
def test_wrong_libvirt_headers(image: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.save"
    path.write_bytes(image)
    with pytest.raises(SourceError, match=message):
        open_source(str(path))


def test_lzop_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\x89LZO\x00\r\n\x1a\n" + bytes(100))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SourceError, match="not installed"):
        open_source(str(path))


@pytest.mark.qemu
def test_cut_lzop_is_damage(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.lzo"
    path.write_bytes(lzop(sample)[:-1000])
    with open_source(str(path)) as source:
        size = source.size()
        assert source.read_at(0, size) == sample[:size]
        assert "lzop" in str(source.damage)


# qcow2


@pytest.mark.parametrize(
    "name", ["qemu7.2-two-snapshots", "qemu10.0-extended-l2", "qemu7.2-version2-4k"]
)
def test_snapshots_of_real_images(name: str, tmp_path: Path) -> None:
    packed = DATA / f"{name}.qcow2.zst"
    path = tmp_path / "a.qcow2"
    path.write_bytes(zstandard.ZstdDecompressor().decompressobj().decompress(packed.read_bytes()))
    with pytest.raises(SourceError, match=r"2 snapshots.*id 1 'first'.*id 2 'second'"):
        open_source(str(path))
    for wanted in ("first", "2"):
        with open_source(f"{path}#{wanted}") as source, open_source(f"{packed}#{wanted}") as other:
            stream = read_stream(source, walk=Walk.RAM)
            assert stream.complete
            assert not stream.problems
            assert len(read_machine(stream).vcpus) == 1
            assert source.container == other.container == "qcow2"
            assert (source.compression, other.compression) == ("none", "zstd")
            details = source.details
            assert isinstance(details, SnapshotDetails)
            assert (details.disk_size, details.vm_state_size) == (8 << 20, source.size())
            assert source.read_at(0, 1 << 20) == other.read_at(0, 1 << 20)
    with pytest.raises(SourceError, match=r"a\.qcow2' holds 0 snapshots called 'third'") as info:
        open_source(f"{path}#third")
    assert info.value.hint == f"choose one with '{path}#NAME' or '{path}#ID'"


def test_an_image_without_vm_state_names_no_snapshot_to_take() -> None:
    image = made_image(b"QEVM", state=0)
    with pytest.raises(SourceError, match="0 snapshots with VM state: id 0 's0'") as info:
        open_snapshot(BytesSource(image), None)
    assert info.value.hint == "the VM state is in another image of the guest"


def made_image(
    payload: bytes, *, bits: int = 12, kind: str = "plain", count: int = 1, state: int | None = None
) -> bytes:
    """An image by hand: header, table of snapshots, one L1, one L2, clusters."""
    size = 1 << bits
    state = len(payload) if state is None else state
    version = 3 if kind == "zstd" else 2
    head = QcowHeader.build(
        {
            "version": version, "backing_file_offset": 0, "backing_file_size": 0,
            "cluster_bits": bits, "size": 0, "crypt_method": 0, "l1_size": 0,
            "l1_table_offset": 0, "refcount_table_offset": 0, "refcount_table_clusters": 0,
            "nb_snapshots": count, "snapshots_offset": size,
        }
    )  # fmt: skip
    if version == 3:
        head += QcowHeader3.build(
            {
                "incompatible_features": 8, "compatible_features": 0, "autoclear_features": 0,
                "refcount_order": 4, "header_length": 112,
            }
        )  # fmt: skip
        head += b"\1" + bytes(7)
    table = b""
    for index in range(count):
        name = f"s{index}".encode()
        table += Snapshot.build(
            {
                "l1_table_offset": 2 * size, "l1_size": 1, "id_size": len(name) - 1,
                "name_size": len(name), "seconds": 0, "nanoseconds": 0, "vm_clock_ns": 0,
                "vm_state_size": state, "extra_size": 0,
            }
        )  # fmt: skip
        table += name[1:] + name
        table += bytes(-len(table) % 8)
    entries, data, at = [], b"", 4 * size
    for start in range(0, len(payload), size):
        piece = payload[start : start + size].ljust(size, b"\0")
        if kind != "plain" and not any(piece):
            entries.append(0)
        elif kind == "plain":
            entries.append(at + len(data))
            data += piece
        else:
            if kind == "zstd":
                packed = zst(piece)
            else:
                deflate = zlib.compressobj(wbits=-12)
                packed = deflate.compress(piece) + deflate.flush()
            where = at + len(data)
            sectors = (where % 512 + len(packed) - 1) // 512
            entries.append(1 << 62 | sectors << (62 - (bits - 8)) | where)
            data += packed
    blocks = [head, table, struct.pack(">Q", 3 * size)]
    blocks.append(b"".join(struct.pack(">Q", entry) for entry in entries))
    return b"".join(block.ljust(size, b"\0") for block in blocks) + data


@pytest.mark.parametrize("kind", ["plain", "deflate", "zstd"])
@given(
    pieces=st.lists(st.sampled_from([bytes(4096), b"abc" * 3000, os.urandom(4096)]), max_size=6),
    at=st.integers(0, 20000),
    size=st.integers(0, 20000),
)
@settings(max_examples=40)
def test_clusters_by_hand(kind: str, pieces: list[bytes], at: int, size: int) -> None:
    payload = b"QEVM" + b"".join(pieces)
    image = made_image(payload, kind=kind)
    with open_snapshot(BytesSource(image), None) as source:
        assert source.read_at(at, size) == payload[at : at + size]
        assert source.damage is None


@pytest.mark.parametrize("kind", ["plain", "deflate"])
def test_a_cut_image_ends_the_stream(kind: str) -> None:
    payload = os.urandom(40000)
    image = made_image(payload, kind=kind)
    with open_snapshot(BytesSource(image[:-9000]), None) as source:
        got = source.read_at(0, 50000)
        assert 20000 < len(got) == source.size() < 40000
        assert got == payload[: len(got)]
        assert "offset" in str(source.damage)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (4, 9, "version 9"),
        (20, 40, "cluster size"),
        (32, 2, "encrypted"),
        (60, 1 << 20, "snapshots"),
        (60, 0, "without internal snapshots"),
        (68, 1 << 30, "ends before entry 0"),
        (4096 + 4, 2048 + 1, "L1 table"),
        (4096 + 8, 1 << 30, "L1 table"),
        (4096 + 36, 5000, "extra data"),
        (4096 + 32, 1 << 31, "VM state"),
        (4096 + 32, 0, "0 snapshots with VM state"),
    ],
)
def test_wrong_qcow2_headers(offset: int, value: int, message: str) -> None:
    image = bytearray(made_image(b"QEVM" * 3000))
    image[offset : offset + 4] = value.to_bytes(4, "big")
    with pytest.raises(SourceError, match=message):
        open_snapshot(BytesSource(bytes(image)), None)


# streams at an offset, layers, names


def test_a_stream_at_an_offset(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "dump#1"
    path.write_bytes(b"x" * 0x11000 + sample)
    for name in (f"{path}", f"{path}#@0x11000"):
        with open_source(name) as source:
            assert (source.container, source.stream_offset) == ("plain", 0x11000)
            assert source.read_at(0, source.size()) == sample
    odd = tmp_path / "odd"
    odd.write_bytes(zst(b"x" * 77 + gzip.compress(sample)))
    assert whole(f"{odd}#@77") == sample
    with pytest.raises(SourceError, match="not an offset"):
        open_source(f"{path}#@x")
    with pytest.raises(SourceError, match="not a qcow2"):
        open_source(f"{path}#first")


def test_layers(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(zst(save_image(gzip.compress(bz2.compress(sample)), 1)))
    with open_source(str(path)) as source:
        assert source.layers == ("zstd", "libvirt", "gzip", "bzip2")
        assert (source.container, source.compression) == ("libvirt", "bzip2")
        assert source.read_at(0, source.size()) == sample
    data = sample
    for _ in range(5):
        data = zst(data)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="more than 4 times"):
        open_source(str(path))


@pytest.mark.parametrize("kind", ["libvirt", "sparse", "qcow2", "offset", "nested"])
def test_standard_input(kind: str, sample: bytes, command: Run) -> None:
    name = "-"
    if kind == "qcow2":
        data = made_image(sample, bits=16, count=2)
        name = "/dev/stdin#s1"
    elif kind == "offset":
        data = bytes(8192) + sample
    elif kind == "nested":
        data = gzip.compress(zst(sample))
    else:
        data = save_image(sample, 6 if kind == "sparse" else 0)
    plain = command("inspect", "--json", "-", input=sample)
    inside = command("inspect", "--json", name, input=data)
    text = command("inspect", name, input=data)
    assert inside.returncode == text.returncode == plain.returncode
    cut = inside.stdout.index(b'"stream": {')
    assert inside.stdout[cut:] == plain.stdout[plain.stdout.index(b'"stream": {') :]
    if kind == "libvirt":
        assert XML in text.stdout


@pytest.fixture(scope="module")
def wrapped(sample: bytes) -> dict[str, bytes]:
    return {
        "libvirt": save_image(gzip.compress(sample[:20000]), 1),
        "qcow2": made_image(sample[:50000], bits=12, count=2),
        "deflate": made_image(sample[:50000], bits=12, kind="deflate"),
    }


@pytest.mark.parametrize("kind", ["libvirt", "qcow2", "deflate"])
@given(
    flips=st.lists(st.tuples(st.integers(0, 16800), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 60000),
    head=st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flips_and_cuts_give_only_our_errors(
    kind: str, flips: list[tuple[int, int]], cut: int, head: bool,
    wrapped: dict[str, bytes], tmp_path: Path,
) -> None:  # fmt: skip
    image = bytearray(wrapped[kind])
    for at, value in flips:
        image[at % (128 if head else len(image))] ^= value
    path = tmp_path / "image"
    path.write_bytes(image if head else image[:cut])
    messages = []
    for name in (str(path), f"{path}#s0"):
        try:
            with open_source(name) as source:
                read_stream(source)
        except (SourceError, StreamError) as error:
            messages.append(str(error))
    assert all(messages)


def test_descriptors_are_given_back(sample: bytes, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    path = tmp_path / "a"
    for data in (save_image(gzip.compress(sample), 1), made_image(sample, bits=16), b"\0" * 9000):
        path.write_bytes(data)
        open_source(str(path)).close()
        with pytest.raises(SourceError):
            open_source(f"{path}#nothing")
    assert len(os.listdir("/proc/self/fd")) == before
