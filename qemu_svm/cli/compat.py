"""``svmstream compat FILE --qemu BINARY|vmstate.json``."""

from __future__ import annotations

import click

from qemu_svm.cli import options, qemus
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, report_damage
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb


@verb(
    "compat",
    "svmstream compat dump.bin --qemu qemu-system-x86_64",
    "qemu-system-x86_64 -M pc-q35-7.2 -dump-vmstate vmstate.json",
    "svmstream compat dump.bin --qemu vmstate.json",
)
@options.file_argument
@options.json_option
@options.limit_option
@options.description_option
@options.channel_option
@options.fail_on_option()
@click.option("--qemu", required=True, type=qemus.binary, metavar="BINARY|VERSION|JSON",
              help="The destination's QEMU, or the output of its -dump-vmstate.")  # fmt: skip
@click.option("--timeout", default=30, show_default=True, type=click.IntRange(min=1),
              metavar="SECONDS", help="How long QEMU may take to answer.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Show uncertain findings too.")
def command(
    *,
    file: str,
    as_json: bool,
    lender: str | None,
    channels: tuple[str, ...],
    qemu: str,
    timeout: int,
    verbose: bool,
) -> int:
    """Check whether a given QEMU would accept the stream FILE.

    Compares machine type, sections, versions, fields and subsections with those
    that this QEMU reports (-dump-vmstate). Such a report does not contain CPU state
    and RAM; for the nested state see the verb check.
    """
    with opened(file, channels=channels, description=lender) as dump:
        report = dump.compat(qemu, timeout=timeout)
        show(report, as_json=as_json, verbose=verbose)
        unreadable = report_damage(dump)
    if unreadable:
        return unreadable
    return EXIT_FINDINGS if not report.accepted and options.fails() else 0
