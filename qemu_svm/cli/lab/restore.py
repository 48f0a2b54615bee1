"""``svmstream lab restore FILE``."""

from __future__ import annotations

from typing import Any

import click

from qemu_svm.cli import options
from qemu_svm.cli.lab.boxes import session
from qemu_svm.cli.lab.options import (
    WHICH_BOX,
    box_arguments,
    box_options,
    name_option,
    record_option,
)
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, EXIT_REFUSED, EXIT_UNREADABLE, report_damage
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb


@verb(
    "restore",
    "svmstream lab restore dump.bin --kernel 6.12 --qemu 10.0",
    epilog=WHICH_BOX,
)
@options.file_argument
@name_option
@box_options
@click.option("--machine", metavar="TYPE", help="Machine type.  [default: the stream's]")
@click.option("--qemu-arg", "devices", multiple=True, metavar="ARG",
              help="Additional argument for QEMU, such as a device of the stream; may be repeated.",
              )  # fmt: skip
@record_option
@options.json_option
@options.limit_option
@options.description_option
@options.channel_option
@options.fail_on_option()
def command(
    *,
    file: str,
    name: str | None,
    machine: str | None,
    devices: tuple[str, ...],
    record: str | None,
    as_json: bool,
    lender: str | None,
    channels: tuple[str, ...],
    **box: Any,
) -> int:
    """Restore the stream FILE in a box and check whether its guests continue.

    Of a guest of this lab two counters must advance: L2's, and that of the exits
    that L1 handles; of any other guest, registers must change. Exit
    status: 0 the guest continues, 5 QEMU or KVM refuses the stream, 1 the guest
    stops or goes wrong, or the host's kernel crashes.
    """
    from qemu_svm.lab.recording import refuse_existing
    from qemu_svm.lab.restore import Verdict
    from qemu_svm.lab.results import restore_in

    if record is not None:
        refuse_existing(record)
    with opened(file, channels=channels, description=lender) as dump:
        if not dump.vcpus:
            report_damage(dump)
            return EXIT_UNREADABLE
        with session(name, box) as host:
            npt = bool(box_arguments(box).get("npt", True))
            report = restore_in(
                host, dump.machine, machine, devices=devices, npt=npt, record=record
            )
    show(report, as_json=as_json)
    if report.outcome.verdict is Verdict.REFUSED:
        return EXIT_REFUSED
    return EXIT_FINDINGS if not report.outcome.good and options.fails() else 0
