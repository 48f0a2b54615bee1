"""``svmstream lab up``."""

from __future__ import annotations

from typing import Any

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.lab.options import box_arguments, box_options, with_modules
from qemu_svm.cli.output import show
from qemu_svm.cli.verbs import verb


@verb(
    "up",
    "svmstream lab up --kernel 6.12 --memory 4096",
    "svmstream lab run uname -r",
    "svmstream lab down",
)
@click.option("--name", metavar="NAME", help="Name of the box.  [default: box]")
@box_options
@options.json_option
def command(*, name: str | None, as_json: bool, **box: Any) -> None:
    """Start a box that stays up until `lab down`; the other verbs then use it."""
    from qemu_svm.lab.box.named import DEFAULT_NAME, up
    from qemu_svm.lab.results import BoxReport
    from qemu_svm.lab.suites.build import need_for_box

    signals.interrupt_on_termination()
    arguments = box_arguments(box)
    with progress.steps() as shown:
        # Suites are fetched here, not by the box's own process: progress can be shown.
        arguments = with_modules(arguments, shown, as_files=True)
        kernel = need_for_box(arguments, shown)
        shown.step(f"starting kernel {kernel}")
        if "share" in arguments:
            arguments["share"] = str(arguments["share"])
        if "own" in arguments:
            arguments["own"] = [str(path) for path in arguments["own"]]
        if "modules" in arguments:
            arguments["modules"] = {name: str(path) for name, path in arguments["modules"].items()}
        started = up(name or DEFAULT_NAME, arguments)
    show(BoxReport(started), as_json=as_json)
