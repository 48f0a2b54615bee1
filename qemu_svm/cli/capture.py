"""``svmstream capture --qmp SOCKET -o FILE``."""

from __future__ import annotations

import sys

import click

from qemu_svm.cli import EXIT_INTERRUPTED, common, complain, qmp_common
from qemu_svm.cli import output as result


@click.command(
    "capture",
    epilog="Examples: svmstream capture --qmp /run/vm.qmp -o dump.bin; "
    "svmstream capture --qmp localhost:4444 -o dump.bin --stop; "
    "svmstream capture --qmp /run/vm.qmp -o dump.bin --multifd 4 --compression zstd",
)
@qmp_common.qmp_option
@click.option("-o", "--output", metavar="FILE", required=True,
              help="Named when complete; channels get FILE.channelN. - is a pipe.")  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Replace FILE.")
@common.json_option
@click.option("--live/--stop", default=True, show_default=True,
              help="Stop the guest for the last pass only, or all the time.")  # fmt: skip
@click.option("--mapped-ram", is_flag=True, help="Every page at a fixed place (QEMU 9.0).")
@click.option("--multifd", type=click.IntRange(1, 255), default=None, metavar="N",
              help="RAM over N channels.")  # fmt: skip
@click.option("--compression", type=click.Choice(["none", "zlib", "zstd"]), default="none",
              help="Of the multifd channels.")  # fmt: skip
@click.option("--xbzrle", is_flag=True, help="Send changed pages as deltas.")
@click.option("--background-snapshot", is_flag=True,
              help="The state of the start, without stopping for RAM (QEMU 6.0).")  # fmt: skip
@click.option("--bandwidth", callback=qmp_common.size, metavar="SIZE",
              help="Bytes a second, such as 200M; without it, no limit.")  # fmt: skip
@click.option("--downtime", type=click.IntRange(0, 2_000_000), metavar="MS",
              help="How long the last pass may take.")  # fmt: skip
@click.option("--stop-after", type=click.FloatRange(min=0), metavar="SECONDS",
              help="Stop a guest then that is too busy to come to an end.")  # fmt: skip
@click.option("--qemu-dir", metavar="DIR",
              help="QEMU writes FILE itself, in what it sees as DIR.")  # fmt: skip
@qmp_common.timeout_option
def command(
    *,
    address: str,
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
    """Save a running guest into FILE, and let it go on as before.

    Whatever happens, capabilities and parameters are put back, and a guest that
    ran runs on. FILE appears when it is complete and on the disk.
    """
    from qemu_svm.qmp.features import CaptureOptions

    options = CaptureOptions(
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
    words = options.contradiction()
    if words is not None:
        raise click.UsageError(words)
    if output == "-" and (as_json or sys.stdout.isatty()):
        raise click.UsageError("-o - writes the stream to standard output: into a pipe, alone")
    from qemu_svm.cli import interrupts
    from qemu_svm.errors import OutputClosed, OutputExists
    from qemu_svm.qmp.capture import capture_stream

    work = capture_stream(
        address,
        output,
        options,
        timeout=timeout,
        replace=force,
        qemu_directory=qemu_dir,
        progress=qmp_common.progress(),
    )
    try:
        captured = interrupts.run(work, last=True)
    except OutputExists as error:
        raise click.UsageError(f"{error}; -f replaces it") from error
    except OutputClosed as error:
        raise BrokenPipeError from error
    except KeyboardInterrupt:
        complain(f"interrupted; the guest is as it was before, and there is no '{output}'")
        return EXIT_INTERRUPTED
    if output == "-":
        return 0
    result.show(captured, as_json=as_json)
    return 0
