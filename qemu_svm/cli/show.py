"""``svmstream show FILE PATH``."""

from __future__ import annotations

import sys

import click

from qemu_svm.cli import common, output
from qemu_svm.findings.results import Shown
from qemu_svm.machine import read_machine
from qemu_svm.machine.paths import find, needs_all_records
from qemu_svm.stream import Walk, read_stream


@click.command(
    "show",
    epilog="Examples: svmstream show dump.bin vcpu0.nested.control; "
    "svmstream show dump.bin section:apic; svmstream show dump.bin @0x98d7c",
)
@common.file_argument
@click.argument("path", metavar="PATH")
@common.json_option
@common.limit_option
@common.description_option
@click.option("--raw", is_flag=True, help="Write only the bytes themselves to standard output.")
@click.option("-v", "--verbose", is_flag=True, help="Show reserved bytes too.")
def command(
    *, file: str, path: str, as_json: bool, lender: str | None, raw: bool, verbose: bool
) -> int:
    """Show one part of the stream FILE in full: where, which bytes, what they mean.

    PATH is vcpuN, vcpuN.REGISTER, vcpuN.nested.control.FIELD,
    vcpuN.nested.l1_save.FIELD, section:NAME.FIELD, configuration, header, or
    @OFFSET for whatever holds that byte.
    """
    with common.opened(file, lender=lender) as quick:
        machine = quick
        if needs_all_records(machine, path):
            stream = machine.stream
            again = read_stream(stream.source, common.limits(), Walk.RAM, stream.lent)
            machine = read_machine(again)
        place = find(machine, path)
        data = b""
        if not place.scattered:
            data = machine.stream.source.read_at(place.value.offset, place.value.size)
        elif raw:
            raise click.UsageError(f"its bytes do not stand together: name a part, '{path}[0]'")
        if raw:
            if sys.stdout.isatty():
                raise click.UsageError("--raw writes bytes; send them into a file or a pipe")
            sys.stdout.buffer.write(data)
        else:
            output.show(Shown(place, data), as_json=as_json, verbose=verbose)
        return common.told(machine)
