"""Whether the given multifd channels are all channels of a stream.

Packets are numbered from 0 in all channels together.  Before 9.0 one number may be
used twice and another one not at all, but the count is right: if there are fewer
packets than the highest number implies, a channel is missing.  Each SYNC is sent over
every channel, for one mark in the main stream.

Verified on streams of QEMU 5.2, 7.2, 10.0 and 11.1 with two to eight channels, of
guests that wrote memory meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qemu_svm.errors import Malformed, StreamError, Truncated
from qemu_svm.stream.ram.multifd import Channel

_HINT = "pass the file of each channel with --channel (diff: --channel-a, --channel-b)"


def channels_wanted(end: int) -> StreamError:
    """Return the error for a stream whose channels were not given.

    :param end: offset of the end of the main stream.
    """
    return Truncated(
        "the pages of this stream were sent over multifd channels",
        offset=end,
        section="ram",
        hint=_HINT,
    )


def disagreements(channels: Sequence[Channel], marks: int, end: int) -> Iterator[StreamError]:
    """Yield what shows that channels are missing or belong to another stream.

    :param channels: read to their ends.
    :param marks: of the main stream, which is complete.
    :param end: offset of the end of the main stream.
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
