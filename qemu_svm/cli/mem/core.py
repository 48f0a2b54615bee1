"""``svmstream mem core FILE -o OUT``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.mem import common
from qemu_svm.cli.output import show
from qemu_svm.cli.status import report_damage
from qemu_svm.errors import PathError
from qemu_svm.memory.reports import CoreReport

if TYPE_CHECKING:
    from qemu_svm.memory.core import Plan
    from qemu_svm.memory.vmcoreinfo import VmCoreInfo

_NOTE = 4096


@click.command(
    "core",
    epilog="Examples: svmstream mem core dump.bin -o l1.core; "
    "svmstream mem core dump.bin -o l2.core --of l2; "
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
        from qemu_svm.memory.core import plan, write
        from qemu_svm.qmp.output import Output, writing

        note = _note(given) if given not in (None, "none") else None
        with Output(output, replace=force) as target:
            core = plan(memory, level, form, vmcoreinfo=note, search=given is None)
            shown = progress.share(max(core.size, 1), "of the core")
            with writing(output):
                write(core, target.descriptors[""], shown)
            target.commit(sync=False)
        show(CoreReport(output, core, tuple(_commands(core, output))), as_json=as_json)
        return report_damage(dump)


def _note(path: str | None) -> VmCoreInfo:
    # The text of a note, as makedumpfile -g writes it, or with its header.
    from qemu_svm.memory.vmcoreinfo import VmCoreInfo

    try:
        with open(path or "", "rb") as file:
            data = file.read(_NOTE + 1)
    except OSError as error:
        raise PathError(f"cannot read '{path}': {error.strerror}") from error
    at = data.find(b"OSRELEASE=")
    if at < 0 or len(data) > _NOTE:
        raise PathError(f"'{path}' is not VMCOREINFO: it has no OSRELEASE=, or is too long")
    return VmCoreInfo(0, data[at:].rstrip(b"\0"))


def _commands(core: Plan, path: str) -> Iterator[str]:
    quoted = shlex.quote(path)
    note = core.vmcoreinfo
    image = f"vmlinux-{note.release}" if note is not None and note.release else "vmlinux"
    image = shlex.quote(image)
    if core.form == "crash":
        yield f"crash -s {image} {quoted}"
        yield f"drgn -c {quoted} -s {image}"
        return
    shift = note.kaslr_offset if note is not None else None
    symbols = f"add-symbol-file {image} -o {shift:#x}" if shift else f"file {image}"
    yield f"gdb -ex {shlex.quote(symbols)} -c {quoted}"
