"""``svmstream mem read FILE WHERE``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options
from qemu_svm.cli import output as printing
from qemu_svm.cli.mem import common
from qemu_svm.cli.status import print_error
from qemu_svm.memory.results import Status

if TYPE_CHECKING:
    from qemu_svm.memory.formats import Format
    from qemu_svm.memory.memory import GuestMemory

_DEFAULT = 256
_MOST_JSON = 16 << 20
_MOST_STRING = 4096


def _size(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    try:
        value = int(text[:-1] if unit else text, 0) << unit
    except ValueError:
        value = -1
    if not 0 < value <= 1 << 52:
        raise click.BadParameter(f"'{text}' is not a number of bytes such as 256 or 64K")
    return value


@click.command(
    "read",
    epilog="Examples: svmstream mem read dump.bin l2v:rip -n 64; "
    "svmstream mem read dump.bin l1p:0x1000 /16xg; "
    "svmstream mem read dump.bin l2v:0xffffffff81000000 -n 1M -o text.bin",
)
@common.options
@common.where_argument()
@click.argument("form", metavar="[/FMT]", required=False)
@options.json_option
@common.smm_option
@click.option(
    "-n", "--bytes", "size", callback=_size, metavar="BYTES",
    help="How much; K, M and G count. By default 256.",
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
    where: str,
    form: str | None,
    as_json: bool,
    smm: bool,
    size: int | None,
    output: str | None,
    force: bool,
) -> int:
    """Show memory at WHERE: a hexdump, or what /FMT asks for.

    /FMT is as for x in gdb and in QEMU's monitor: a count, a letter (x d u o t
    c s a i) and a size (b h w g), such as /16xg. Bytes that are not known are
    shown as ??, with the reason; in a file they are zeros.
    """
    from qemu_svm.memory import formats

    chosen = formats.parse(form) if form is not None else None
    if chosen is not None and (size is not None or output is not None):
        raise click.UsageError("/FMT says how much itself: no -n and no -o with it")
    with common.opened(file, channels, lender) as (dump, memory):
        one = common.place(memory, where, vcpu, smm=smm)
        if output is not None:
            found = _write(one, size or _DEFAULT, output, force=force)
            return common.status(dump, found)
        if as_json:
            found = _json(one, chosen, size or _DEFAULT)
        else:
            click.echo(common.heading(memory, one))
            found = _text(memory, one, chosen, size or _DEFAULT)
        return common.status(dump, found)


def _text(memory: GuestMemory, one: common.Place, form: Format | None, size: int) -> set[Status]:
    from qemu_svm.render.text import mem_read

    seen = mem_read.Seen()
    if form is None:
        lines = mem_read.hexdump(one.space.pieces(one.address, size), seen)
    elif form.letter == "i":
        from qemu_svm.cli.mem.instructions import listing

        return listing(memory, one, form.count)
    elif form.letter == "s":
        lines = mem_read.strings(one.space, one.address, form.count, _MOST_STRING, seen)
    else:
        pieces = one.space.pieces(one.address, form.count * form.size)
        lines = mem_read.values(pieces, form, seen)
    for line in lines:
        click.echo(line)
    return seen.statuses


def _json(one: common.Place, form: Format | None, size: int) -> set[Status]:
    from qemu_svm.render.json.mem import read_document

    if form is not None:
        size = form.count * form.size
    if size > _MOST_JSON:
        raise click.UsageError(f"--json shows at most {_MOST_JSON} bytes; -o writes any number")
    pieces = list(one.space.pieces(one.address, size))
    printing.print_json(read_document(one.query, one.world, pieces))
    return {piece.status for piece in pieces}


def _write(one: common.Place, size: int, path: str, *, force: bool) -> set[Status]:
    from qemu_svm.qmp.output import Output, Standard, writing

    if path == "-" and sys.stdout.isatty():
        raise click.UsageError("-o - writes bytes; send them into a file or a pipe")
    seen: dict[Status, int] = {}
    regular = path != "-"
    with Output(path, replace=force) if regular else Standard() as output:
        fd = output.descriptors[""]
        with writing(path):
            for piece in one.space.pieces(one.address, size):
                seen[piece.status] = seen.get(piece.status, 0) + piece.size
                if regular:
                    data, offset = piece.data, piece.address - one.address
                    while data:
                        done = os.pwrite(fd, data, offset)
                        data, offset = data[done:], offset + done
                else:
                    _all(fd, piece.data, piece.size)
            if regular:
                os.ftruncate(fd, size)
        output.commit()
    for status, many in seen.items():
        if status is not Status.MAPPED:
            print_error(f"{many} bytes are zeros in '{path}' because they are {status}")
    return set(seen)


def _all(fd: int, data: bytes, size: int) -> None:
    left = size
    while left > 0:
        part = data or bytes(min(left, 1 << 16))
        done = os.write(fd, part)
        data, left = data[done:], left - done
