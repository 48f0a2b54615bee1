"""Files for RAM blocks, all in one directory, however the stream names the blocks.

A block's name becomes a file name by escaping everything but letters, digits and
``_ - + , : = @ .`` (``/`` is ``%2F``), so different names stay different.  Files are
created under temporary names and renamed when all are complete; on any error all are
removed.  Existing files are neither followed nor replaced unless requested; then a
symbolic link is replaced itself.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qemu_svm.errors import EnvironmentFault, OutputExists

if TYPE_CHECKING:
    from qemu_svm.stream.ram.read import Ram

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+,:=@.")
_LONGEST = 200
_TEMPORARY = ".svmstream-"


def file_name(name: str) -> str:
    """Return the file name for a RAM block: no separator, no leading dot.

    >>> file_name("/rom@etc/acpi/tables")
    '%2From@etc%2Facpi%2Ftables'
    """
    raw = name.encode("utf-8", "surrogateescape")
    text = "".join(
        chr(byte) if byte in _PLAIN and (at or byte != ord(".")) else f"%{byte:02X}"
        for at, byte in enumerate(raw)
    )
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 33] + "%" + hashlib.sha256(raw).hexdigest()[:32]
    return text or "%"


class BlockFiles:
    """Files in one directory, all of them or none.

    A context manager; leaving it before :meth:`commit` removes the files.

    :param replace: existing files may be replaced.
    :raises FileExistsError: a name is taken and ``replace`` is not set.
    :raises IsADirectoryError: a directory has one of the names.
    :raises OSError: the directory cannot be made or written.
    """

    def __init__(self, directory: str, names: Iterable[str], *, replace: bool) -> None:
        self.names = [file_name(name) for name in names]
        self.descriptors: list[int] = []
        self._replace = replace
        self._temporary: list[str] = []
        try:
            os.mkdir(directory)
            self._made: str | None = directory
        except FileExistsError:
            self._made = None
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        taken = set(os.listdir(self._directory))
        for name in self.names:
            if name not in taken:
                continue
            if not self._replace:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            mode = os.lstat(name, dir_fd=self._directory).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):  # a device, a pipe, a socket
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        for _ in self.names:
            name = self._fresh()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.descriptors.append(os.open(name, flags, 0o600, dir_fd=self._directory))

    def _fresh(self) -> str:
        # A temporary name; whatever has it is removed at the end.
        self._temporary.append(_TEMPORARY + secrets.token_hex(8))
        return self._temporary[-1]

    def commit(self) -> None:
        """Give the files their final names; if one cannot get its name, none does.

        :raises FileExistsError: a name is taken and ``replace`` is not set.
        :raises OSError: a file cannot be renamed.
        """
        done: list[tuple[str, str | None]] = []  # names, and those of what they were before
        where = {"src_dir_fd": self._directory, "dst_dir_fd": self._directory}
        try:
            for temporary, name in zip(list(self._temporary), self.names, strict=True):
                before = self._kept(name, where) if self._replace else None
                if before is None:
                    # Unlike a rename, a link never replaces a file.
                    os.link(temporary, name, follow_symlinks=False, **where)
                done.append((name, before))
                if before is not None:
                    os.rename(temporary, name, **where)
        except BaseException:
            for name, before in reversed(done):
                if before is None:
                    os.unlink(name, dir_fd=self._directory)
                else:
                    os.rename(before, name, **where)
            raise
        self._made = None

    def _kept(self, name: str, where: dict[str, int]) -> str | None:
        # A second name for what has a name now; None if nothing has it.
        fresh = self._fresh()
        try:
            os.link(name, fresh, follow_symlinks=False, **where)
        except FileNotFoundError:
            return None
        return fresh

    def close(self) -> None:
        """Remove everything under temporary names, and close the directory."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
        for name in self._temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)
        self._temporary = []
        os.close(self._directory)
        if self._made is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self._made)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def write_blocks(
    ram: Ram,
    blocks: Sequence[int],
    directory: str,
    span: tuple[int, int] | None = None,
    *,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[int, str]:
    """Write the final content of blocks into files of a directory, all of them or none.

    :param blocks: numbers of blocks.
    :param directory: created if it does not exist.
    :param span: only these bytes of each block, as for ``extract``.
    :param replace: existing files may be replaced.
    :param progress: called with the number of copies in the stream that are done.
    :returns: the name of the file by the number of its block.
    :raises OutputExists: a file exists and ``replace`` is not set.
    :raises EnvironmentFault: the directory cannot be made or written.
    :raises StreamError: a page is damaged, or there are too many.
    """
    from qemu_svm.stream.ram.extract import extract

    names = [ram.blocks[number].name for number in blocks]
    if not names:
        return {}
    try:
        with BlockFiles(directory, names, replace=replace) as files:
            descriptors = dict(zip(blocks, files.descriptors, strict=True))
            extract(ram, descriptors, span, progress or (lambda _done: None))
            files.commit()
    except FileExistsError as error:
        raise OutputExists(os.path.join(directory, str(error.filename))) from error
    except OSError as error:
        place = directory
        if isinstance(error, IsADirectoryError) and isinstance(error.filename, str):
            place = os.path.join(directory, error.filename)
        raise EnvironmentFault(f"cannot write to '{place}': {error.strerror}") from error
    return dict(zip(blocks, files.names, strict=True))
