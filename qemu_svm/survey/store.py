"""The paths and rows of a survey in a file (SQLite), so that none has to stay in memory.

The file of a survey that was interrupted is where the next one of the same question goes on.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Self

from qemu_svm.errors import EnvironmentFault, Refused
from qemu_svm.survey.row import RANK, Question, Row

_VERSION = 1
_TABLES = (
    "about (question TEXT)",
    "paths (path TEXT PRIMARY KEY, stamp TEXT, done INTEGER) WITHOUT ROWID",
    "rows (rank INTEGER, path TEXT, input TEXT, row TEXT, PRIMARY KEY (rank, path)) WITHOUT ROWID",
)


class Store:
    """Paths and rows of one survey; a context manager.

    :param path: of the file, which is kept until :meth:`finish`; None for one that nobody sees.
    :param continued: rows that an interrupted survey had made already.
    :raises Refused: the file is of another question.
    :raises EnvironmentFault: it cannot be written, or another survey uses it.
    """

    def __init__(self, question: Question, path: str | None = None) -> None:
        self.path = path
        self._folder = None
        if path is None:
            self._folder = tempfile.TemporaryDirectory(prefix="svmstream-")
            path = os.path.join(self._folder.name, "rows")
        else:
            with suppress(FileExistsError, OSError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        wanted = json.dumps({"version": _VERSION, **_of(question)}, sort_keys=True)
        try:
            self._base = sqlite3.connect(path, isolation_level=None)
            self._base.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._base.execute("PRAGMA cache_size=-4000")
            self._base.execute("PRAGMA synchronous=OFF" if self.path is None else
                               "PRAGMA synchronous=NORMAL")  # fmt: skip
            self._base.execute("BEGIN EXCLUSIVE")
            for table in _TABLES:
                self._base.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            found = self._base.execute("SELECT question FROM about").fetchone()
            if found is None:
                self._base.execute("INSERT INTO about VALUES (?)", (wanted,))
        except sqlite3.Error as error:
            self.close()
            raise EnvironmentFault(f"cannot write '{path}': {error}") from error
        if found is not None and found[0] != wanted:
            self.close()
            raise Refused(
                f"'{path}' is of a survey that was interrupted, with other options",
                hint="give the same options to continue it, or remove the file",
            )
        self.continued = self._count("SELECT count(*) FROM rows")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was committed stays."""
        base = self.__dict__.get("_base")
        if base is not None:
            with suppress(sqlite3.Error):
                if base.in_transaction:
                    base.execute("COMMIT")
                base.close()
        if self._folder is not None:
            self._folder.cleanup()

    def finish(self) -> None:
        """Remove the file: its rows have been written elsewhere."""
        self.close()
        if self.path is not None:
            with suppress(OSError):
                os.unlink(self.path)

    def add(self, paths: Iterable[str]) -> tuple[int, int]:
        """Add paths that are not known yet, or whose file has changed.

        :returns: how many there are, and how many of them are done.

        What was asked for in an earlier run and is not now, is forgotten.
        """
        base = self._base
        base.execute("CREATE TEMP TABLE wanted (path TEXT PRIMARY KEY, stamp TEXT) WITHOUT ROWID")
        base.executemany(
            "INSERT OR IGNORE INTO wanted VALUES (?, ?)",
            ((_stored(path), _stamp(path)) for path in paths),
        )
        base.execute(
            "DELETE FROM paths WHERE NOT EXISTS (SELECT 1 FROM wanted WHERE "
            "wanted.path = paths.path AND wanted.stamp = paths.stamp)"
        )
        base.execute("DELETE FROM rows WHERE input NOT IN (SELECT path FROM paths WHERE done)")
        base.execute("INSERT OR IGNORE INTO paths SELECT path, stamp, 0 FROM wanted")
        base.execute("DROP TABLE wanted")
        self.commit()
        self.continued = self._count("SELECT count(*) FROM rows")
        return (
            self._count("SELECT count(*) FROM paths"),
            self._count("SELECT count(*) FROM paths WHERE done"),
        )

    def todo(self, size: int) -> Iterator[list[str]]:
        """Yield paths that are to be judged, in chunks."""
        last = ""
        while True:
            found = self._base.execute(
                "SELECT path FROM paths WHERE done = 0 AND path > ? ORDER BY path LIMIT ?",
                (last, size),
            ).fetchall()
            if not found:
                return
            last = found[-1][0]
            yield [_real(path) for (path,) in found]

    def put(self, judged: Iterable[tuple[str, Sequence[Row]]]) -> None:
        """Keep the rows of some inputs, which are done now."""
        for path, rows in judged:
            of = _stored(path)
            self._base.executemany(
                "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)",
                [
                    (RANK[row.state], _stored(row.path), of, json.dumps(row.to_json()))
                    for row in rows
                ],
            )
            self._base.execute("UPDATE paths SET done = 1 WHERE path = ?", (of,))

    def commit(self) -> None:
        """Make what was put outlive this process."""
        self._base.execute("COMMIT")
        self._base.execute("BEGIN")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows in their form as JSON: the worst first, then by path."""
        for (text,) in self._base.execute("SELECT row FROM rows ORDER BY rank, path"):
            yield json.loads(text)

    def _count(self, query: str) -> int:
        (found,) = self._base.execute(query).fetchone()
        return int(found)


def _of(question: Question) -> dict[str, Any]:
    return asdict(question)


def _stamp(path: str) -> str:
    # Of the file's content, as far as it is known without reading it.
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def _stored(path: str) -> str:
    # SQLite holds Unicode; a name on Linux is any bytes.
    return path.encode("utf-8", "surrogateescape").decode("latin-1")


def _real(stored: str) -> str:
    return stored.encode("latin-1").decode("utf-8", "surrogateescape")
