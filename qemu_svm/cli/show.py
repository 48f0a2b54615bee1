"""``svmstream show FILE PATH``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options, output
from qemu_svm.cli.status import report_damage
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _complete_path(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    # One step further in the stream FILE; nothing if it cannot be read.
    from click.shell_completion import CompletionItem

    from qemu_svm import api
    from qemu_svm.errors import SvmStreamError
    from qemu_svm.machine.paths import below

    try:
        with api.open(ctx.params["file"]) as dump:
            names = below(dump.machine, incomplete)
    except (SvmStreamError, OSError):
        return []
    return [CompletionItem(name) for name in names]


@verb(
    "show",
    "svmstream show dump.bin vcpu0.nested.control",
    "svmstream show dump.bin section:apic",
    "svmstream show dump.bin @0x98d7c",
)
@options.file_argument
@click.argument("path", metavar="PATH", shell_complete=_complete_path)
@options.json_option
@options.limit_option
@options.state_options
@options.description_option
@options.page_size_option
@options.channel_option
@click.option("--raw", is_flag=True, help="Write only the raw bytes to standard output.")
@click.option("-v", "--verbose", is_flag=True, help="Show reserved bytes too.")
def command(
    *,
    file: str,
    path: str,
    as_json: bool,
    lender: str | None,
    channels: tuple[str, ...],
    raw: bool,
    verbose: bool,
) -> int:
    """Show one part of the stream FILE in full: offset, raw bytes, meaning.

    PATH is vcpuN, vcpuN.REGISTER, vcpuN.nested.control.FIELD,
    vcpuN.nested.l1_save.FIELD, section:NAME.FIELD, configuration, header, or
    @OFFSET for whatever contains that byte.
    """
    with opened(file, channels=channels, description=lender) as dump:
        shown = dump.show(path)
        if not raw:
            output.show(shown, as_json=as_json, verbose=verbose)
            return report_damage(dump)
        if shown.place.scattered:
            raise click.UsageError(f"its bytes are not contiguous: name a part, '{path}[0]'")
        if sys.stdout.isatty():
            raise click.UsageError("--raw writes bytes: redirect them to a file or a pipe")
        sys.stdout.buffer.write(shown.raw)
        return report_damage(dump)
