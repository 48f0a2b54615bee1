"""Addresses of QMP sockets: ``unix:PATH``, ``PATH``, ``tcp:HOST:PORT``, ``HOST:PORT``.

The forms are those of QEMU's ``-qmp`` option.  IPv6 hosts are in brackets.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from qemu_svm.errors import QmpError

_DIGITS = 5
_LONGEST_PATH = 107
"""Bytes in ``sockaddr_un.sun_path`` on Linux, without the final NUL."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a QMP server listens: a path, or a host and a port."""

    path: str | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"

    @property
    def target(self) -> str | tuple[str, int] | socket.socket:
        """The address in the form that :mod:`qemu.qmp` expects."""
        return self.path if self.path is not None else (self.host, self.port)

    @property
    def options(self) -> str:
        """Options of the command line that name it."""
        return f"--qmp {self}"

    @property
    def identity(self) -> str:
        """One text for all names of the same socket."""
        return str(self) if self.path is None else os.path.realpath(self.path)

    @property
    def passes(self) -> bool:
        """Whether file descriptors can be passed: over UNIX sockets only."""
        return self.path is not None


@dataclass(frozen=True, slots=True)
class Pair(Address):
    """One end of a socket pair; the other end was inherited by a QEMU of ours.  Used once.

    :param end: owned by the connection from then on.
    """

    end: socket.socket = field(kw_only=True)

    def __str__(self) -> str:
        return "our own QEMU"

    @property
    def target(self) -> socket.socket:
        """Our end."""
        return self.end


def parse_address(text: str) -> Address:
    """Parse an address.

    :raises QmpError: the text has none of the forms, or the path is too long.
    """
    # QEMU's own options after a comma (server=on,wait=off) are often copied along.
    bare = text.split(",", 1)[0]
    if bare.startswith("unix:"):
        return _unix(bare.removeprefix("unix:"), text)
    host, colon, port = bare.removeprefix("tcp:").rpartition(":")
    if not bare.startswith("tcp:") and ("/" in bare or not colon or not port.isdecimal()):
        return _unix(text, text)
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or len(port) > _DIGITS or not 0 < int(port) < 1 << 16:
        raise _invalid(text)
    return Address(host=host or "localhost", port=int(port))


def _unix(path: str, text: str) -> Address:
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise _invalid(text) from None
    if not path or "\0" in path:
        raise _invalid(text)
    if size > _LONGEST_PATH:
        raise QmpError(
            f"'{path}' is too long for a UNIX socket: {size} bytes, the limit is {_LONGEST_PATH}",
            hint="use a relative path, or a symbolic link",
        )
    return Address(path=path)


def _invalid(text: str) -> QmpError:
    return QmpError(f"invalid QMP address '{text}'", hint="expected unix:PATH or HOST:PORT")
