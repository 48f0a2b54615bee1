"""Frames survive any chunking; what is not one is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.lab.box.inside import frames

_FRAMES = st.lists(
    st.tuples(
        st.integers(0, 2**32 - 1),
        st.integers(0, 255),
        st.binary(max_size=300) | st.just(bytes(frames.CHUNK)),
    ),
    max_size=8,
)


@given(sent=_FRAMES, cuts=st.lists(st.integers(0, 2000), max_size=20))
def test_any_chunking_gives_the_same_frames(
    sent: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(frames.frame(*each) for each in sent)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    reader = frames.Reader()
    found = []
    for start, end in pairwise(places):
        found += reader.feed(data[start:end])
    assert found == sent


def test_a_frame_that_is_too_long_is_refused_at_its_header() -> None:
    with pytest.raises(frames.FrameError, match="65537"):
        frames.Reader().feed(frames.HEADER.pack(1, frames.DATA, frames.CHUNK + 1))


@pytest.mark.parametrize("payload", [b"", b"123", b"12345"])
def test_a_number_has_four_bytes(payload: bytes) -> None:
    with pytest.raises(frames.FrameError, match="4 bytes"):
        frames.number(payload)


@pytest.mark.parametrize("payload", [b"", b"[1]", b"\xff", b"{"])
def test_a_document_is_an_object(payload: bytes) -> None:
    with pytest.raises(frames.FrameError, match="expected"):
        frames.value(payload)
