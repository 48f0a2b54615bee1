"""``svmstream schema [VERB]...``."""

from __future__ import annotations

import click

from qemu_svm.cli.output import print_json
from qemu_svm.cli.verbs import suggestion, verb
from qemu_svm.render.documents import DOCUMENTS, verb_schema


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    words = {word for name in DOCUMENTS for word in name.split()}
    return sorted(word for word in words if word.startswith(incomplete))


@verb("schema", "svmstream schema check", "svmstream schema mem read")
@click.argument("words", metavar="[VERB]...", nargs=-1, shell_complete=_complete)
def command(*, words: tuple[str, ...]) -> None:
    """Print the JSON Schema of what VERB --json prints; without VERB, list the verbs.

    The schema (draft 2020-12) allows every document of the verb, that of an error
    included. Members may be added within a schema_version, so it allows unknown ones.
    """
    if not words:
        for name in DOCUMENTS:
            click.echo(name)
        return
    name = " ".join(words)
    if name not in DOCUMENTS:
        raise click.UsageError(f"no verb '{name}' with --json.{suggestion(name, DOCUMENTS)}")
    print_json(verb_schema(name))
