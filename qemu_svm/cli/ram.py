"""``svmstream ram FILE``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import click

from qemu_svm.cli import EXIT_ENVIRONMENT, EXIT_UNREADABLE, common, complain
from qemu_svm.source import open_source
from qemu_svm.stream import Stream, Walk, read_stream
from qemu_svm.stream.ram_coverage import coverage
from qemu_svm.stream.ram_extract import extract
from qemu_svm.stream.ram_files import BlockFiles
from qemu_svm.stream.ram_index import Ram, all_problems, read_ram

_EVERY = 0.2  # seconds between two words of progress

Span = tuple[int, int]


def _span(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Span | None:
    if value is None:
        return None
    start, colon, end = value.partition(":")
    try:
        span = int(start or "0", 0), int(end, 0) if end else 1 << 63
    except ValueError:
        span = (1, 0)
    if not colon or not 0 <= span[0] < span[1]:
        raise click.BadParameter("give START:END, numbers such as 0x100000:0x200000")
    return span


@click.command(
    "ram",
    epilog="Examples: svmstream ram dump.bin; svmstream ram --extract out --block pc.ram dump.bin",
)
@common.file_argument
@common.json_option
@click.option("--block", "names", multiple=True, metavar="NAME", help="Only this block.")
@click.option(
    "--range", "span", callback=_span, metavar="START:END",
    help="Only these bytes of each block; whole pages.",
)  # fmt: skip
@click.option("--channel", "channels", multiple=True, metavar="FILE", help="A multifd channel.")
@click.option("--extract", "directory", metavar="DIR", help="Write a file a block into DIR.")
@click.option("-f", "--force", is_flag=True, help="Replace files in DIR.")
def command(
    *,
    file: str,
    as_json: bool,
    names: Sequence[str],
    span: Span | None,
    channels: Sequence[str],
    directory: str | None,
    force: bool,
) -> int:
    """Show the guest's RAM in the stream FILE, or write it to files.

    The RAM blocks, how many pages were sent and in which way, how often again,
    and a map of each block.  --extract writes what the blocks hold at the end
    as sparse files.
    """
    with ExitStack() as stack:
        source = stack.enter_context(open_source(file))
        stream = read_stream(source, walk=Walk.QUICK)
        others = [stack.enter_context(open_source(path)) for path in channels]
        ram = read_ram(stream, others)
        for channel in ram.channels:
            stack.callback(channel.source.close)
        chosen = [ram.block(name) for name in names] or list(range(len(ram.entries)))
        if span is not None and any(edge % ram.page_size for edge in span if edge < 1 << 63):
            raise click.UsageError(f"--range: not a multiple of the page size, {ram.page_size}")
        files: dict[int, str] = {}
        status = 0
        if directory is not None:
            status, files = _extracted(ram, chosen, span, directory, force=force)
        covered = coverage(ram)
        if as_json:
            from qemu_svm.render.ram_document import ram_document

            common.print_json(ram_document(stream, ram, covered, chosen, files))
        else:
            from qemu_svm.render.ram_text import report

            common.print_lines(report(ram, covered, chosen, span, files))
        return status or _told(stream, ram)


def _told(stream: Stream, ram: Ram) -> int:
    # Tell what is wrong; the status that follows.
    problems = all_problems(stream, ram)
    for problem in problems:
        complain(f"{stream.source.path}: {problem}")
    if ram.flushes and not ram.channels:
        complain(
            f"{stream.source.path}: the pages of this stream went over multifd channels",
            "name the file of each with --channel",
        )
        return EXIT_UNREADABLE
    return EXIT_UNREADABLE if problems or not stream.complete else 0


def _extracted(
    ram: Ram, chosen: Sequence[int], span: Span | None, directory: str, *, force: bool
) -> tuple[int, dict[int, str]]:
    names = [ram.blocks[number].name for number in chosen]
    try:
        with BlockFiles(directory, names, replace=force) as files:
            extract(ram, dict(zip(chosen, files.descriptors, strict=True)), span, _progress(ram))
            files.commit()
    except FileExistsError as error:
        message = f"'{error.filename}' exists already in '{directory}'; -f replaces it"
        raise click.UsageError(message) from error
    except OSError as error:
        complain(f"cannot write to '{directory}': {error.strerror}")
        return EXIT_ENVIRONMENT, {}
    return 0, dict(zip(chosen, files.names, strict=True))


def _progress(ram: Ram) -> Callable[[int], None]:
    # What to call while pages are written: words on a terminal, else nothing.
    if not sys.stderr.isatty() or not ram.runs.records:
        return lambda _done: None
    last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= ram.runs.records:
            click.echo("\r\x1b[K", nl=False, err=True)
        elif now - last > _EVERY:
            last = now
            click.echo(f"\r{100 * done // ram.runs.records:3} % of the pages", nl=False, err=True)

    return show
