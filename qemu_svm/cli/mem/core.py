"""``svmstream mem core FILE -o OUT``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.mem import common
from qemu_svm.cli.output import show
from qemu_svm.cli.status import report_damage
from qemu_svm.cli.verbs import verb
from qemu_svm.memory.reports import CoreReport


@verb(
    "core",
    "svmstream mem core dump.bin -o l1.core",
    "svmstream mem core dump.bin -o l2.core --of l2",
    "svmstream mem core dump.bin -o l2.core --of l2@0x1023e1000 --for gdb",
)
@common.options
@options.json_option
@click.option("-o", "--output", required=True, metavar="OUT", help="File of the core.")
@click.option("-f", "--force", is_flag=True, help="Replace OUT.")
@click.option(
    "--of", "level", default="l1", show_default=True, metavar="l1|l2|l2@ROOT",
    help="Whose memory and registers; ROOT is that of L2's nested page tables.",
)  # fmt: skip
@click.option(
    "--for", "form", default="crash", show_default=True, type=click.Choice(["crash", "gdb"]),
    help="crash: also for drgn, makedumpfile, libkdumpfile and volatility3; gdb: by virtual "
    "addresses.",
)  # fmt: skip
@click.option(
    "--vmcoreinfo", "given", metavar="FILE|none",
    help="The note to include, or none.  [default: searched for in memory, and verified]",
)  # fmt: skip
def command(
    *,
    file: str,
    lender: str | None,
    channels: Sequence[str],
    vcpu: int,
    as_json: bool,
    output: str,
    force: bool,
    level: str,
    form: str,
    given: str | None,
) -> int:
    """Write an ELF core of L1 or L2 for debuggers.

    A core of L1 has L1's registers for every vCPU, also for those that were
    running L2. Zero pages take no space. At the end, what is missing is listed,
    and the commands that open the core.
    """
    del vcpu
    signals.interrupt_on_termination()  # no core may be left half written
    with common.opened(file, channels, lender) as (dump, memory):
        from qemu_svm.memory.core import open_commands, plan, write
        from qemu_svm.memory.vmcoreinfo import read_note
        from qemu_svm.qmp.output import Output, writing

        note = read_note(given) if given not in (None, "none") else None
        with Output(output, replace=force) as target:
            core = plan(memory, level, form, vmcoreinfo=note, search=given is None)
            shown = progress.share(max(core.size, 1), "of the core")
            with writing(output):
                write(core, target.descriptors[""], shown)
            target.commit(sync=False)
        show(CoreReport(output, core, tuple(open_commands(core, output))), as_json=as_json)
        return report_damage(dump)
