"""Files that get their names when they are complete, all or none.

Until then they carry a hidden name in the same directory; :meth:`Output.close`
removes what was not committed.  Companions are named before the main file, so
who sees the main file sees all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable
from types import TracebackType
from typing import Self


class Output:
    """A file and its companions, which have a suffix behind its name.

    :param suffixes: of companions that may come.
    :param replace: existing files may be replaced.
    :raises FileExistsError: the name is taken and ``replace`` is not set.
    :raises OSError: the directory cannot be written.
    """

    def __init__(self, path: str, suffixes: Iterable[str] = (), *, replace: bool = False) -> None:
        self.path = path
        self.descriptors: dict[str, int] = {}
        self._replace = replace
        self._temporary: dict[str, str] = {}
        self._directory = os.path.dirname(path) or "."
        for suffix in ("", *suffixes):
            self._refuse(path + suffix)
        self.create("")

    def create(self, suffix: str) -> int:
        """Make a file for ``path + suffix``; return a descriptor to read and write it."""
        self._refuse(self.path + suffix)
        name = os.path.join(
            self._directory, f".{os.path.basename(self.path)[:100]}.{secrets.token_hex(6)}.part"
        )
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptors[suffix] = os.open(name, flags, 0o600)
        self._temporary[suffix] = name
        return self.descriptors[suffix]

    def writer(self) -> int:
        """Return another descriptor of the main file, for writing only."""
        return os.open(self._temporary[""], os.O_WRONLY | os.O_CLOEXEC)

    @property
    def temporary(self) -> str:
        """The hidden name of the main file."""
        return self._temporary[""]

    def commit(self) -> tuple[str, ...]:
        """Write everything to the disk and give the files their names; return these.

        :raises OSError: nothing got its name.
        """
        suffixes = sorted(self._temporary, reverse=True)  # the main file, "", is the last
        for suffix in suffixes:
            os.fsync(self.descriptors[suffix])
        named: list[str] = []
        try:
            for suffix in suffixes:
                self._name(suffix)
                named.append(self.path + suffix)
            self._sync_directory()
        except OSError:
            for name in named:
                os.unlink(name)
            raise
        return tuple(reversed(named))

    def close(self) -> None:
        """Remove what has no name yet."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors = {}
        for name in self._temporary.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        self._temporary = {}

    def _refuse(self, name: str) -> None:
        if not self._replace and os.path.lexists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        if os.path.isdir(name):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)

    def _name(self, suffix: str) -> None:
        temporary, name = self._temporary[suffix], self.path + suffix
        if self._replace:
            os.rename(temporary, name)
        else:
            # Unlike a rename, a link never replaces anything.
            os.link(temporary, name, follow_symlinks=False)
            os.unlink(temporary)
        del self._temporary[suffix]

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Standard(Output):
    """Standard output in place of a file: one stream, and no name to wait for."""

    def __init__(self) -> None:
        self.path = "-"
        self.descriptors = {"": os.dup(1)}
        self._temporary = {}

    def commit(self) -> tuple[str, ...]:
        """Nothing is left to do."""
        return (self.path,)
