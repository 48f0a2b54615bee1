"""``svmstream capture --qmp SOCKET -o FILE``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options, progress, signals, sizes
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_INTERRUPTED, print_error
from qemu_svm.cli.verbs import verb

if TYPE_CHECKING:
    from qemu_svm.qmp.address import Address


@verb(
    "capture",
    "svmstream capture --qmp /run/vm.qmp -o dump.bin",
    "svmstream capture --qmp localhost:4444 -o dump.bin --stop",
    "svmstream capture --domain guest -o dump.bin",
    "svmstream capture --qmp /run/vm.qmp -o dump.bin --multifd 4 --compression zstd",
)
@options.vm_options()
@click.option("-o", "--output", metavar="FILE", required=True,
              help="Created when complete; channels are FILE.channelN. - is standard output.",
              )  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Replace FILE.")
@options.json_option
@click.option("--live/--stop", default=True, show_default=True,
              help="Stop the guest only for the last pass, or for the whole capture.")  # fmt: skip
@click.option("--mapped-ram", is_flag=True, help="Each page at a fixed offset (QEMU 9.0).")
@click.option("--multifd", type=click.IntRange(1, 255), default=None, metavar="N",
              help="Send RAM over N channels.")  # fmt: skip
@click.option("--compression", type=click.Choice(["none", "zlib", "zstd"]), default="none",
              help="Of the multifd channels.")  # fmt: skip
@click.option("--xbzrle", is_flag=True, help="Send changed pages as deltas.")
@click.option("--background-snapshot", is_flag=True,
              help="Capture the state at the start; the guest is not stopped for RAM (QEMU 6.0).",
              )  # fmt: skip
@click.option("--bandwidth", callback=sizes.size, metavar="SIZE",
              help="Limit in bytes per second, such as 200M.  [default: none]")  # fmt: skip
@click.option("--downtime", type=click.IntRange(0, 2_000_000), metavar="MS",
              help="Limit for the duration of the last pass.")  # fmt: skip
@click.option("--stop-after", type=click.FloatRange(min=0), metavar="SECONDS",
              help="Stop the guest if the migration has not converged by then.")  # fmt: skip
@click.option("--qemu-dir", metavar="DIR",
              help="QEMU writes FILE itself, into the directory that it sees as DIR.",
              )  # fmt: skip
@options.timeout_option
def command(
    *,
    address: Address,
    output: str,
    force: bool,
    as_json: bool,
    live: bool,
    mapped_ram: bool,
    multifd: int | None,
    compression: str,
    xbzrle: bool,
    background_snapshot: bool,
    bandwidth: int | None,
    downtime: int | None,
    stop_after: float | None,
    qemu_dir: str | None,
    timeout: float,
) -> int:
    """Save a running guest into FILE; it continues as before.

    Capabilities and parameters of the migration are restored, and a guest that
    was running is running again, however the capture ends. FILE appears when it
    is complete and on the disk.
    """
    from qemu_svm.errors import OutputClosed, OutputExists
    from qemu_svm.qmp.capture import capture_stream, compressed_name
    from qemu_svm.qmp.features import CaptureOptions

    chosen = CaptureOptions(
        live=live,
        mapped_ram=mapped_ram,
        multifd=multifd or 0,
        compression=compression,
        xbzrle=xbzrle,
        background_snapshot=background_snapshot,
        bandwidth=bandwidth,
        downtime=downtime,
        stop_after=stop_after,
    )
    contradiction = chosen.contradiction() or compressed_name(output)
    if contradiction is not None:
        raise click.UsageError(contradiction)
    if output == "-" and (as_json or sys.stdout.isatty()):
        raise click.UsageError("-o - writes the stream to standard output: pipe it, without --json")
    work = capture_stream(
        address,
        output,
        chosen,
        timeout=timeout,
        replace=force,
        qemu_directory=qemu_dir,
        progress=progress.migration(),
    )
    try:
        captured = signals.run(work, last=True)
    except OutputExists as error:
        raise click.UsageError(f"{error}; -f replaces it") from error
    except OutputClosed as error:
        raise BrokenPipeError from error
    except KeyboardInterrupt:
        print_error(f"interrupted; the guest is as it was before, and there is no '{output}'")
        return EXIT_INTERRUPTED
    if output != "-":
        show(captured, as_json=as_json)
    return 0
