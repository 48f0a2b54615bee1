"""``svmstream record``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qemu_svm import api
from qemu_svm.cli import options, progress
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_UNREADABLE, print_error
from qemu_svm.cli.verbs import verb

if TYPE_CHECKING:
    from qemu_svm.recorder.record import Recorded, Wish

_HOW = ("auto", "bpf", "ptrace")


@verb(
    "record",
    "svmstream record --pid 4711 -o vmm.rec",
    "svmstream record -o vmm.rec -- qemu-system-x86_64 -accel kvm ...",
    "svmstream record --probe record.py",
    "svmstream record --convert vmm.rec -o vmm.jsonl.zst --redact",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--pid", type=click.IntRange(1), metavar="PID",
              help="Record a process that runs already; of one in a container, its number here.",
              )  # fmt: skip
@click.option("-o", "--output", metavar="OUT",
              help="The recording; JSON lines if it ends in .jsonl. It must not exist.",
              )  # fmt: skip
@click.option("--how", type=click.Choice(_HOW), default="auto", show_default=True,
              help="eBPF needs root; auto is ptrace where that is not permitted.")  # fmt: skip
@click.option("--redact", is_flag=True,
              help="Leave out addresses of the VMM, bytes that it did not write, and MSRs.",
              )  # fmt: skip
@click.option("--ram", is_flag=True,
              help="Record guest memory too: before the guest first runs after a restore, or at "
              "the end.")  # fmt: skip
@click.option("--buffer", type=click.IntRange(1, 1024), default=16, metavar="MIB",
              show_default=True, help="Buffer between kernel and recorder, of eBPF.")  # fmt: skip
@click.option("--probe", metavar="OUT",
              help="Write a program that records on a host without svmstream; - to print it.",
              )  # fmt: skip
@click.option("--convert", metavar="LOG",
              help="Write a recording anew, as JSON lines or binary, with or without --redact; "
              "compressed if OUT ends in .zst.")  # fmt: skip
@options.json_option
@click.argument("argv", metavar="[--] [COMMAND...]", nargs=-1)
def command(
    *,
    pid: int | None,
    output: str | None,
    how: str,
    redact: bool,
    ram: bool,
    buffer: int,
    probe: str | None,
    convert: str | None,
    as_json: bool,
    argv: tuple[str, ...],
) -> int:
    """Record the KVM ioctls of a VMM, with their data.

    Of a process that runs already (--pid), or of COMMAND and what it starts. The
    recording is for trace, diff, simulate, replay and check. It holds the guest's
    registers: only its owner may read it.

    Exit status: that of COMMAND, 128 plus the number of the signal that ended it;
    with --pid 0. 4: it cannot be recorded.
    """
    if probe is not None:
        if pid is not None or output is not None or convert is not None or argv:
            raise click.UsageError("--probe is used alone")
        return _write_probe(probe)
    if output is None:
        raise click.UsageError("where to? give -o OUT")
    if convert is not None:
        if pid is not None or argv:
            raise click.UsageError("--convert records nothing: no --pid, no COMMAND")
        return _convert(convert, output, redact=redact, as_json=as_json)
    if (pid is None) == (not argv):
        raise click.UsageError("what is to be recorded? give either --pid PID or -- COMMAND")
    if as_json and argv:
        raise click.UsageError("--json is for --pid: standard output is COMMAND's")
    from qemu_svm.recorder.by_bpf import ring_size
    from qemu_svm.recorder.record import Wish, record_process

    wish = Wish(output, how, redact=redact, ram=ram, buffer=ring_size(buffer))
    if pid is None:
        return _record_command(argv, wish)
    recorded = record_process(pid, wish, progress.recording(), print_error)
    progress.clear()
    show(recorded, as_json=as_json)
    return 0


def _convert(log: str, output: str, *, redact: bool, as_json: bool) -> int:
    converted = api.convert_recording(log, output, redact=redact)
    show(converted, as_json=as_json)
    if converted.damage is not None:
        print_error(str(converted.damage))
        return EXIT_UNREADABLE
    return 0


def _record_command(argv: tuple[str, ...], wish: Wish) -> int:
    from qemu_svm.recorder.command import CommandNotRun
    from qemu_svm.recorder.record import record_command

    try:
        recorded = record_command(argv, wish, warn=print_error)
    except CommandNotRun as error:
        print_error(str(error))
        return error.status
    if not options.quiet():
        _report(recorded)
    return recorded.status or 0


def _report(recorded: Recorded) -> None:
    # Standard output is the command's.
    from qemu_svm.render.text.record import render

    for line in render(recorded):
        click.echo(line.plain, err=True)


def _write_probe(path: str) -> int:
    from qemu_svm.recorder.probe import program

    text = program()
    if path == "-":
        sys.stdout.write(text)
        return 0
    from qemu_svm.qmp.output import Output, writing

    with writing(path), Output(path) as out:
        with open(out.writer(), "w") as file:
            file.write(text)
        out.commit()
    return 0
