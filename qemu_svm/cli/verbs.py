"""A group of verbs, each in a module of its name that is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click


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
