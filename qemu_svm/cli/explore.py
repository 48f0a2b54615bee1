"""``svmstream explore FILE [FILE2]``."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import click

from qemu_svm.cli import options
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb
from qemu_svm.optional import optional


@verb(
    "explore",
    "svmstream explore dump.bin",
    "svmstream explore before.bin after.bin",
)
@options.file_argument
@click.argument("other", metavar="[FILE2]", required=False)
@options.limit_option
@options.description_option
@options.page_size_option
@options.channel_option
def command(*, file: str, other: str | None, lender: str | None, channels: tuple[str, ...]) -> int:
    """Walk through the stream FILE on the terminal: vCPUs, sections, findings, bytes.

    With FILE2 its values stand beside those of FILE, and d goes from difference to
    difference. The key ? shows all keys. Needs the package textual.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("explore needs a terminal: inspect and show write into pipes")
    optional("textual", "explore")
    from qemu_svm.explore.app import ExploreApp
    from qemu_svm.explore.items import Explorer

    with ExitStack() as stack:
        dump = stack.enter_context(opened(file, channels=channels, description=lender))
        second = None if other is None else stack.enter_context(opened(other))
        ExploreApp(Explorer(dump, second)).run()
    return 0
