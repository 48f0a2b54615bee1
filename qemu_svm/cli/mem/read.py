"""``svmstream mem read FILE WHERE``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from qemu_svm.cli import options, sizes
from qemu_svm.cli.mem import common
from qemu_svm.cli.output import show
from qemu_svm.cli.status import print_error
from qemu_svm.cli.verbs import verb
from qemu_svm.memory.reports import MemoryRead, Place
from qemu_svm.memory.results import Status

_DEFAULT = 256
_MOST_JSON = 16 << 20


@verb(
    "read",
    "svmstream mem read dump.bin l2v:rip -n 64",
    "svmstream mem read dump.bin l1p:0x1000 /16xg",
    "svmstream mem read dump.bin l2v:0xffffffff81000000 -n 1M -o text.bin",
)
@common.options
@common.where_argument(required=False)
@click.argument("form", metavar="[/FMT]", required=False)
@options.json_option
@common.smm_option
@click.option(
    "-n", "--bytes", "size", callback=sizes.size, metavar="BYTES",
    help="Number of bytes, such as 64K.  [default: 256]",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="FILE", help="Write the bytes to FILE; - is standard output."
)
@click.option("-f", "--force", is_flag=True, help="Replace FILE.")
def command(
    *,
    file: str,
    lender: str | None,
    channels: Sequence[str],
    vcpu: int,
    where: str | None,
    form: str | None,
    as_json: bool,
    smm: bool,
    size: int | None,
    output: str | None,
    force: bool,
) -> int:
    """Show memory at WHERE: a hexdump, or in the format /FMT.

    WHERE is the vCPU's next instruction by default.

    /FMT is that of x in gdb and in QEMU's monitor: a count, a letter (x d u o t
    c s a i) and a size (b h w g), such as /16xg. Unknown bytes are shown as ??,
    with the reason; in a file they are zeros.
    """
    from qemu_svm.memory import formats

    if where is not None and where.startswith("/") and form is None:
        where, form = None, where
    chosen = formats.parse(form) if form is not None else None
    if chosen is not None and (size is not None or output is not None):
        raise click.UsageError("/FMT has a count of its own: it cannot be used with -n or -o")
    with common.opened(file, channels, lender) as (dump, memory):
        place = common.place(memory, where, vcpu, smm=smm)
        if output is not None:
            return common.status(dump, _write(place, size or _DEFAULT, output, force=force))
        if chosen is not None and chosen.letter == "i" and not as_json:
            code = common.disassembly(memory, place, chosen.count)
            show(code, as_json=False)
            return common.status(dump, [one.status for one in code.instructions])
        many = chosen.count * chosen.size if chosen is not None else size or _DEFAULT
        if as_json and many > _MOST_JSON:
            raise click.UsageError(f"--json shows at most {_MOST_JSON} bytes; -o writes any number")
        result = MemoryRead(place, many, chosen)
        show(result, as_json=as_json)
        return common.status(dump, result.statuses)


def _write(place: Place, size: int, path: str, *, force: bool) -> set[Status]:
    from qemu_svm.memory.copying import write_memory
    from qemu_svm.qmp.output import Output, Standard, writing

    if path == "-" and sys.stdout.isatty():
        raise click.UsageError("-o - writes bytes: redirect them to a file or a pipe")
    regular = path != "-"
    with Output(path, replace=force) if regular else Standard() as output, writing(path):
        fd = output.descriptors[""]
        sizes_of = write_memory(place.space, place.address, size, fd, sparse=regular)
        output.commit()
    for status, many in sizes_of.items():
        if status is not Status.MAPPED:
            print_error(f"{many} bytes are zeros in '{path}' because they are {status}")
    return set(sizes_of)
