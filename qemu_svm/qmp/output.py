"""Files that get their names when they are complete, all or none.

Until then they have a hidden name in the same directory; :meth:`Output.close`
removes what was not committed.  Companions are named before the main file, so
whoever sees the main file sees all of them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from qemu_svm.errors import EnvironmentFault, OutputExists

STANDARD = "-"
"""The path that stands for standard output."""


class Output:
    """A file and its companions, each named as the file with a suffix.

    :param suffixes: of companions that may follow.
    :param replace: existing files may be replaced; of a symbolic link the link is.
    :raises OutputExists: a file of that name exists and ``replace`` is not set.
    :raises EnvironmentFault: the directory cannot be written, or the name is that of a device,
        a pipe or a socket.
    """

    def __init__(self, path: str, suffixes: Iterable[str] = (), *, replace: bool = False) -> None:
        self.path = path
        self.descriptors: dict[str, int] = {}
        self._replace = replace
        self._temporary: dict[str, str] = {}
        self._directory = os.path.dirname(path) or "."
        for suffix in ("", *suffixes):
            self._refuse_existing(path + suffix)
        self.create("")

    def create(self, suffix: str) -> int:
        """Create the file for ``path + suffix``; return a descriptor to read and write it.

        :raises OutputExists: a file of that name exists and ``replace`` is not set.
        :raises EnvironmentFault: the directory cannot be written.
        """
        self._refuse_existing(self.path + suffix)
        name = os.path.join(
            self._directory, f".{os.path.basename(self.path)[:100]}.{secrets.token_hex(6)}.part"
        )
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing(self.path):
            self.descriptors[suffix] = os.open(name, flags, 0o600)
        self._temporary[suffix] = name
        return self.descriptors[suffix]

    def writer(self) -> int:
        """Return another descriptor of the main file, for writing only.

        :raises EnvironmentFault: it cannot be opened.
        """
        with writing(self.path):
            return os.open(self._temporary[""], os.O_WRONLY | os.O_CLOEXEC)

    def fill(self, data: bytes) -> None:
        """Write the whole main file, and commit it.

        :raises OutputExists: the name was taken meanwhile.
        :raises EnvironmentFault: it cannot be written; there is no file then.
        """
        with writing(self.path), open(self.writer(), "wb") as file:
            file.write(data)
        self.commit()

    def partial(self) -> list[str]:
        """Return the hidden names of all files that were not committed."""
        return [os.path.abspath(name) for name in self._temporary.values()]

    @property
    def temporary(self) -> str:
        """The hidden name of the main file."""
        return self._temporary[""]

    def files(self) -> tuple[str, ...]:
        """Return the names that the files have after :meth:`commit`, the main file first."""
        suffixes = sorted(self.descriptors, key=lambda suffix: (len(suffix), suffix))
        return tuple(self.path + suffix for suffix in suffixes)

    def size(self) -> int:
        """Return the bytes in all files so far."""
        return sum(os.fstat(descriptor).st_size for descriptor in self.descriptors.values())

    def commit(self, *, sync: bool = True) -> None:
        """Write everything to the disk and give the files their names.

        :param sync: wait for the disk; without it, a file that can be made again may be
            incomplete after the machine has crashed.
        :raises OutputExists: a name was taken meanwhile; no file got its name.
        :raises EnvironmentFault: the disk is full or failed; no file got its name.
        """
        suffixes = sorted(self._temporary, reverse=True)  # the main file, "", is the last
        named: list[str] = []
        with writing(self.path):
            for suffix in suffixes if sync else ():
                os.fsync(self.descriptors[suffix])
            try:
                for suffix in suffixes:
                    self._name(suffix)
                    named.append(self.path + suffix)
                self._sync_directory()
            except (OSError, OutputExists):
                for name in named:
                    os.unlink(name)
                raise

    def close(self) -> None:
        """Remove the files that were not committed; never fails."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors = {}
        for name in self._temporary.values():
            with contextlib.suppress(OSError):
                os.unlink(name)
        self._temporary = {}

    def _refuse_existing(self, name: str) -> None:
        try:
            valid = b"\0" not in os.fsencode(name)
        except UnicodeEncodeError:
            valid = False
        if not valid:
            raise EnvironmentFault(f"cannot write {name!r}: not a file name")
        if os.path.isdir(name):
            raise EnvironmentFault(f"cannot write '{name}': it is a directory")
        if not os.path.lexists(name):
            return
        if not self._replace:
            raise OutputExists(name)
        special = os.path.islink(name) and os.readlink(name).startswith("/proc/")  # /dev/stdout
        if special or (os.path.exists(name) and not os.path.isfile(name)):
            raise EnvironmentFault(
                f"cannot replace '{name}': it is a device, a pipe or a socket",
                hint="-o - writes to standard output",
            )

    def _name(self, suffix: str) -> None:
        temporary, name = self._temporary[suffix], self.path + suffix
        if self._replace:
            os.rename(temporary, name)
        else:
            # Unlike a rename, a link never replaces anything.
            try:
                os.link(temporary, name, follow_symlinks=False)
            except FileExistsError as error:
                raise OutputExists(name) from error
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
    """Standard output in place of a file: one stream, without a name.

    :raises EnvironmentFault: standard output is closed.
    """

    def __init__(self) -> None:
        self.path = STANDARD
        with writing(STANDARD):
            self.descriptors = {"": os.dup(1)}
        self._temporary = {}

    def writer(self) -> int:
        """Return another descriptor of standard output."""
        with writing(STANDARD):
            return os.dup(self.descriptors[""])

    def commit(self, *, sync: bool = True) -> None:
        """Do nothing: everything was written already."""


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Raise what the operating system refuses as an error of this package.

    :raises EnvironmentFault: no room, no permission, no such directory.
    """
    try:
        yield
    except OSError as error:
        what = "standard output" if path == STANDARD else f"'{path}'"
        raise EnvironmentFault(f"cannot write {what}: {error.strerror or error}") from error
