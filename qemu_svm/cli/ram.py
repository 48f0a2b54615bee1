"""``svmstream ram FILE``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from qemu_svm.cli import options, progress, signals, sizes
from qemu_svm.cli.output import show
from qemu_svm.cli.status import report_problems
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb
from qemu_svm.errors import OutputExists
from qemu_svm.qmp.output import Output


@verb(
    "ram",
    "svmstream ram dump.bin",
    "svmstream ram --extract out --block pc.ram dump.bin",
    "svmstream ram dump.bin --image map.png",
)
@options.file_argument
@options.json_option
@options.limit_option
@click.option("--block", "names", multiple=True, metavar="NAME", help="Only this block.")
@click.option(
    "--range", "span", callback=sizes.span, metavar="START:END",
    help="Only these bytes of each block; whole pages.",
)  # fmt: skip
@options.description_option
@options.page_size_option
@options.channel_option
@click.option("-v", "--verbose", is_flag=True, help="Maps with a character for each page.")
@click.option("--extract", "directory", metavar="DIR",
              help="Write each block into a file in DIR.")  # fmt: skip
@click.option("--image", metavar="OUT", help="Draw the maps into a file: OUT.png or OUT.svg.")
@click.option("-f", "--force", is_flag=True, help="Replace files in DIR, or OUT.")
def command(
    *,
    file: str,
    as_json: bool,
    names: Sequence[str],
    span: tuple[int, int] | None,
    lender: str | None,
    channels: Sequence[str],
    verbose: bool,
    directory: str | None,
    image: str | None,
    force: bool,
) -> int:
    """Show the guest's RAM in the stream FILE, or write it to files.

    Lists the RAM blocks and how their pages were sent, and how often again, and
    draws a map of each block. --extract writes the final content of the blocks
    to sparse files, --image the maps to a picture.
    """
    if directory == "-":
        raise click.UsageError("--extract writes files into a directory; ./- is one of that name")
    form = None
    if image is not None:
        form = image.rpartition(".")[2].lower()
        if form not in ("png", "svg"):
            raise click.UsageError("--image draws a .png or an .svg: give the file such a name")
    with opened(file, channels=channels, description=lender) as dump:
        report = dump.pages(names, span=span)
        if directory is not None:
            from qemu_svm.stream.ram.files import write_blocks

            signals.interrupt_on_termination()  # no file may be left half written
            shown = progress.share(report.pages_sent, "of the pages")
            try:
                files = write_blocks(
                    dump.ram, report.chosen, directory, span, replace=force, progress=shown
                )
            except OutputExists as error:
                raise click.UsageError(f"{error}; -f replaces it") from error
            report = report.with_files(files)
        if image is not None:
            from qemu_svm.render.html import picture

            drawn = picture.png(report) if form == "png" else picture.svg(report)
            signals.interrupt_on_termination()
            try:
                with Output(image, replace=force) as out:
                    out.fill(drawn)
            except OutputExists as error:
                raise click.UsageError(f"{error}; -f replaces it") from error
        show(report, as_json=as_json, verbose=verbose)
        return report_problems(file, report.problems, complete=report.complete)
