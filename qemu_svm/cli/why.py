"""``svmstream why [FILE]``."""

from __future__ import annotations

import click

from qemu_svm import api
from qemu_svm.cli import options
from qemu_svm.cli.output import show
from qemu_svm.cli.status import (
    EXIT_FINDINGS,
    EXIT_UNREADABLE,
    print_error,
    report_problems,
)
from qemu_svm.cli.verbs import verb


@verb(
    "why",
    "svmstream why qemu-stderr.log --to 6.12.117",
    "svmstream why --error 'Failed to set nested state: EINVAL' --to 6.12.118",
    "dmesg | svmstream why dump.bin --log - --to 6.12.112",
)
@click.argument("file", metavar="FILE", required=False)
@options.json_option
@options.limit_option
@click.option("--error", "errors", metavar="LINE", multiple=True,
              help="A line that a program or a kernel printed; may be repeated.")  # fmt: skip
@click.option("--log", metavar="LOG", help='A log, beside a stream as FILE; "-" is standard input.')
@click.option("--from", "source", metavar="RELEASE", help="The source's kernel: uname -r.")
@click.option("--to", "destination", metavar="RELEASE",
              help="The destination's kernel: uname -r, or auto for this host's.  "
              "[default: the one that the log names]")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Show all evidence and decoded dumps in full.")
def command(
    *,
    file: str | None,
    errors: tuple[str, ...],
    log: str | None,
    source: str | None,
    destination: str | None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Explain an error line, a log or a stream: what happened, why, what to do.

    FILE is a stream or a log ("-" for standard input), recognised by its content: what
    QEMU, libvirt, Cloud Hypervisor, Firecracker or crosvm printed, dmesg (a VMCB dump, a
    WARN, an oops), kvm's tracepoints, a log of ioctls. The likeliest cause comes first.
    Exit status: 0 no cause found, 1 a cause found.
    """
    if file is None and log is None and not errors:
        raise click.UsageError("give FILE, --log LOG or --error LINE")
    answer = api.why(
        file, errors=errors, log=log, source=source, kernel=destination, limits=options.limits()
    )
    show(answer, as_json=as_json, verbose=verbose)
    if answer.facts.damage is not None:
        print_error(str(answer.facts.damage))
        return EXIT_UNREADABLE
    if answer.machine is not None and not answer.machine.stream.complete:
        stream = answer.machine.stream
        return report_problems(stream.source.path, stream.problems, complete=False)
    return EXIT_FINDINGS if answer.found else 0
