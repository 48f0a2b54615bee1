"""``svmstream mem translate FILE WHERE``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from qemu_svm.cli import options
from qemu_svm.cli.mem import common
from qemu_svm.cli.output import show
from qemu_svm.cli.verbs import verb
from qemu_svm.memory.reports import Translation


def _access(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    if set(text) - set("rwxu"):
        raise click.BadParameter(
            "expected letters out of r (read), w (write), x (execute), u (user mode)"
        )
    return text


@verb(
    "translate",
    "svmstream mem translate dump.bin l2v:rip --access x",
)
@common.options
@common.where_argument()
@options.json_option
@common.smm_option
@click.option(
    "--access", default="", callback=_access, metavar="LETTERS",
    help="Check permissions too: r, w, x, and u for user mode, in any combination.",
)  # fmt: skip
def command(
    *,
    file: str,
    lender: str | None,
    channels: Sequence[str],
    vcpu: int,
    where: str,
    as_json: bool,
    smm: bool,
    access: str,
) -> int:
    """Show every step of the translation of WHERE, and why it ends.

    In l2v each access to one of L2's page tables is itself translated by L1's
    nested page tables; these steps are shown after it. The exit status is 1 if
    the address does not lead to memory that the stream contains.
    """
    with common.opened(file, channels, lender) as (dump, memory):
        place = common.place(memory, where, vcpu, smm=smm)
        result = Translation(place, place.space.walk(place.address, access))
        show(result, as_json=as_json)
        return common.status(dump, [result.walk.status])
