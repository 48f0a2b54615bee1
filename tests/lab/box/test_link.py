"""What a box sends is hostile input: each frame is one that the protocol has, or the box ends."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import LabError
from qemu_svm.lab.box.command import Command, Done
from qemu_svm.lab.box.inside import frames
from qemu_svm.lab.box.link import Link, LinkChannel

HELLO = frames.document(0, frames.HELLO, {"kvm": True})
DATA = bytes(frames.CHUNK)


async def lost() -> LabError:
    return LabError("the box is lost")


def answered(sent: bytes) -> tuple[Link, Done | LabError]:
    """Run a command in a box that sends these bytes, and closes the connection."""

    async def talk() -> tuple[Link, Done | LabError]:
        ours, theirs = socket.socketpair()
        link = Link(*await asyncio.open_connection(sock=ours))
        reader, writer = await asyncio.open_connection(sock=theirs)
        channel = LinkChannel(link, {"argv": ["true"]})
        command = Command(channel, ["true"], None, lost)
        writer.write(sent)
        writer.write_eof()
        try:
            async with asyncio.timeout(10):
                return link, await command._end
        except LabError as error:
            return link, error
        finally:
            writer.close()
            await link.close()
            del reader

    return asyncio.run(talk())


def document(kind: int, value: object) -> bytes:
    return frames.frame(1, kind, json.dumps(value).encode())


def test_what_a_box_may_send() -> None:
    sent = HELLO + frames.frame(1, frames.DATA, b"out") + frames.frame(1, frames.ERRORS, b"err")
    sent += frames.frame(1, frames.END) + frames.count(1, frames.ROOM, 7)
    sent += frames.frame(9, 77, b"a channel that is closed") + document(frames.EXIT, {"status": 3})
    link, done = answered(sent)
    assert done == Done(3, b"out", b"err")
    assert link.violation is None


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (frames.HEADER.pack(1, frames.DATA, frames.CHUNK + 1), "frame too long"),
        (frames.frame(1, 77, b"x"), "a frame of kind 77"),
        (frames.frame(1, frames.HELLO, b"{}") * 2, "a frame of kind 20"),
        (frames.frame(1, frames.PONG), "a frame of kind 24"),
        (frames.frame(1, 0), "a frame of kind 0"),
        (frames.frame(1, frames.END) * 2, "a second end"),
        (frames.frame(1, frames.ROOM, b"12345"), "4 bytes"),
        (frames.frame(0, frames.HELLO, b"[" * 60000), "expected JSON"),
        (frames.frame(0, frames.HELLO, b"9" * 60000), "expected JSON"),
        (frames.frame(0, frames.GONE, b"7"), "expected a JSON object"),
    ],
    ids=range(10),
)
def test_what_violates_the_protocol(sent: bytes, says: str) -> None:
    link, error = answered(sent)
    assert isinstance(error, LabError)
    assert link.violation is not None
    assert says in link.violation


def test_no_more_is_kept_than_was_granted() -> None:
    async def flood() -> str | None:
        ours, theirs = socket.socketpair()
        link = Link(*await asyncio.open_connection(sock=ours))
        channel = LinkChannel(link, {"connect": "/x"})
        _, writer = await asyncio.open_connection(sock=theirs)
        # Nobody reads the channel.
        writer.write(frames.frame(1, frames.DATA) * 10_000)
        for _ in range(frames.WINDOW // frames.CHUNK + 1):
            writer.write(frames.frame(1, frames.DATA, DATA))
        async with asyncio.timeout(10):
            await link.lost.wait()
        assert channel._frames.qsize() <= frames.WINDOW // frames.CHUNK + 1
        writer.close()
        await link.close()
        return link.violation

    assert asyncio.run(flood()) == "more data than was granted"


@pytest.mark.parametrize(
    "last",
    [
        document(frames.EXIT, {}), document(frames.EXIT, {"status": "0"}),
        document(frames.EXIT, {"status": 10**40}), document(frames.EXIT, {"status": True}),
        document(frames.EXIT, [0]), frames.frame(1, frames.EXIT, b"\xff"),
        frames.frame(1, frames.REFUSED, b""), b"",
    ],
)  # fmt: skip
def test_an_end_that_is_none(last: bytes) -> None:
    _, error = answered(last)
    assert isinstance(error, LabError)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from([1, 2, 3, 10, 14, 20, 21, 22, 23, 24, 30, 200]),
            st.binary(max_size=40) | st.sampled_from([b"{}", b'{"status": 1}', b"\1\0\0\0"]),
        ),
        max_size=12,
    )
)
def test_any_frames_end_in_a_result_or_in_our_error(sent: list[tuple[int, int, bytes]]) -> None:
    _, found = answered(b"".join(frames.frame(*one) for one in sent))
    assert isinstance(found, Done | LabError)
