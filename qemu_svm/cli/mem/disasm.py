"""``svmstream mem disasm FILE [WHERE]``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from qemu_svm.cli import options
from qemu_svm.cli import output as printing
from qemu_svm.cli.mem import common
from qemu_svm.cli.mem.instructions import instructions, listing
from qemu_svm.memory.results import Status


@click.command(
    "disasm",
    epilog="Examples: svmstream mem disasm dump.bin; svmstream mem disasm dump.bin l1v:rip -n 4",
)
@common.options
@common.where_argument(required=False)
@options.json_option
@common.smm_option
@click.option(
    "-n", "count", default=8, show_default=True, metavar="N", type=click.IntRange(1, 1 << 16),
    help="How many instructions.",
)  # fmt: skip
def command(
    *,
    file: str,
    lender: str | None,
    channels: Sequence[str],
    vcpu: int,
    where: str | None,
    as_json: bool,
    smm: bool,
    count: int,
) -> int:
    """Disassemble at WHERE, by default at the vCPU's next instruction.

    16, 32 or 64 bits as the code segment of that level says. Needs the package
    capstone.
    """
    common.extra("capstone", "disassembly")
    with common.opened(file, channels, lender) as (dump, memory):
        one = common.place(memory, where, vcpu, smm=smm)
        if as_json:
            from qemu_svm.render.json.mem import disassembly_document

            found = list(instructions(memory, one, count))
            printing.print_json(disassembly_document(one.query, one.world, found))
            return common.status(dump, [Status(item["status"]) for item in found])
        click.echo(common.heading(memory, one))
        return common.status(dump, listing(memory, one, count))
