"""``svmstream lab build``."""

from __future__ import annotations

import click

from qemu_svm.cli import progress, signals
from qemu_svm.cli.lab.options import mirror_option
from qemu_svm.lab.suites.catalogue import DEFAULT_KERNEL, KERNELS, QEMUS, SUITES, of_kernel, of_qemu


@click.command("build")
@click.option("--kernel", "kernels", multiple=True, type=click.Choice(KERNELS),
              help="The suite with this kernel; may be repeated.")  # fmt: skip
@click.option("--qemu", "qemus", multiple=True, type=click.Choice(QEMUS),
              help="The suite with this QEMU; may be repeated.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="All suites.")
@mirror_option
def command(
    *, kernels: tuple[str, ...], qemus: tuple[str, ...], everything: bool, mirror: str | None
) -> None:
    """Fetch suites into the cache; those that are there already are left alone.

    A suite is fetched as a whole, with its kernel and its QEMU. Without options, the
    one of kernel 6.1.
    """
    from qemu_svm.lab.suites.build import need

    signals.interrupt_on_termination()
    wanted = [of_kernel(kernel) for kernel in kernels] + [of_qemu(qemu) for qemu in qemus]
    for suite in SUITES if everything else wanted or [of_kernel(DEFAULT_KERNEL)]:
        with progress.steps() as shown:
            built = need(suite, mirror=mirror, progress=shown)
        manifest = built.manifest
        click.echo(f"{suite.name}: Linux {manifest.kernel}, QEMU {manifest.qemu}")
