"""``svmstream schema [VERB]...``."""

from __future__ import annotations

import click

from qemu_svm.cli.output import print_json
from qemu_svm.cli.verbs import verb
from qemu_svm.render.documents import schema, schema_verbs


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    words = {word for name in schema_verbs() for word in name.split()}
    return sorted(word for word in words if word.startswith(incomplete))


@verb("schema", "svmstream schema check", "svmstream schema mem read")
@click.argument("words", metavar="[VERB]...", nargs=-1, shell_complete=_complete)
def command(*, words: tuple[str, ...]) -> None:
    """Print the JSON Schema of what VERB --json prints; without VERB, list the verbs.

    The schema (draft 2020-12) allows every document of the verb, that of an error
    included. Members may be added within a schema_version, so it allows unknown ones.
    """
    if not words:
        for name in schema_verbs():
            click.echo(name)
        return
    print_json(schema(" ".join(words)))
