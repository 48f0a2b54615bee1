"""``svmstream lab build``."""

from __future__ import annotations

import click

from qemu_svm.cli.lab.common import mirror_option, progress
from qemu_svm.lab.suites.catalogue import DEFAULT_KERNEL, KERNELS, QEMUS, SUITES, of_kernel, of_qemu


@click.command("build")
@click.option("--kernel", "kernels", multiple=True, type=click.Choice(KERNELS))
@click.option("--qemu", "qemus", multiple=True, type=click.Choice(QEMUS))
@click.option("--all", "everything", is_flag=True, help="All suites.")
@mirror_option
def command(
    kernels: tuple[str, ...],
    qemus: tuple[str, ...],
    everything: bool,  # noqa: FBT001
    mirror: str | None,
) -> None:
    """Fetch suites into the cache; what is there already is left alone.

    A suite comes whole, with its kernel and its QEMU. Without options: the one
    of kernel 6.1.
    """
    from qemu_svm.cli.lab.target import end_on_signals
    from qemu_svm.lab.suites.build import need

    end_on_signals()
    wanted = [of_kernel(kernel) for kernel in kernels] + [of_qemu(qemu) for qemu in qemus]
    for suite in SUITES if everything else wanted or [of_kernel(DEFAULT_KERNEL)]:
        with progress() as show:
            built = need(suite, mirror=mirror, progress=show)
        manifest = built.manifest
        click.echo(f"{suite.name}: Linux {manifest.kernel}, QEMU {manifest.qemu}")
