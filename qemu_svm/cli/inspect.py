"""``svmstream inspect FILE``."""

from __future__ import annotations

import click

from qemu_svm.cli import common, output
from qemu_svm.findings import findings
from qemu_svm.findings.results import Inspection
from qemu_svm.stream import Walk


@click.command(
    "inspect",
    epilog="Examples: svmstream inspect dump.bin; zstdcat dump.zst | svmstream inspect --json -",
)
@common.file_argument
@common.json_option
@common.limit_option
@common.description_option
@click.option("--ram", is_flag=True, help="Read all RAM records and count the pages.")
@click.option("-v", "--verbose", is_flag=True, help="Show every vCPU in full.")
def command(*, file: str, as_json: bool, lender: str | None, ram: bool, verbose: bool) -> int:
    """Show what is in the stream FILE ("-" for standard input).

    The machine, the problems found, each vCPU (what L2 has in the vCPU's
    registers, what L1 has in the nested state) and the list of sections.
    FILE may be compressed (gzip, xz, bzip2, zstd, lzop), a libvirt save image,
    IMAGE.qcow2#SNAPSHOT, or FILE#@OFFSET for a stream inside a file.
    """
    with common.opened(file, Walk.RAM if ram else Walk.QUICK, lender) as machine:
        found = tuple(findings(machine))
        output.show(Inspection(machine, found, ram), as_json=as_json, verbose=verbose)
        if as_json:
            common.warn(machine)
        return common.status(machine, found)
