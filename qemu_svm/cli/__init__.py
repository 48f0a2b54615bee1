"""The command line: ``svmstream VERB FILE [options]``.

One module for each verb, imported when the verb is used, so that ``--help`` stays
quick.  A verb parses options, calls the library, prints the result and returns the
exit status; it imports no other verb.  Exit status: 0 clean, 1 findings, 2 usage,
3 unreadable or truncated input, 4 environment, 5 refused by the target, 70 a bug in
svmstream, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import click

from qemu_svm import __version__
from qemu_svm.cli import options
from qemu_svm.cli.status import (
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    EXIT_PIPE,
    forget_errors,
    last_error,
    print_error,
    report_failure,
    report_usage,
)
from qemu_svm.cli.verbs import Verbs
from qemu_svm.errors import SvmStreamError

_STANDARD_STREAMS = 3
_NO_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EROFS)
"""Why nothing can be written, standard output first of all."""

_VERBS = {
    "Look": {
        "inspect": "Show what is in a stream: the verb to begin with.",
        "show": "Show one section, vCPU or field, with offset and bytes.",
        "explore": "Walk through a stream on the terminal.",
        "diff": "Compare two streams field by field.",
        "report": "Write a page about a stream, to attach to a bug.",
    },
    "Judge": {
        "why": "Explain an error line or a log, with or without a stream.",
        "survey": "Judge many streams at once: folders, images, URLs.",
        "check": "Check which kernels accept and restore a stream.",
        "simulate": "Restore a stream in a model of KVM, step by step.",
        "compat": "Check whether a given QEMU accepts a stream.",
        "trace": "Check the order of the ioctls in a recorded log.",
    },
    "Memory": {
        "ram": "Show RAM blocks and a map of the pages; write RAM.",
        "mem": "Read, translate and search guest memory; write cores.",
    },
    "Drive a QEMU or a KVM": {
        "capture": "Save a running VM into a file; it continues.",
        "restore": "Load a stream into a QEMU; explain a refusal.",
        "roundtrip": "Send a stream through a second QEMU and compare.",
        "watch": "Watch a migration that any client started.",
        "record": "Record the KVM ioctls of any VMM, with their data.",
        "replay": "Restore a stream into a real KVM, step by step.",
        "inside": "Show a running VM's vCPUs in the kernel's memory.",
        "doctor": "Check what this host, a QEMU or a VM can do.",
    },
    "Emulated AMD host": {
        "lab": "Run real kernels and QEMUs in an emulated AMD host.",
        "vmruns": "Show the VMCBs that the processor was given.",
    },
    "Help": {
        "help": "Show the help of a verb: svmstream help mem read.",
        "schema": "Print the JSON Schema of a verb's documents.",
    },
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
    examples=("svmstream inspect dump.bin.zst",),
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
        # The reader of our output is gone.
        _no_output()
        status = EXIT_PIPE
    except Exception as error:  # noqa: BLE001 - the last resort
        if isinstance(error, OSError) and error.errno in _NO_OUTPUT:
            # Other files that cannot be written raise errors of our own.
            what = "the output" if error.filename is None else f"'{error.filename}'"
            words = f"cannot write {what}: {error.strerror}"
            print_error(words)
            status = EXIT_ENVIRONMENT
            if error.filename is not None:
                _document(error, words, status, _RULES[status])
        else:
            from qemu_svm.cli.bug import report_bug

            status = report_bug(error)
            _document(error, f"{type(error).__name__}: {error}", status)
        _no_output()
    sys.exit(status)


_RULES = {1: "findings", 2: "usage", 3: "source", EXIT_ENVIRONMENT: "environment", 5: "refused",
          EXIT_INTERRUPTED: "interrupted"}  # fmt: skip
"""Of errors that no exception tells, by exit status."""


def _document(error: BaseException, message: str, status: int, rule: str = "bug") -> None:
    # The error on standard output, if JSON was asked for and none was printed yet.
    words = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if not {"--json", "--jsonl"} & set(words) or {"-q", "--quiet"} & set(words):
        return
    import json

    from qemu_svm.render.json.failure import render

    if options.has_output():
        return
    click.echo(json.dumps(render(error, message, status, rule)))


def _standard_streams() -> None:
    # If one is closed, no file that we open may take its number.
    while (fd := os.open(os.devnull, os.O_RDWR)) < _STANDARD_STREAMS:
        os.set_inheritable(fd, True)  # noqa: FBT003 - it takes no keyword
    os.close(fd)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open to the end
        # What the locale cannot show is shown as an escape.
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _no_output() -> None:
    # Keep the interpreter from trying again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run() -> int:
    options.note_output(printed=False)
    forget_errors()
    try:
        result: Any = cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        report_usage(error)
        _document(error, error.format_message(), error.exit_code, "usage")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo("svmstream: interrupted", err=True)
        _document(error, "interrupted", EXIT_INTERRUPTED, "interrupted")
        return EXIT_INTERRUPTED
    except SvmStreamError as error:
        status = report_failure(error)
        _document(error, str(error), status)
        return status
    status = result if isinstance(result, int) else 0
    found = last_error()
    if status and found is not None:
        cause, words = found
        _document(cause or Exception(words), words, status, _RULES.get(status, "bug"))
    return status
