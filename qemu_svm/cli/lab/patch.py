"""``svmstream lab patch``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.lab.options import KERNEL, mirror_option, own_kernel_options
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, report_damage
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb

if TYPE_CHECKING:
    from qemu_svm.lab.trial.subject import Subject


@verb(
    "patch",
    "svmstream lab patch v3-nested-save.patch --kernel 6.1 dump.bin",
    "git format-patch -1 --stdout | svmstream lab patch - --kernel 6.12 dump.bin",
    "svmstream lab patch --module kvm-amd.ko --kernel 6.12.117 dump.bin",
)
@click.argument("arguments", metavar="[PATCH] FILE...", nargs=-1, required=True)
@options.json_option
@options.limit_option
@click.option("--kernel", type=KERNEL, metavar="KERNEL", default="6.1", show_default=True,
              help="Kernel of the emulated host, which the patch is for: 5.10, 6.1, 6.12, 7.2, or "
              "one by its version, such as 6.12.117.")  # fmt: skip
@click.option("--module", "modules", multiple=True, metavar="FILE.ko",
              type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Try this kvm-amd.ko or kvm.ko instead of a patch; may be given twice.",
              )  # fmt: skip
@click.option("--source", metavar="DIR",
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Try KVM built from this kernel tree.")  # fmt: skip
@own_kernel_options
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
    arguments: tuple[str, ...],
    as_json: bool,
    kernel: str,
    modules: tuple[Path, ...],
    source: Path | None,
    own: tuple[Path, Path] | None,
    npt: str,
    sequences: int | None,
    seed: int,
    verbose: bool,
    mirror: str | None,
) -> int:
    """Put a patch of KVM on trial, and show what it changes.

    PATCH is a mail, a mailbox with a series, or a diff; - is standard input. It is
    applied to the source of the box's kernel and built in a root of its own; two
    boxes, with and without it, restore the streams FILE by the same plans. Shown is
    the first step at which they differ: in the answers of ioctls, in the vCPU in the
    kernel's memory. The exit status is 1 if anything differs.
    """
    from qemu_svm.lab.trial.trial import put_on_trial

    signals.interrupt_on_termination()
    subject, files = _subject(arguments, modules, source, own)
    with ExitStack() as stack:
        machines = []
        for path in files:
            dump = stack.enter_context(opened(path))
            if not dump.vcpus:
                report_damage(dump)
            machines.append(dump.machine)
        with progress.steps() as shown:
            found = put_on_trial(
                subject, machines, kernel=kernel, sequences=sequences, seed=seed,
                npt=npt == "on", mirror=mirror, progress=shown,
            )  # fmt: skip
        show(found, as_json=as_json, verbose=verbose)
    return 0 if found.good else EXIT_FINDINGS


def _subject(
    arguments: tuple[str, ...],
    modules: tuple[Path, ...],
    source: Path | None,
    own: tuple[Path, Path] | None,
) -> tuple[Subject, tuple[str, ...]]:
    # What is on trial, and the streams.
    from qemu_svm.lab.trial.patches import LIMIT, read_patch
    from qemu_svm.lab.trial.subject import Subject, subject_of

    if sum(map(bool, (modules, source, own))) > 1:
        raise click.UsageError("one of --module, --source and --kernel-image")
    if modules:
        return subject_of(None, modules), arguments
    if source is not None:
        return Subject(str(source), source=source), arguments
    if own is not None:
        return Subject(str(own[0]), own=own), arguments
    if len(arguments) < 2:
        raise click.UsageError("a PATCH and a FILE are needed")
    path = arguments[0]
    name = "standard input" if path == "-" else Path(path).name
    try:
        with click.open_file(path, "rb") as file:
            data = file.read(LIMIT + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no standard input
        why = getattr(error, "strerror", None) or str(error)
        raise click.BadParameter(f"'{path}': {why}", param_hint="PATCH") from None
    return Subject(name, read_patch(data, name)), arguments[1:]
