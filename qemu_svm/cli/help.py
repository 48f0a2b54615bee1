"""``svmstream help [VERB]...``."""

from __future__ import annotations

import click

from qemu_svm.cli.verbs import Verbs, verb


@verb("help", "svmstream help check", "svmstream help mem read")
@click.argument("words", metavar="[VERB]...", nargs=-1)
@click.pass_context
def command(ctx: click.Context, *, words: tuple[str, ...]) -> None:
    """Show the help of a verb, as VERB --help does."""
    assert ctx.parent is not None
    found: click.Command = ctx.parent.command
    at = ctx.parent
    for word in words:
        if not isinstance(found, Verbs):
            raise click.UsageError(f"'{at.command_path}' has no verb '{word}'")
        name, inner, _ = found.resolve_command(at, [word])
        assert inner is not None
        found, at = inner, click.Context(inner, info_name=name, parent=at)
    click.echo(found.get_help(at))
