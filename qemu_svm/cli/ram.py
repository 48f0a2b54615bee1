"""``svmstream ram FILE``."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import click

from qemu_svm.cli import EXIT_ENVIRONMENT, EXIT_UNREADABLE, common, complain, output
from qemu_svm.errors import StreamError
from qemu_svm.findings.results import RamReport
from qemu_svm.source import open_source
from qemu_svm.stream import Stream, read_stream
from qemu_svm.stream.ram.coverage import coverage
from qemu_svm.stream.ram.problems import all_problems, is_complete
from qemu_svm.stream.ram.read import Ram, read_ram

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
@common.limit_option
@click.option("--block", "names", multiple=True, metavar="NAME", help="Only this block.")
@click.option(
    "--range", "span", callback=_span, metavar="START:END",
    help="Only these bytes of each block; whole pages.",
)  # fmt: skip
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="FILE",
    help="A multifd channel, or a further connection of postcopy.",
)
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
        source = stack.enter_context(open_source(file, common.limits()))
        stream = read_stream(source, common.limits())
        ram = stack.enter_context(opened_ram(stream, channels))
        with common.excused(lambda: tell(stream, ram), damaged=not is_complete(stream, ram)):
            chosen = [ram.block(name) for name in names] or list(range(len(ram.entries)))
        if span is not None and any(edge % ram.page_size for edge in span if edge < 1 << 63):
            raise click.UsageError(f"--range: not a multiple of the page size, {ram.page_size}")
        covered = coverage(ram)
        files: dict[int, str] = {}
        status = 0
        if directory is not None:
            status, files = _extracted(ram, chosen, span, directory, force=force)
        report = RamReport(stream, ram, tuple(covered), tuple(chosen), span, files)
        output.show(report, as_json=as_json)
        return status or tell(stream, ram)


@contextmanager
def opened_ram(stream: Stream, channels: Sequence[str]) -> Iterator[Ram]:
    """Read the RAM of a stream and the files of its multifd channels."""
    with ExitStack() as stack:
        others = [stack.enter_context(open_source(path, common.limits())) for path in channels]
        yield stack.enter_context(read_ram(stream, others))


def tell(stream: Stream, ram: Ram, others: Sequence[StreamError] = ()) -> int:
    """Tell on standard error what is wrong; the exit status that follows.

    :param others: what else is wrong, of which stream and RAM do not know.
    """
    for problem in (*all_problems(stream, ram), *others):
        complain(f"{stream.source.path}: {problem}")
    return 0 if is_complete(stream, ram) and not others else EXIT_UNREADABLE


def _extracted(
    ram: Ram, chosen: Sequence[int], span: Span | None, directory: str, *, force: bool
) -> tuple[int, dict[int, str]]:
    from qemu_svm.stream.ram.extract import extract
    from qemu_svm.stream.ram.files import BlockFiles

    for signum in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: no part of the RAM stays
        signal.signal(signum, signal.default_int_handler)
    names = [ram.blocks[number].name for number in chosen]
    try:
        with BlockFiles(directory, names, replace=force) as files:
            progress = common.progress(ram.runs.records, "of the pages")
            extract(ram, dict(zip(chosen, files.descriptors, strict=True)), span, progress)
            files.commit()
    except FileExistsError as error:
        message = f"'{error.filename}' exists already in '{directory}'; -f replaces it"
        raise click.UsageError(message) from error
    except OSError as error:
        complain(f"cannot write to '{directory}': {error.strerror}")
        return EXIT_ENVIRONMENT, {}
    return 0, dict(zip(chosen, files.names, strict=True))
