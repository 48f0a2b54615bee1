"""Files for RAM blocks, all in one directory, however the stream names the blocks.

A block's name becomes a file name by escaping everything but letters, digits and
``_ - + , : = @ .`` (``/`` is ``%2F``), so different names stay different.  Files are
created under temporary names and renamed when all are complete; on any error all are
removed.  Existing files are neither followed nor replaced unless requested; then a
symbolic link is replaced itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
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
            if name in taken and not self._replace:
                raise FileExistsError(17, os.strerror(17), name)
        for _ in self.names:
            name = _TEMPORARY + secrets.token_hex(8)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._temporary.append(name)
            self.descriptors.append(os.open(name, flags, 0o600, dir_fd=self._directory))

    def commit(self) -> None:
        """Give the files their final names."""
        where = {"src_dir_fd": self._directory, "dst_dir_fd": self._directory}
        while self._temporary:
            temporary, name = self._temporary[0], self.names[len(self.names) - len(self._temporary)]
            if self._replace:
                os.rename(temporary, name, **where)
            else:
                # Unlike a rename, a link never replaces a file.
                os.link(temporary, name, follow_symlinks=False, **where)
                os.unlink(temporary, dir_fd=self._directory)
            self._temporary.pop(0)
            self._made = None

    def close(self) -> None:
        """Remove files without a final name, and close the directory."""
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
    try:
        with BlockFiles(directory, names, replace=replace) as files:
            descriptors = dict(zip(blocks, files.descriptors, strict=True))
            extract(ram, descriptors, span, progress or (lambda _done: None))
            files.commit()
    except FileExistsError as error:
        raise OutputExists(os.path.join(directory, str(error.filename))) from error
    except OSError as error:
        raise EnvironmentFault(f"cannot write to '{directory}': {error.strerror}") from error
    return dict(zip(blocks, files.names, strict=True))
