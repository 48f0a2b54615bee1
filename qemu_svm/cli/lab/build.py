"""``svmstream lab build``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qemu_svm.cli import progress, qemus, signals
from qemu_svm.cli.lab.options import KERNEL, mirror_option
from qemu_svm.cli.verbs import verb
from qemu_svm.lab.suites.catalogue import DEFAULT_KERNEL, QEMUS, SUITES, of_kernel, of_qemu

if TYPE_CHECKING:
    from qemu_svm.lab.suites.cache import Built


@verb(
    "build",
    "svmstream lab build --kernel 6.12 --kernel 6.12.105",
)
@click.option("--kernel", "kernels", multiple=True, type=KERNEL, metavar="KERNEL",
              help="The suite with this kernel (5.10, 6.1, 6.12, 7.2), or a kernel alone by its "
              "version, such as 6.12.105; may be repeated.")  # fmt: skip
@click.option("--qemu", "lines", multiple=True, type=qemus.line, metavar="VERSION|BINARY",
              shell_complete=qemus.lines,
              help=f"The suite with this QEMU ({', '.join(QEMUS)}); may be repeated.",
              )  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="All suites.")
@mirror_option
def command(
    *, kernels: tuple[str, ...], lines: tuple[str, ...], everything: bool, mirror: str | None
) -> None:
    """Fetch suites and kernels into the cache; what is there already is left alone.

    A suite is fetched as a whole, with its kernel and its QEMU. Without options, the
    one of kernel 6.1. `lab list --available` shows which kernels can be had.
    """
    from qemu_svm.lab.suites.build import What, need
    from qemu_svm.lab.suites.kernels import wanted

    signals.interrupt_on_termination()
    needed: list[What] = [wanted(kernel) for kernel in kernels]
    needed += [of_qemu(qemu) for qemu in lines]
    if everything:
        needed += [suite for suite in SUITES if suite not in needed]
    for what in needed or [of_kernel(DEFAULT_KERNEL)]:
        with progress.steps() as shown:
            built = need(what, mirror=mirror, progress=shown)
        click.echo(f"{built.name}: {_versions(built)}")


def _versions(built: Built) -> str:
    kernel = f"Linux {built.manifest.kernel}"
    if built.is_suite:
        return f"{kernel}, QEMU {built.manifest.qemu}"
    return f"{kernel} from {built.manifest.suite}"
