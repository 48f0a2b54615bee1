"""``svmstream trace LOG``."""

from __future__ import annotations

import sys

import click

from qemu_svm.cli import EXIT_FINDINGS, EXIT_UNREADABLE, common, complain, output
from qemu_svm.source import open_source


@click.command(
    "trace",
    epilog="Examples: svmstream trace ioctls.log; strace -f -y -e trace=ioctl -p PID 2>&1 | "
    "svmstream trace -",
)
@click.argument("log", metavar="LOG")
@common.json_option
@common.limit_option
@click.option("-v", "--verbose", is_flag=True, help="List every ioctl and every rule.")
def command(*, log: str, as_json: bool, verbose: bool) -> int:
    """Judge the ioctls of a restore by their order ("-" for standard input).

    LOG is what QEMU wrote with -trace kvm_vcpu_ioctl, the output of strace -f
    -e trace=ioctl, or trace-cmd's report of the ioctl system call; it may be
    compressed.  Shown are the phases of each vCPU and, for every put of nested
    state, which rules of its order are kept.
    """
    from qemu_svm.trace.model import read_trace

    with open_source(log, common.limits()) as source:
        trace = read_trace(source, common.limits())
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    output.show(trace, as_json=as_json, verbose=verbose, arrow="→" if unicode else ">")
    if trace.damage is not None:
        complain(str(trace.damage))
    if trace.cut is not None:
        complain(
            f"{log}: line {trace.cut}: too many ioctls or puts of nested state; the rest was not "
            "read (limits trace_ioctls and trace_puts)"
        )
    if not trace.complete:
        return EXIT_UNREADABLE
    return 0 if trace.clean else EXIT_FINDINGS
