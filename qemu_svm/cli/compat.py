"""``svmstream compat FILE --qemu BINARY|vmstate.json``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import click

from qemu_svm.cli import EXIT_ENVIRONMENT, EXIT_FINDINGS, common, complain, output
from qemu_svm.limits import DEFAULT
from qemu_svm.stream.vmstate.dump import Dump, parse_dump

_ANY_MACHINE = "none"
"""A machine type that every QEMU has; the dump is the same for all."""


class QemuFailedError(click.ClickException):
    """The QEMU that was to be asked cannot be run."""

    exit_code = EXIT_ENVIRONMENT

    def show(self, file: object = None) -> None:  # noqa: ARG002 - click's signature
        """Print it as every other error is printed."""
        complain(self.message)


@click.command(
    "compat",
    epilog="Examples: svmstream compat dump.bin --qemu qemu-system-x86_64; "
    "qemu-system-x86_64 -M pc-q35-7.2 -dump-vmstate vmstate.json; "
    "svmstream compat dump.bin --qemu vmstate.json",
)
@common.file_argument
@common.json_option
@common.limit_option
@click.option("--qemu", "target", required=True, metavar="BINARY|JSON",
              help="The destination's QEMU, or what its -dump-vmstate wrote.")  # fmt: skip
@click.option("--timeout", default=30, show_default=True, type=click.IntRange(min=1),
              metavar="SECONDS", help="How long QEMU may take.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Show what cannot be told for certain, too.")
def command(*, file: str, as_json: bool, target: str, timeout: int, verbose: bool) -> int:
    """Tell whether a QEMU would take the sections of the stream FILE.

    Compares machine type, sections, versions, fields and subsections with what
    that QEMU says of itself (-dump-vmstate). CPU state and RAM are not in such
    a dump; for the nested state see the verb check.
    """
    from qemu_svm.findings.compat import compatibility
    from qemu_svm.findings.results import CompatReport

    with common.opened(file) as machine:
        if _is_json(target):
            dump, machines = _read(target), None
        else:
            dump, machines = _ask(target, machine.name, timeout)
        found = compatibility(machine, dump, machines)
        output.show(CompatReport(machine, found, target), as_json=as_json, verbose=verbose)
        unreadable = common.told(machine)
    if unreadable:
        return unreadable
    return 0 if found.accepted else EXIT_FINDINGS


def _is_json(target: str) -> bool:
    # A program starts with ELF's magic or "#!"; a dump with a brace.
    try:
        with Path(target).open("rb") as file:
            return file.read(64).lstrip()[:1] == b"{"
    except OSError:
        return target.endswith(".json")


def _read(path: str) -> Dump:
    try:
        with Path(path).open("rb") as file:
            text = file.read(DEFAULT.description_bytes + 1)
    except OSError as error:
        raise QemuFailedError(f"{path}: {error.strerror}") from error
    return parse_dump(text)


def _ask(target: str, machine: str | None, timeout: int) -> tuple[Dump, list[str]]:
    # The machine's name is a stranger's: it is used only if QEMU lists it.
    program = shutil.which(target)
    if program is None:
        raise QemuFailedError(f"{target}: no such program (nor a vmstate dump)")
    machines = _machine_types(_run([program, "-M", "help"], timeout))
    chosen = machine if machine in machines else _ANY_MACHINE
    with tempfile.TemporaryDirectory(prefix="svmstream-") as directory:
        path = Path(directory) / "vmstate.json"
        _run([program, "-display", "none", "-M", chosen, "-dump-vmstate", str(path)], timeout)
        if not path.exists():
            raise QemuFailedError(f"{target}: -dump-vmstate wrote nothing")
        return _read(str(path)), machines


def _machine_types(text: str) -> list[str]:
    # "Supported machines are:", then "NAME  DESCRIPTION (alias of NAME)".
    return [line.split()[0] for line in text.splitlines()[1:] if line.strip()]


def _run(arguments: list[str], timeout: int) -> str:
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        raise QemuFailedError(f"{arguments[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise QemuFailedError(f"{arguments[0]}: no answer in {timeout} seconds") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise QemuFailedError(
            f"{' '.join(arguments[:3])} … ended with status {done.returncode}"
            + (f": {said[-1]}" if said else "")
        )
    return done.stdout.decode("utf-8", "replace")
