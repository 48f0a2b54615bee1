"""lzop data through the external program, if it is installed.

Python has no library for it.  The program is started without a shell, fed and read
in one loop, and killed when the source is closed.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from contextlib import suppress

from qemu_svm.errors import SourceError
from qemu_svm.limits import KIB
from qemu_svm.source.feed import Feed

_STEP = 64 * KIB


class Lzop:
    """A feed decompressed by ``lzop -dc``.

    :raises SourceError: the program is not installed.
    """

    def __init__(self, feed: Feed) -> None:
        program = shutil.which("lzop")
        if program is None:
            raise SourceError(
                f"'{feed.path}' holds lzop data, and the program 'lzop' is not installed",
                hint="install lzop, or decompress to a file first",
            )
        self._feed = feed
        self._pending = b""
        self._process = subprocess.Popen(
            [program, "-dc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; ``b""`` at the end.

        :raises SourceError: the data is damaged or truncated.
        """
        while True:
            writing = [] if self._stdin.closed else [self._stdin]
            readable, writable, _ = select.select([self._stdout], writing, [])
            if readable:
                data = os.read(self._stdout.fileno(), min(size, _STEP))
                if not data and self._process.wait() != 0:
                    raise SourceError(
                        f"the lzop data of '{self._feed.path}' is damaged or truncated"
                    )
                return data
            if writable:
                self._write()

    def _write(self) -> None:
        self._pending = self._pending or self._feed.read(_STEP)
        try:
            if self._pending:
                written = os.write(self._stdin.fileno(), self._pending)
                self._pending = self._pending[written:]
                return
        except BlockingIOError:
            return
        except BrokenPipeError:
            pass  # it ended early; its exit status says why
        with suppress(BrokenPipeError):
            self._stdin.close()

    def close(self) -> None:
        """Kill the program if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()
