"""Exit statuses, and messages on standard error."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from qemu_svm.errors import EnvironmentFault, PathError, Refused, SourceError, SvmStreamError

if TYPE_CHECKING:
    from qemu_svm.api import Dump
    from qemu_svm.errors import StreamError

EXIT_FINDINGS = 1
EXIT_USAGE = 2
EXIT_UNREADABLE = 3
EXIT_ENVIRONMENT = 4
EXIT_REFUSED = 5
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # as a shell shows a death by SIGPIPE
_EXITS = ((EnvironmentFault, EXIT_ENVIRONMENT), (Refused, EXIT_REFUSED))


_LAST: list[tuple[Exception | None, str]] = []


def last_error() -> tuple[Exception | None, str] | None:
    """Return the last error that was printed, with what raised it; None if there was none."""
    return _LAST[-1] if _LAST else None


def forget_errors() -> None:
    """Begin anew; for a process that runs several commands."""
    _LAST.clear()


def print_error(message: str, hint: str | None = None, *, cause: Exception | None = None) -> None:
    """Print an error on standard error; what a terminal might obey is escaped.

    :param cause: what raised it, for the document of the error.
    """
    from qemu_svm.render.escape import printable

    _LAST[:] = [(cause, message)]
    click.echo(f"svmstream: {printable(message)}", err=True)
    if hint:
        click.echo(f"  {printable(hint)}", err=True)


def report_usage(error: click.ClickException) -> None:
    """Print what is wrong with the arguments; they may come from a script, so they are escaped."""
    from qemu_svm.render.escape import printable

    shown = io.StringIO()
    error.show(shown)
    click.echo("\n".join(map(printable, shown.getvalue().split("\n"))), err=True, nl=False)


def report_failure(error: SvmStreamError) -> int:
    """Print an error of the library; return the exit status that belongs to it."""
    if isinstance(error, PathError):
        print_error(str(error), error.hint)
        return EXIT_USAGE
    # The others have their hint in their text.
    print_error(str(error), error.hint if isinstance(error, SourceError) else None)
    return next((exits for kind, exits in _EXITS if isinstance(error, kind)), EXIT_UNREADABLE)


def report_damage(dump: Dump) -> int:
    """Print why a stream could not be read completely; return the exit status that follows."""
    return report_problems(dump.path, dump.damage, complete=dump.complete)


def report_problems(path: str, problems: Iterable[StreamError], *, complete: bool) -> int:
    """Print what is wrong with an input; return the exit status that follows."""
    for problem in problems:
        words = str(problem) if problem.path is not None else f"{path}: {problem}"
        print_error(words, cause=problem)
    return 0 if complete else EXIT_UNREADABLE
