"""``svmstream mem drgn FILE``."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from typing import Any

import click

from qemu_svm.cli.mem import common
from qemu_svm.cli.status import report_damage
from qemu_svm.cli.verbs import verb
from qemu_svm.optional import optional


@verb(
    "drgn",
    "svmstream mem drgn dump.bin --of l2 -s vmlinux",
    "svmstream mem drgn dump.bin -s vmlinux -e \"print(prog['init_uts_ns'].name)\"",
    "svmstream mem drgn dump.bin -s vmlinux script.py",
)
@common.options
@click.option(
    "--of", "level", default="l1", show_default=True, metavar="l1|l2|l2@ROOT",
    help="Whose memory; ROOT is that of L2's nested page tables.",
)  # fmt: skip
@click.option(
    "-s", "--symbols", multiple=True, metavar="VMLINUX",
    help="The kernel with debugging symbols, and modules; may be repeated.",
)  # fmt: skip
@click.option("-e", "--execute", metavar="CODE", help="Run CODE instead of a prompt.")
@click.argument("script", required=False)
def command(
    *,
    file: str,
    lender: str | None,
    channels: Sequence[str],
    vcpu: int,
    level: str,
    symbols: Sequence[str],
    execute: str | None,
    script: str | None,
) -> int:
    """Debug L1 or L2 with drgn, directly from the stream FILE.

    Starts a prompt with the program as prog, or runs a script that uses prog. The
    level must run Linux. Needs the Python package drgn.
    """
    del vcpu
    optional("drgn", "this verb")
    with common.opened(file, channels, lender) as (dump, memory):
        from qemu_svm.memory.drgn_program import program

        prog = program(memory, level)
        common.load_symbols(prog, symbols)
        status = report_damage(dump)
        drgn: Any = optional("drgn", "this verb")
        cli: Any = optional("drgn.cli", "this verb")
        drgn.set_default_prog(prog)
        if execute is not None:
            exec(compile(execute, "<-e>", "exec"), {"prog": prog, "drgn": drgn})
        elif script is not None:
            sys.argv = [script]
            runpy.run_path(script, init_globals={"prog": prog}, run_name="__main__")
        else:
            cli.run_interactive(prog)
        return status
