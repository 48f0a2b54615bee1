"""``svmstream lab patch``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.lab.options import mirror_option
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, report_damage
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb
from qemu_svm.lab.suites.catalogue import KERNELS


@verb(
    "patch",
    "svmstream lab patch v3-nested-save.patch --kernel 6.1 dump.bin",
    "git format-patch -1 --stdout | svmstream lab patch - --kernel 6.12 dump.bin",
)
@click.argument("patch", metavar="PATCH", type=click.File("rb"))
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@options.json_option
@options.limit_option
@click.option("--kernel", type=click.Choice(KERNELS), default="6.1", show_default=True,
              help="Kernel of the emulated host, which the patch is for.")  # fmt: skip
@options.npt_option
@click.option("--sequences", type=click.IntRange(0, 10_000), metavar="N",
              help="Random sequences for each stream, besides the plans.  [default: what 40 "
              "seconds have, at most 100]")  # fmt: skip
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), metavar="S",
              help="Seed of the random sequences.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Show all changes of a step.")
@mirror_option
def command(
    *,
    patch: BinaryIO,
    files: tuple[str, ...],
    as_json: bool,
    kernel: str,
    npt: str,
    sequences: int | None,
    seed: int,
    verbose: bool,
    mirror: str | None,
) -> int:
    """Put a patch of kvm-amd on trial, and show what it changes.

    PATCH is a mail, a mailbox with a series, or a diff; - is standard input. It is
    applied to the source of the box's kernel and built in a root of its own; two
    boxes, with and without it, restore the streams FILE by the same plans. Shown is
    the first step at which they differ: in the answers of ioctls, in the vCPU in the
    kernel's memory. The exit status is 1 if anything differs.
    """
    from qemu_svm.lab.trial.patches import LIMIT, read_patch
    from qemu_svm.lab.trial.trial import put_on_trial

    signals.interrupt_on_termination()
    path = getattr(patch, "name", None)  # standard input may be anything
    name = Path(path).name if isinstance(path, str) and path != "<stdin>" else "standard input"
    change = read_patch(patch.read(LIMIT + 1), name)
    with ExitStack() as stack:
        machines = []
        for path in files:
            dump = stack.enter_context(opened(path))
            if not dump.vcpus:
                report_damage(dump)
            machines.append(dump.machine)
        with progress.steps() as shown:
            found = put_on_trial(
                name, change, machines, kernel=kernel, sequences=sequences, seed=seed,
                npt=npt == "on", mirror=mirror, progress=shown,
            )  # fmt: skip
        show(found, as_json=as_json, verbose=verbose)
    return 0 if found.good else EXIT_FINDINGS
