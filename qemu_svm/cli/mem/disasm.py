"""``svmstream mem disasm FILE [WHERE]``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from qemu_svm.cli import options
from qemu_svm.cli.mem import common
from qemu_svm.cli.output import show
from qemu_svm.cli.verbs import verb


@verb(
    "disasm",
    "svmstream mem disasm dump.bin",
    "svmstream mem disasm dump.bin l1v:rip -n 4",
)
@common.options
@common.where_argument(required=False)
@options.json_option
@common.smm_option
@click.option(
    "-n", "count", default=8, show_default=True, metavar="N", type=click.IntRange(1, 1 << 16),
    help="Number of instructions.",
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

    As 16, 32 or 64-bit code, depending on the code segment of that level. Needs
    the Python package capstone.
    """
    with common.opened(file, channels, lender) as (dump, memory):
        result = common.disassembly(memory, common.place(memory, where, vcpu, smm=smm), count)
        show(result, as_json=as_json)
        return common.status(dump, [one.status for one in result.instructions])
