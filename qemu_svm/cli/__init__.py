"""The command line: ``svmstream VERB FILE [options]``.

One module a verb, imported when the verb is used, so that ``--help`` stays
quick.  Exit status: 0 clean, 1 findings, 2 usage, 3 unreadable or truncated
input, 4 environment, 5 the target refused, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from qemu_svm import __version__
from qemu_svm.cli.verbs import Verbs
from qemu_svm.errors import EnvironmentFault, PathError, Refused, SourceError, SvmStreamError

EXIT_FINDINGS = 1
EXIT_USAGE = 2
EXIT_UNREADABLE = 3
EXIT_ENVIRONMENT = 4
EXIT_REFUSED = 5
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # as a shell shows a death by SIGPIPE

_STANDARD_STREAMS = 3
_EXITS = ((EnvironmentFault, EXIT_ENVIRONMENT), (Refused, EXIT_REFUSED))

_VERBS = {
    "inspect": "What is in a stream: machine, vCPUs, nested state, problems.",
    "check": "Would a kernel accept the nested state, and be right?",
    "simulate": "Restore a stream in a model of KVM, step by step.",
    "trace": "Judge a recorded log of KVM ioctls by the order of its puts.",
    "diff": "Two streams field by field, without what is known to differ.",
    "compat": "Would a given QEMU take the sections of this stream?",
    "ram": "RAM blocks, page statistics, a map; --extract writes them.",
    "mem": "Guest memory of L1 and L2: read, translate, search; cores for debuggers.",
    "capture": "A stream out of a running QEMU, without hurting the guest.",
    "vmruns": "Every VMCB that the emulated processor was given, out of svmtrace's log.",
    "restore": "A stream into a QEMU; why, if it does not take it.",
    "roundtrip": "Through a second QEMU and back: what was lost or changed.",
    "show": "One section, vCPU or field in full, with offset and raw bytes.",
    "watch": "A migration in progress, live, whoever started it.",
    "replay": "Restore a stream into a real KVM, step by step, beside the model.",
    "lab": "An AMD host in a box: real kernels and QEMUs, emulated.",
    "doctor": "What this host, a QEMU, a VM can do, and what is missing.",
}


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if not value:
        return
    from importlib.metadata import version

    parts = [
        f"{name} {version(name)}"
        for name in ("click", "construct", "qemu.qmp", "rich", "zstandard")
    ]
    click.echo(f"svmstream {__version__} ({', '.join(parts)})")
    ctx.exit()


@click.group(
    cls=Verbs,
    package=__name__,
    verbs=_VERBS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: svmstream inspect dump.bin.zst",
)
@click.option(
    "--version", is_flag=True, callback=_version, expose_value=False, is_eager=True,
    help="Show the version, and those of the libraries.",
)  # fmt: skip
def cli() -> None:
    """Decode and judge QEMU migration streams of nested SVM guests."""


def main() -> None:
    """Entry point of ``svmstream``: turns every error into a message and a status."""
    _standard_streams()
    try:
        status = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone.
        _no_output()
        status = EXIT_PIPE
    except OSError as error:
        # What cannot be read or made is told by errors of our own.
        complain(f"cannot write the output: {error.strerror}")
        _no_output()
        status = EXIT_ENVIRONMENT
    sys.exit(status)


def _standard_streams() -> None:
    # Where one is closed, no file that we open may take its place.
    while (fd := os.open(os.devnull, os.O_RDWR)) < _STANDARD_STREAMS:
        os.set_inheritable(fd, True)  # noqa: FBT003 - it takes no keyword
    os.close(fd)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open to the end


def _no_output() -> None:
    # Keep the interpreter from trying again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run() -> int:
    try:
        result: Any = cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("svmstream: interrupted", err=True)
        return EXIT_INTERRUPTED
    except PathError as error:
        complain(str(error), near(error))
        return EXIT_USAGE
    except SvmStreamError as error:
        # The others have their hint in their text.
        complain(str(error), error.hint if isinstance(error, SourceError) else None)
        return next((exits for kind, exits in _EXITS if isinstance(error, kind)), EXIT_UNREADABLE)
    return result if isinstance(result, int) else 0


def near(error: PathError) -> str | None:
    """What the user may have meant, in words."""
    return f"near it: {', '.join(error.near)}" if error.near else None


def complain(message: str, hint: str | None = None) -> None:
    """Print an error to standard error, safely."""
    from qemu_svm.render.escape import printable

    click.echo(f"svmstream: {printable(message)}", err=True)
    if hint:
        click.echo(f"  {printable(hint)}", err=True)
