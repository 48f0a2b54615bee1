"""``svmstream lab matrix``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.cluster import scheduler_option, workers
from qemu_svm.cli.lab.options import KERNEL, mirror_option, modules_of, trial_options
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, EXIT_INTERRUPTED, print_error
from qemu_svm.cli.verbs import verb
from qemu_svm.lab.suites.catalogue import QEMUS

if TYPE_CHECKING:
    from qemu_svm.lab import Box
    from qemu_svm.lab.matrix import Host


@verb(
    "matrix",
    "svmstream lab matrix",
    "svmstream lab matrix --guest smm --host 6.1/7.2 --host 6.12/10.0",
    "svmstream lab matrix --host 6.1/7.2 --host 6.1/10.0 --patch v3.patch",
    "svmstream lab matrix --all-pairings --scheduler tcp://10.0.0.1:8786",
)
@click.option("--guest", "names", multiple=True, default=("nested", "nested-npt"),
              show_default=True, metavar="NAME", help="A guest; may be repeated.")  # fmt: skip
@click.option("--host", "hosts", multiple=True, metavar="KERNEL/QEMU",
              help="A host, such as 6.1/7.2; may be repeated.  [default: each kernel with the "
              "QEMU of its suite]")  # fmt: skip
@click.option("--all-pairings", is_flag=True, help="Every kernel with every QEMU.")
@click.option("--emulator", type=click.Choice(QEMUS),
              help="QEMU that emulates the hosts.  [default: the one installed here]",
              )  # fmt: skip
@trial_options
@mirror_option
@scheduler_option
@options.json_option
def command(
    *,
    names: tuple[str, ...],
    hosts: tuple[str, ...],
    all_pairings: bool,
    emulator: str | None,
    patch: Path | None,
    module_files: tuple[Path, ...],
    mirror: str | None,
    scheduler: str | None,
    as_json: bool,
) -> int:
    """Save on each host, restore on each other one: L2 must continue to count.

    A host is a kernel (5.10, 6.1, 6.12, 7.2, or one by its version, such as
    6.12.105) and a QEMU. The machine type is that of the older QEMU.
    The exit status is 1 if any pair fails; the table shows which rules apply to it.
    An interrupted run prints the pairs that are done. --patch builds KVM of every
    host with the patch; --module is for hosts with one kernel. With --scheduler,
    workers of a Dask cluster do it, a host at a time, in boxes of their own.
    """
    from qemu_svm.lab import Box, matrix
    from qemu_svm.lab.guests import LINUX, LINUX_IN_LINUX, find

    guests = [find(name) for name in names]
    if {LINUX.name, LINUX_IN_LINUX.name} & set(names):
        raise click.BadParameter("linux takes too long for a matrix", param_hint="--guest")
    every = matrix.EVERY_PAIRING if all_pairings else matrix.SAME_SUITE
    chosen = [_host(text) for text in hosts] or list(every)
    if scheduler is not None and mirror is not None:
        raise click.UsageError("--mirror is for this host: workers have what they need, or say so")
    signals.interrupt_on_termination()
    names_of = [path.name for path in ((patch,) if patch is not None else module_files)]
    result, interrupted = matrix.Matrix(foreign=" and ".join(names_of) or None), False
    with progress.steps() as shown:

        def boot(host: Host) -> Box:
            return Box(host.kernel, qemu=host.qemu, emulator=emulator, mirror=mirror,
                       modules=modules[host.kernel], progress=shown)  # fmt: skip

        modules = {  # before a box is booted
            kernel: {} if module is None else module.files
            for kernel in dict.fromkeys(host.kernel for host in chosen)
            for module in [modules_of(kernel, patch, module_files, mirror=mirror, progress=shown)]
        }
        try:
            if scheduler is None:
                matrix.run(chosen, guests, boot=boot, progress=shown, into=result)
            else:
                with workers(scheduler, shown.note) as cluster:
                    matrix.spread(chosen, guests, cluster, emulator=emulator, modules=modules,
                                  progress=shown, into=result)  # fmt: skip
        except KeyboardInterrupt:
            interrupted = True
    show(result, as_json=as_json)
    if interrupted:
        print_error("interrupted; the table shows the pairs that were done")
        return EXIT_INTERRUPTED
    return 0 if all(cell.outcome.good for cell in result.cells) else EXIT_FINDINGS


def _host(text: str) -> Host:
    from qemu_svm.lab.matrix import Host

    kernel, _, qemu = text.partition("/")
    if qemu not in QEMUS:
        raise click.BadParameter(
            f"unknown host '{text}'; a host is KERNEL/QEMU, such as 6.1/7.2 or 6.12.105/10.0; "
            f"QEMUs are {', '.join(QEMUS)}",
            param_hint="--host",
        )
    try:
        return Host(KERNEL.convert(kernel, None, None), qemu)
    except click.BadParameter as error:
        raise click.BadParameter(error.message, param_hint="--host") from None
