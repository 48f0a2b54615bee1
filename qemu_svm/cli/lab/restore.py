"""``svmstream lab restore FILE``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from qemu_svm.cli import EXIT_FINDINGS, EXIT_REFUSED, EXIT_UNREADABLE, output
from qemu_svm.cli import common as streams
from qemu_svm.cli.lab.common import box_arguments, box_options, name_option
from qemu_svm.cli.lab.target import RULE, session


@click.command(
    "restore",
    epilog=RULE + "\n\nExample: svmstream lab restore dump.bin --kernel 6.12 --qemu 10.0",
)
@click.argument("file", metavar="FILE")
@name_option
@box_options
@click.option("--machine", metavar="TYPE", help="Machine type; by default the stream's.")
@click.option(
    "--qemu-arg",
    "more",
    multiple=True,
    metavar="ARG",
    help="One more argument of QEMU, such as a device of the stream; may be repeated.",
)
@streams.json_option
@streams.limit_option
def command(
    *,
    file: str,
    name: str | None,
    machine: str | None,
    more: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> int:
    """Restore the stream FILE in a box and see whether its guests go on.

    Of a guest of this project both counters must move: L2's, and that of the
    exits which L1 takes.  Exit status: 0 it goes on, 5 QEMU or KVM refuse it,
    1 it stands still, goes wrong, or the host's kernel crashes.
    """
    from qemu_svm.lab.explain import explanations
    from qemu_svm.lab.restore import Verdict, copy_to_share, restore, settings_of
    from qemu_svm.lab.results import RestoreReport

    with streams.opened(file) as saved:
        if not saved.vcpus:
            streams.warn(saved)
            return EXIT_UNREADABLE
        settings = settings_of(saved, machine)
        settings = replace(settings, devices=settings.devices + more)
        with session(name, options) as box:
            outcome = restore(box, copy_to_share(box, saved.stream.source), settings)
            versions = dict(box.versions)
        npt = bool(box_arguments(options).get("npt", True))
        why = () if outcome.good else explanations(saved, versions, npt=npt)
    output.show(RestoreReport(file, outcome, settings, versions, tuple(why)), as_json=as_json)
    if outcome.verdict is Verdict.REFUSED:
        return EXIT_REFUSED
    return 0 if outcome.good else EXIT_FINDINGS
