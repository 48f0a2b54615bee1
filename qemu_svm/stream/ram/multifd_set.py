"""Whether the multifd channels at hand are those of a stream, and all of them.

Packets are numbered from 0 in all channels together together.  Before 9.0 a number may be
there twice, and another one not at all, but the sender counts on: if there are fewer
than the highest number says, a channel is missing.  Each SYNC is sent over every
channel, for one mark of the main stream.

Seen in streams of QEMU 5.2, 7.2, 10.0 and 11.1 with two to eight channels, of guests
that went on writing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qemu_svm.errors import Malformed, StreamError, Truncated
from qemu_svm.stream.ram.multifd import Channel

_HINT = "pass the file of each channel with --channel (diff: --channel-a, --channel-b)"


def channels_wanted(end: int) -> StreamError:
    """The error for a stream whose pages went over channels that are not at hand.

    :param end: of the main stream.
    """
    return Truncated(
        "the pages of this stream were sent over multifd channels",
        offset=end,
        section="ram",
        hint=_HINT,
    )


def disagreements(channels: Sequence[Channel], marks: int, end: int) -> Iterator[StreamError]:
    """What shows that the channels are not all, or not of this stream.

    :param channels: read to their ends.
    :param marks: of the main stream, which is complete.
    :param end: of the main stream.
    """
    numbers = [channel.number for channel in channels]
    twice = next((number for number in numbers if numbers.count(number) > 1), None)
    if twice is not None:
        yield _wrong(f"multifd channel {twice} is given twice", twice, "each channel once")
        return
    for channel in channels:
        if channel.uuid != channels[0].uuid:
            yield _wrong(
                "the multifd channels belong to different guests",
                channel.number,
                channels[0].uuid.hex(),
                channel.uuid.hex(),
            )
            return
        if channel.epochs != marks:
            yield _wrong(
                "a multifd channel does not belong to this stream",
                channel.number,
                f"{marks} SYNC packets, one for each mark in the stream",
                f"{channel.epochs}",
            )
            return
    sent = sum(channel.jobs for channel in channels)
    numbered = 1 + max((channel.highest for channel in channels), default=-1)
    if sent < numbered:
        yield Truncated(
            "packets of multifd channels are missing",
            offset=end,
            section="ram",
            expected=f"{numbered} in all channels together",
            found=f"{sent} in {len(channels)}",
            hint=_HINT,
        )


def _wrong(what: str, number: int, expected: str, found: str | None = None) -> Malformed:
    return Malformed(
        what,
        offset=0,
        section=f"multifd channel {number}",
        expected=expected,
        found=found,
    )
