"""Verbs and groups of them; each verb is in a module of its name, imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean …?`` with similar words, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(word.lower(), list(known), cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


_PATHS = {
    **dict.fromkeys(("[FILE2]",), "file"),
    **dict.fromkeys(("FILE", "FILE...", "LOG", "OUT", "VMLINUX", "A", "B", "FACTS"), "file"),
    **dict.fromkeys(("BINARY", "BINARY|VERSION", "BINARY|VERSION|JSON", "FILE|none"), "file"),
    "DIR": "dir",
}
"""Placeholders for files and directories, which a shell completes."""


class _Path(click.ParamType[str]):
    # Any text; the shell completes names of files or directories.
    name = "text"

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def shell_complete(
        self,
        _ctx: click.Context,
        _param: click.Parameter,
        incomplete: str,
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=self._kind)]


class Verb(click.Command):
    """A command whose help ends with examples, one a line.

    :param examples: whole command lines.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.examples = tuple(examples)
        for one in self.params:
            if one.type is click.STRING and one.metavar in _PATHS:
                one.type = _Path(_PATHS[one.metavar])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilogue and the examples."""
        super().format_epilog(ctx, formatter)
        write_examples(formatter, self.examples)


def verb(
    name: str, *examples: str, **attributes: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Return the decorator of a verb's function; see :class:`Verb`."""
    return click.command(name, cls=Verb, examples=examples, **attributes)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write examples as they are typed: never wrapped."""
    if examples:
        with formatter.section("Examples" if len(examples) > 1 else "Example"):
            for line in examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Verbs(click.Group):
    """A group whose commands are in modules of their own.

    :param package: the package of the modules; each has a ``command``.
    :param verbs: one line of help for each name, under the task that they are for.
    """

    def __init__(
        self,
        *args: Any,
        package: str,
        verbs: Mapping[str, Mapping[str, str]],
        examples: Sequence[str] = (),
        **options: Any,
    ) -> None:
        options.setdefault("subcommand_metavar", "VERB [ARGS]...")
        super().__init__(*args, **options)
        self._package = package
        self.tasks = verbs
        self._verbs = {name: words for task in verbs.values() for name, words in task.items()}
        self.examples = tuple(examples)

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

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs, then the options."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table of verbs without importing them."""
        width = max(map(len, self._verbs))
        for task, verbs in self.tasks.items():
            with formatter.section(task):
                # Padded, so that the columns of all tasks are in line.
                formatter.write_dl([(name.ljust(width), words) for name, words in verbs.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilogue and the examples."""
        super().format_epilog(ctx, formatter)
        write_examples(formatter, self.examples)
