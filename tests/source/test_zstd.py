"""zstd: cut where blocks end, so that little comes out at once; windows have a limit."""

from __future__ import annotations

import io
import lzma
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import SourceError
from qemu_svm.limits import MIB, Limits
from qemu_svm.source import compressed, open_source
from qemu_svm.source.zstd import Pieces

BLOCK = 128 << 10
RANDOM = random.Random(1).randbytes(300_000)
SKIPPABLE = bytes.fromhex("502a4d18") + (7).to_bytes(4, "little") + b"skipped"


def frame(data: bytes, *, window: int = 17, checksum: bool = True, size: bool = True) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, window_log=window, write_checksum=checksum, write_content_size=size
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    if size:
        return compressor.compress(data)
    open_end = compressor.compressobj()  # or the window would not be larger than the data
    return open_end.compress(data) + open_end.flush()


def through(blob: bytes, step: int) -> tuple[bytes, int]:
    """What comes out of ``blob``, and the most that came out at once."""
    pieces, out, most = Pieces(), [], 0
    one = zstandard.ZstdDecompressor().decompressobj()
    for at in range(0, len(blob), step):
        for piece in pieces.cut(blob[at : at + step]):
            left = piece
            while left:
                found = one.decompress(left)
                left = b""
                most = max(most, len(found))
                out.append(found)
                if one.eof:
                    left = one.unused_data
                    one = zstandard.ZstdDecompressor().decompressobj()
    return b"".join(out), most


CONTENT = st.lists(
    st.sampled_from([b"", b"x", bytes(700_000), RANDOM, b"abc" * 90_000, RANDOM[:5]]), max_size=4
)


@settings(max_examples=60)
@given(CONTENT, st.booleans(), st.booleans(), st.sampled_from([1 << 30, 65536, 1000, 333]))
def test_pieces_are_all_of_it_and_small(
    contents: list[bytes], checksum: bool, size: bool, step: int
) -> None:
    blob = b"".join(frame(part, checksum=checksum, size=size) + SKIPPABLE for part in contents)
    found, most = through(blob, step)
    assert found == b"".join(contents)
    assert most <= 2 * BLOCK


def test_the_step_does_not_matter() -> None:
    blob = frame(RANDOM + bytes(500_000)) + SKIPPABLE + frame(b"abc" * 50_000, size=False)
    cuts = []
    for step in (97, 999, 4096, 1 << 30):
        pieces = Pieces()
        made = [list(pieces.cut(blob[at : at + step])) for at in range(0, len(blob), step)]
        ends, at = set(), 0
        for number, group in enumerate(made):
            for piece in group:
                at += len(piece)
                if at != min((number + 1) * step, len(blob)):
                    ends.add(at)
        assert b"".join(b"".join(group) for group in made) == blob
        cuts.append(ends)
    assert cuts[2] <= cuts[3] | {len(blob)}
    assert len(cuts[3]) >= 8


@given(st.binary(max_size=200))
def test_any_bytes_pass_unchanged(data: bytes) -> None:
    for blob in (data, frame(b"")[:4] + data):
        assert b"".join(Pieces().cut(blob)) == blob


def test_a_cut_frame_is_told_from_a_whole_one() -> None:
    blob = frame(RANDOM)
    assert _read(blob) == RANDOM
    assert _read(blob + blob) == RANDOM + RANDOM
    for cut in (len(blob) - 1, len(blob) - 5, 20, 7, 5):
        with pytest.raises(SourceError, match="truncated"):
            _read(blob[:cut])
    with pytest.raises(SourceError, match="damaged"):
        _read(blob[:100] + b"\xff\xff\xff" + blob[103:])


def _read(blob: bytes, window: int = MIB) -> bytes:
    read = compressed.reader(io.BytesIO(blob), "zstd", "test", window)
    out = b""
    while more := read(1 << 16):
        out += more
    return out


def test_windows_have_a_limit() -> None:
    blob = frame(bytes(3 * MIB), window=21, size=False)
    assert len(_read(blob, 2 * MIB)) == 3 * MIB
    with pytest.raises(SourceError, match="window of more than 1 MiB") as error:
        _read(blob, MIB)
    assert "window_bytes" in (error.value.hint or "")


def test_the_limit_of_a_source(tmp_path: Path) -> None:

    path = tmp_path / "x"
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 16 * MIB}]
    for blob in (
        frame(bytes(99), window=24, size=False),
        lzma.compress(bytes(99), lzma.FORMAT_XZ, filters=filters),
    ):
        path.write_bytes(blob)
        with open_source(str(path), Limits(window_bytes=16 * MIB)) as source:
            assert source.size() == 99
        with open_source(str(path), Limits(window_bytes=8 * MIB)) as source:
            assert source.size() == 0
            assert "window of more than 8 MiB" in str(source.damage)
