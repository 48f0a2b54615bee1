"""``svmstream lab up``."""

from __future__ import annotations

from typing import Any

import click

from qemu_svm.cli import output
from qemu_svm.cli.common import json_option
from qemu_svm.cli.lab.common import box_arguments, box_options, progress


@click.command("up")
@click.option("--name", metavar="NAME", help="Name of the box.  [default: box]")
@box_options
@json_option
def command(name: str | None, as_json: bool, **options: Any) -> None:  # noqa: FBT001
    """Start a box that stays, until `lab down`; the other verbs then use it."""
    from qemu_svm.cli.lab.target import end_on_signals
    from qemu_svm.lab.box.named import DEFAULT_NAME, up
    from qemu_svm.lab.results import BoxReport
    from qemu_svm.lab.suites import build
    from qemu_svm.lab.suites import catalogue as suites

    end_on_signals()
    arguments = box_arguments(options)
    with progress() as show:
        # What must be fetched is fetched here, where it can be seen.
        kernel = arguments.get("kernel", suites.DEFAULT_KERNEL)
        wanted = [suites.of_kernel(kernel)]
        wanted += [
            suites.of_qemu(arguments[key]) for key in ("qemu", "emulator") if key in arguments
        ]
        for suite in wanted:
            build.need(suite, mirror=arguments.get("mirror"), progress=show)
        show.step(f"starting kernel {kernel}")
        if "share" in arguments:
            arguments["share"] = str(arguments["share"])
        state = up(name or DEFAULT_NAME, arguments)
    output.show(BoxReport(state), as_json=as_json)
