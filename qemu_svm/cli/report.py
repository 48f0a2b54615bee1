"""``svmstream report FILE -o OUT``."""

from __future__ import annotations

from contextlib import ExitStack

import click

from qemu_svm.cli import options, signals
from qemu_svm.cli.destination import qemu_option
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, EXIT_UNREADABLE, report_damage
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb
from qemu_svm.errors import OutputExists
from qemu_svm.findings.overview import REDACTABLE, Written
from qemu_svm.qmp.output import STANDARD, Output, Standard


@verb(
    "report",
    "svmstream report dump.bin -o report.html",
    "svmstream report before.bin after.bin --log ioctls.log -o report.html",
    "svmstream report dump.bin --to 6.12.118 --redact -o report.html",
)
@options.file_argument
@click.argument("other", metavar="[FILE2]", required=False)
@click.option("-o", "--output", required=True, metavar="OUT",
              help="File of the page; - for standard output.")  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Replace OUT.")
@options.json_option
@options.limit_option
@options.state_options
@options.description_option
@options.page_size_option
@options.channel_option
@options.release_option("--from", "source", "The source's kernel.")
@options.release_option("--to", "destination", "The destination's.  [default: all releases]")
@qemu_option
@options.host_npt_option
@options.cpu_option
@click.option("--log", metavar="LOG",
              help="A log of the restore's ioctls, as for svmstream trace.")  # fmt: skip
@click.option("--with-memory", "with_memory", is_flag=True,
              help="Include guest memory: code and stacks of L1 and L2.")  # fmt: skip
@click.option("--redact", is_flag=True,
              help="Leave out addresses, UUIDs, names and MSRs.")  # fmt: skip
@click.option("--keep", "kept", multiple=True, type=click.Choice(REDACTABLE),
              help="With --redact: leave this in; may be repeated.")  # fmt: skip
@options.fail_on_option()
def command(
    *,
    file: str,
    other: str | None,
    output: str,
    force: bool,
    as_json: bool,
    lender: str | None,
    channels: tuple[str, ...],
    source: str | None,
    destination: str | None,
    qemu_version: str | None,
    npt: str,
    cpu: str | None,
    log: str | None,
    with_memory: bool,
    redact: bool,
    kept: tuple[str, ...],
) -> int:
    """Write a page about the stream FILE: all that the other verbs show, to attach to a bug.

    One HTML file that loads nothing and needs no script. With FILE2 the
    differences are in it, side by side; with --log the order of the ioctls.
    It is readable by its owner only, and has guest memory only if --with-memory
    is given.
    """
    if with_memory and redact:
        raise click.UsageError("--with-memory and --redact contradict each other: give one of them")
    if kept and not redact:
        raise click.UsageError("--keep needs --redact")
    if [file, other, log].count("-") > 1:
        raise click.UsageError("only one of FILE, FILE2 and LOG can be standard input")
    if output == STANDARD and as_json:
        raise click.UsageError("-o - prints the page: --json needs a file for it")
    signals.interrupt_on_termination()  # no page may be left half written
    hidden = tuple(one for one in REDACTABLE if redact and one not in kept)
    with ExitStack() as stack:
        try:  # before anything is read
            target = stack.enter_context(
                Standard() if output == STANDARD else Output(output, replace=force)
            )
        except OutputExists as error:
            raise click.UsageError(f"{error}; -f replaces it") from error
        dump = stack.enter_context(opened(file, channels=channels, description=lender))
        second = None if other is None else stack.enter_context(opened(other, description=lender))
        found = dump.overview(
            kernel=destination, source=source, qemu=qemu_version, npt=npt == "on", cpu=cpu,
            other=second, log=log, memory=with_memory, limits=options.limits(),
        )  # fmt: skip
        page = found.to_html(hidden).encode()
        target.fill(page)
        if output != STANDARD:
            show(Written(output, len(page), found, hidden), as_json=as_json)
        damaged = [report_damage(one) for one in (dump, second) if one is not None]
        if any(damaged):
            return EXIT_UNREADABLE
    severities = [one.severity for one in (*found.inspection.problems, *found.check.findings)]
    return EXIT_FINDINGS if options.fails(severities) else 0
