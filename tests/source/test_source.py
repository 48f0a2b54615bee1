"""Every kind of input gives the same bytes, and damage is told."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import SourceError
from qemu_svm.limits import Limits
from qemu_svm.source import BytesSource, SpoolSource, compressed, open_source
from qemu_svm.source.plain import FileSource

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def reading(blob: bytes, compression: str) -> SpoolSource:
    read = compressed.reader(io.BytesIO(blob), compression, "test")
    return SpoolSource(read, "test", compression=compression, limit=1 << 30)


@pytest.mark.parametrize("name", COMPRESSORS)
@given(data=st.binary(max_size=5000), more=st.binary(min_size=1, max_size=100))
@settings(max_examples=30)
def test_what_is_compressed_comes_back(name: str, data: bytes, more: bytes) -> None:
    # Two members behind each other are one input, as the programs have it.
    blob = COMPRESSORS[name](data) + COMPRESSORS[name](more)
    assert compressed.sniff(blob) == name
    with reading(blob, name) as source:
        assert source.size() == len(data) + len(more)
        assert source.read_at(0, len(data)) == data
        assert source.read_at(len(data), 1000) == more
        assert source.damage is None


@pytest.mark.parametrize("name", COMPRESSORS)
def test_cut_input_gives_what_came_before(name: str) -> None:
    data = os.urandom(200_000)
    blob = COMPRESSORS[name](data)
    with reading(blob[: len(blob) // 2], name) as source:
        size = source.size()
        assert source.read_at(0, size) == data[:size]
        assert source.damage is not None
        assert "truncated" in str(source.damage)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_damaged_input_is_told(name: str) -> None:
    blob = bytearray(COMPRESSORS[name](b"svmstream " * 5000))
    blob[len(blob) // 2 :] = bytes(len(blob) - len(blob) // 2)
    with reading(bytes(blob), name) as source:
        source.size()
        assert source.damage is not None


@pytest.mark.parametrize("name", COMPRESSORS)
def test_files_are_recognised_by_content(name: str, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(COMPRESSORS[name](b"QEVM" * 1000))
    with open_source(str(path)) as source:
        assert source.compression == name
        assert source.read_at(4, 4) == b"QEVM"
        assert source.read_at(3999, 10) == b"M"


def test_plain_file_is_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(b"QEVM" + bytes(100))
    with open_source(str(path)) as source:
        assert (source.compression, source.size()) == ("none", 104)
        assert source.read_at(102, 50) == bytes(2)
        assert source.read_at(1000, 5) == b""
    source.close()  # a second time does nothing


def test_a_fifo_is_spooled(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    if os.fork() == 0:
        fifo.write_bytes(b"QEVM" + bytes(3_000_000))
        os._exit(0)
    with open_source(str(fifo)) as source:
        assert source.read_at(2_000_000, 4) == bytes(4)
        assert source.read_at(0, 4) == b"QEVM"
        assert source.size() == 3_000_004
    os.wait()


def test_spool_stops_at_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    with open_source(str(path), Limits(spool_bytes=1_000_000)) as source:
        assert source.size() <= 1_000_000
        assert "spool_bytes" in str(source.damage.hint if source.damage else "")


def test_spool_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with SpoolSource(io.BytesIO(bytes(20_000_000)).read, "test", limit=1 << 30) as source:
        assert source.size() == 20_000_000
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SpoolSource(io.BytesIO(bytes(100)).read, "test", limit=1 << 30)

    def full(_data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(source._file, "write", full)
    with pytest.raises(SourceError, match="No space left"):
        source.read_at(0, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "directory"),
    ],
)
def test_what_cannot_be_opened(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path / "x"))


def test_bytes_source() -> None:
    with BytesSource(b"abc") as source:
        assert (source.read_at(1, 9), source.size(), source.path) == (b"bc", 3, "<memory>")


def test_bombs_stay_small_in_memory() -> None:
    # 64 MiB out of a few KiB: no single read may return much more than asked.
    for name, compress in COMPRESSORS.items():
        read = compressed.reader(io.BytesIO(compress(bytes(64 << 20))), name, "bomb")
        assert max(len(read(1 << 16)) for _ in range(4)) <= 1 << 18, name


@pytest.mark.parametrize("bits", [40, 62, 63, 64, 200])
@pytest.mark.parametrize("packed", [False, True])
def test_nothing_is_where_no_file_reaches(bits: int, packed: bool, tmp_path: Path) -> None:
    # A length or an offset in a damaged stream may be any 64-bit number.
    path = tmp_path / "stream"
    path.write_bytes(gzip.compress(b"QEVM" * 9) if packed else b"QEVM" * 9)
    with open_source(str(path)) as source:
        for offset in ((1 << bits) - 5, 1 << bits):
            assert source.read_at(offset, 10) == b""


def test_a_disk_that_does_not_give_its_bytes() -> None:
    source = FileSource(os.open("/proc/self/mem", os.O_RDONLY), "disk")  # nothing is at 0
    with source, pytest.raises(SourceError, match="cannot read 'disk': Input/output error"):
        source.read_at(0, 8)
