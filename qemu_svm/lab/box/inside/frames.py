"""Frames between the host and the agent inside the box.

One virtio-serial port carries any number of channels; a channel is a running
command or a connection to a socket.  A frame is a header (channel, kind,
length; little endian, 9 bytes) and at most :data:`CHUNK` bytes.

Neither side sends more than :data:`WINDOW` bytes of data on a channel before
the other one has granted more room, so a slow reader delays only its own
channel, and buffers are bounded.

The agent imports this file inside the box: standard library, Python 3.9.
"""

from __future__ import annotations

import json
import struct
from typing import Any

HEADER = struct.Struct("<IBI")
CHUNK = 1 << 16
WINDOW = 1 << 19
_COUNT = struct.Struct("<I")

# Both ways
DATA = 1  # bytes: stdin or stdout of a command, or of a connection
END = 2  # no more DATA from this side
ROOM = 3  # u32: the other side may send so many bytes more
# From the host
OPEN = 10  # JSON: {"argv", "cwd", "env", "stdin", "tty"} or {"connect"}
SIGNAL = 11  # u32: a signal for the command's process group
RESIZE = 12  # JSON: [rows, columns] of the terminal
CLOSE = 13  # remove the channel; the command in it is killed
PING = 14
# From the agent
HELLO = 20  # JSON, channel 0: the box is ready
ERRORS = 21  # bytes: stderr of a command
EXIT = 22  # JSON: {"status"}; the channel has ended
REFUSED = 23  # JSON: {"error"}; the channel was not opened
PONG = 24
# From the owner of a box to other processes that use it
GONE = 30  # JSON: {"error"}, channel 0: why the box has died


class FrameError(Exception):
    """The received bytes are not a frame."""


def frame(channel: int, kind: int, payload: bytes = b"") -> bytes:
    """Return the bytes of a frame."""
    return HEADER.pack(channel, kind, len(payload)) + payload


def document(channel: int, kind: int, value: Any) -> bytes:
    """Return the bytes of a frame whose payload is JSON."""
    return frame(channel, kind, json.dumps(value).encode())


def count(channel: int, kind: int, value: int) -> bytes:
    """Return the bytes of a frame whose payload is one number."""
    return frame(channel, kind, _COUNT.pack(value))


def number(payload: bytes) -> int:
    """Return the number in the payload of :func:`count`.

    :raises FrameError: the payload has another size.
    """
    try:
        return int(_COUNT.unpack(payload)[0])
    except struct.error as error:
        raise FrameError(f"expected a number of 4 bytes, found {len(payload)} bytes") from error


def value(payload: bytes) -> dict[str, Any]:
    """Return the JSON object in the payload of :func:`document`.

    :raises FrameError: the payload is something else.
    """
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise FrameError("expected JSON") from error
    if not isinstance(found, dict):
        raise FrameError("expected a JSON object")
    return found


class Reader:
    """Splits a stream of bytes into frames."""

    def __init__(self) -> None:
        self._left = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Add received bytes; return the frames that are complete now: channel, kind, payload.

        :raises FrameError: a frame is longer than :data:`CHUNK`.
        """
        left = self._left
        left += data
        found = []
        at = 0
        while len(left) - at >= HEADER.size:
            channel, kind, length = HEADER.unpack_from(left, at)
            if length > CHUNK:
                raise FrameError(f"frame too long: {length} bytes, the limit is {CHUNK}")
            end = at + HEADER.size + length
            if end > len(left):
                break
            found.append((channel, kind, bytes(left[at + HEADER.size : end])))
            at = end
        del left[:at]
        return found
