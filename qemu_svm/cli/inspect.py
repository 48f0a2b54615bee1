"""``svmstream inspect FILE``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options
from qemu_svm.cli.output import print_lines, show
from qemu_svm.cli.status import (
    EXIT_FINDINGS,
    EXIT_UNREADABLE,
    EXIT_USAGE,
    print_error,
    report_damage,
)
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb
from qemu_svm.render.escape import printable
from qemu_svm.source.details import LibvirtDetails

if TYPE_CHECKING:
    from qemu_svm.api import Dump


@verb(
    "inspect",
    "svmstream inspect dump.bin",
    "zstdcat dump.zst | svmstream inspect --json -",
)
@options.file_argument
@options.json_option
@options.limit_option
@options.state_options
@options.description_option
@options.page_size_option
@options.channel_option
@options.fail_on_option("warning")
@click.option("--ram", is_flag=True, help="Read all RAM records and count the pages.")
@click.option("-v", "--verbose", is_flag=True, help="Show every vCPU in full.")
@click.option("--xml", is_flag=True, help="Print only the domain's XML, of a libvirt save image.")
def command(
    *,
    file: str,
    as_json: bool,
    lender: str | None,
    channels: tuple[str, ...],
    ram: bool,
    verbose: bool,
    xml: bool,
) -> int:
    """Show what is in the stream FILE ("-" for standard input).

    The machine, the problems found, each vCPU (L2's state in the vCPU's
    registers, L1's in the nested state) and the list of sections.
    FILE may be compressed (gzip, xz, bzip2, zstd, lzop), a libvirt save image,
    IMAGE.qcow2#SNAPSHOT, or FILE#@OFFSET for a stream inside a file; or state that
    is no stream (docs/state.md): raw structures, other VMMs' snapshots, a recording.
    """
    if xml and as_json:
        raise click.UsageError("--xml prints XML, and --json has it: give one of them")
    with opened(file, channels=channels, description=lender) as dump:
        if xml:
            return _print_xml(dump)
        result = dump.inspect(ram=ram)
        show(result, as_json=as_json, verbose=verbose)
        if as_json:  # the text has it among the problems
            report_damage(dump)
        if not dump.complete:
            return EXIT_UNREADABLE
    found = options.fails(one.severity for one in result.problems)
    return EXIT_FINDINGS if found else 0


def _print_xml(dump: Dump) -> int:
    details = dump.machine.stream.source.details
    if not isinstance(details, LibvirtDetails):
        print_error(f"{dump.path}: not a libvirt save image, so it has no XML")
        return EXIT_USAGE
    print_lines(map(printable, details.xml.splitlines()))
    return 0
