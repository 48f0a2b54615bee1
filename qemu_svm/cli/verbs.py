"""A group of verbs, each in a module of its name that is imported when it is used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import click


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean …?`` with similar words, or nothing."""
    near = difflib.get_close_matches(word.lower(), list(known), cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


class Verbs(click.Group):
    """A group whose commands are in modules of their own.

    :param package: the package of the modules; each has a ``command``.
    :param verbs: one line of help for each name.
    """

    def __init__(self, *args: Any, package: str, verbs: dict[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._package = package
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the verbs, in the order of their table."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a verb; None if there is no such verb."""
        if cmd_name not in self._verbs:
            return None
        command: click.Command = import_module(f"{self._package}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb of a command line.

        :raises click.UsageError: there is none of this name; similar names are suggested.
        """
        if args[0] not in self._verbs and not args[0].startswith("-"):
            ctx.fail(f"unknown verb '{args[0]}'.{suggestion(args[0], self._verbs)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # Without its errno, by which click would exit with status 1, that of findings.
            raise BrokenPipeError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table of verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(self._verbs.items()))
