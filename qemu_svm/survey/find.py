"""What a survey is asked to look at: files, folders, patterns, lists, URLs.

Names are yielded as they are found, so that a million files take no memory here.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from qemu_svm.errors import EnvironmentFault, SourceError
from qemu_svm.optional import optional
from qemu_svm.work.cluster import INSTALL

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def inputs(names: Iterable[str]) -> Iterator[str]:
    """Yield files and URLs, each folder's in the order of their names.

    :param names: files, folders (with all below them), patterns, URLs and patterns of URLs.
    :raises SourceError: a name leads to nothing.
    :raises EnvironmentFault: a URL needs a package that is missing.
    """
    for name in names:
        if URL.match(name):
            yield from _at_url(name)
        elif os.path.isdir(name):
            yield from _below(name)
        elif os.path.lexists(name) or not glob.has_magic(name):
            yield name  # that there is none is its row
        else:
            yield from _matching(name)


def _below(folder: str) -> Iterator[str]:
    # Links to folders are not followed: they may lead in a circle.
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"cannot list '{folder}': {error.strerror}") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
        elif entry.is_file() and not _ours(entry.name):
            yield entry.path


def _ours(name: str) -> bool:
    # What a survey or a capture that is not finished keeps beside its result.
    return name.startswith(".") and name.endswith(".part")


def _matching(pattern: str) -> Iterator[str]:
    found = False
    for name in glob.iglob(pattern, recursive=True):
        if os.path.isdir(name):
            yield from _below(name)
        else:
            yield name
        found = True
    if not found:
        raise SourceError(f"nothing matches '{pattern}'")


def _at_url(url: str) -> Iterator[str]:
    fsspec = load_fsspec()
    try:
        system, path = fsspec.core.url_to_fs(url)
        if glob.has_magic(path):
            found = sorted(system.glob(path))
        elif system.isdir(path):
            found = sorted(system.find(path))
        else:
            found = [path]
        names = [system.unstrip_protocol(one) for one in found]
    except ImportError as error:
        raise EnvironmentFault(f"'{url}': {error}", hint=INSTALL) from error
    except Exception as error:  # of any of fsspec's file systems
        raise SourceError(f"cannot list '{url}': {error}") from error
    if not names:
        raise SourceError(f"nothing matches '{url}'")
    yield from names


def load_fsspec() -> Any:
    """Return fsspec.

    :raises EnvironmentFault: it is not installed.
    """
    return optional("fsspec", "a URL", install=INSTALL)


def listed(path: str) -> Iterator[str]:
    """Yield the names in a list, one on a line; ``-`` is standard input.

    :raises SourceError: it cannot be read.
    """
    try:
        if path == "-":
            yield from filter(None, (line.rstrip("\n") for line in sys.stdin))
            return
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            yield from filter(None, (line.rstrip("\n") for line in lines))
    except OSError as error:
        raise SourceError(f"cannot read '{path}': {error.strerror}") from error
