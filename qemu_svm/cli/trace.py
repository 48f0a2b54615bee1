"""``svmstream trace LOG``."""

from __future__ import annotations

import sys

import click

from qemu_svm import api
from qemu_svm.cli import options
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, EXIT_UNREADABLE, print_error
from qemu_svm.cli.verbs import verb


@verb(
    "trace",
    "svmstream trace ioctls.log",
    "svmstream trace vmm.jsonl -v",
    "strace -f -y -e trace=ioctl -p PID 2>&1 | svmstream trace -",
)
@click.argument("log", metavar="LOG")
@options.json_option
@options.limit_option
@options.fail_on_option()
@click.option("-v", "--verbose", is_flag=True, help="List every ioctl and every rule.")
def command(*, log: str, as_json: bool, verbose: bool) -> int:
    """Check the KVM_SET_* calls in a log of ioctls ("-" for standard input).

    LOG is a recording of svmstream record or of a VMM, the output of QEMU's -trace
    kvm_vcpu_ioctl, of strace -f -e trace=ioctl, or trace-cmd's report of the ioctl
    system call; it may be compressed. The phases of each vCPU are shown, and for each
    call of KVM_SET_NESTED_STATE which rules about its order are kept. Of a recording
    the values are judged too, and -v shows them by name.
    """
    trace = api.judge_trace(log, limits=options.limits())
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    show(trace, as_json=as_json, verbose=verbose, arrow="→" if unicode else ">")
    if trace.damage is not None:
        print_error(str(trace.damage))
    if trace.cut is not None:
        print_error(
            f"{log}: line {trace.cut}: too many ioctls or calls of KVM_SET_NESTED_STATE; the rest "
            "was not read (limits trace_ioctls and trace_puts)"
        )
    if not trace.complete:
        return EXIT_UNREADABLE
    return EXIT_FINDINGS if not trace.clean and options.fails() else 0
