"""The recorder's own command line, where svmstream is not installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from qemu_svm.errors import SvmStreamError
from qemu_svm.recorder.by_bpf import BUFFER_MIB, MOST_MIB, ring_size
from qemu_svm.recorder.command import CommandNotRun
from qemu_svm.recorder.record import HOW, Recorded, State, Wish, record_command, record_process

FAILED = 4


def main(arguments: Sequence[str]) -> int:
    """Record as the arguments say; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="record.py",
        description="Record the KVM ioctls of a VMM, with their data, for svmstream.",
        usage="%(prog)s (--pid PID | -- COMMAND...) -o FILE [options]",
    )
    parser.add_argument("--pid", type=int, help="a process that runs already")
    parser.add_argument("-o", "--output", metavar="FILE", required=True,
                        help="JSON lines if it ends in .jsonl; it must not exist")  # fmt: skip
    parser.add_argument("--how", choices=HOW, default="auto")
    parser.add_argument("--redact", action="store_true",
                        help="leave out addresses of the VMM and MSRs")  # fmt: skip
    parser.add_argument("--ram", action="store_true", help="record guest memory too")
    parser.add_argument("--buffer", type=int, default=BUFFER_MIB, metavar="MIB",
                        help="between kernel and recorder, of eBPF (default: %(default)s)",
                        )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="print only errors")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")
    given = parser.parse_args(arguments)
    argv = given.argv[1:] if given.argv[:1] == ["--"] else given.argv
    if (given.pid is None) == (not argv):
        parser.error("give either --pid PID or -- COMMAND")
    if not 1 <= given.buffer <= MOST_MIB:
        parser.error(f"--buffer is 1 to {MOST_MIB}")
    wish = Wish(
        given.output, given.how, redact=given.redact, ram=given.ram, buffer=ring_size(given.buffer)
    )
    try:
        if given.pid is not None:
            recorded = record_process(
                given.pid, wish, _show_nothing if given.quiet else _show, _say
            )
        else:
            recorded = record_command(argv, wish, warn=_say)
    except CommandNotRun as error:
        _say(str(error))
        return error.status
    except SvmStreamError as error:
        _say(str(error))
        return FAILED
    if not given.quiet:
        if given.pid is not None and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
        for line in lines(recorded):
            _say(line)
    return recorded.status or 0


def _say(text: str) -> None:
    sys.stderr.write(f"record: {text}\n")


def counts(state: State) -> str:
    """Return a state in words."""
    vms = f"{state.vms} VM{'s' * (state.vms != 1)}"
    vcpus = f"{state.vcpus} vCPU{'s' * (state.vcpus != 1)}"
    lost = f"{state.lost} messages lost" if state.lost else "nothing lost"
    ram = f", {state.ram >> 10} KiB of memory" if state.ram else ""
    return f"{state.calls} calls, {vms}, {vcpus}, {lost}{ram}"


def lines(recorded: Recorded) -> list[str]:
    """Return what was recorded, a line for each log."""
    return [
        f"{one.file}: process {one.pid}, {counts(one.state)} ({recorded.how})"
        for one in recorded.processes
    ]


def _show(state: State) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{counts(state)}")
        sys.stderr.flush()


def _show_nothing(_state: State) -> None:
    return
