"""The sections that a QEMU accepts, from its ``-dump-vmstate``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from qemu_svm.errors import EnvironmentFault
from qemu_svm.limits import DEFAULT
from qemu_svm.stream.vmstate.dump import Dump, parse_dump

_ANY_MACHINE = "none"
"""A machine type that every QEMU has; the dump is the same for all."""


def dump_of(target: str, machine: str | None, timeout: float) -> tuple[Dump, list[str] | None]:
    """Run a QEMU to get its dump, or read a dump from a file.

    :param target: the binary, or the file.
    :param machine: machine type to start it with, if this QEMU has it.
    :param timeout: seconds that QEMU may take.
    :returns: the dump, and the machine types of the binary (None for a file).
    :raises EnvironmentFault: the binary cannot be run, fails or takes too long.
    :raises SourceError: the file is not a dump.
    """
    if _is_json(target):
        return _read(target), None
    # The machine type is untrusted: it is used only if QEMU lists it.
    program = shutil.which(target)
    if program is None:
        raise EnvironmentFault(f"{target}: no such program (nor a vmstate dump)")
    machines = _machine_types(_run([program, "-M", "help"], timeout))
    chosen = machine if machine in machines else _ANY_MACHINE
    try:
        temporary = tempfile.TemporaryDirectory(prefix="svmstream-")
    except OSError as error:
        raise EnvironmentFault(f"cannot make a directory: {error.strerror}") from error
    with temporary as directory:
        path = Path(directory) / "vmstate.json"
        _run([program, "-display", "none", "-M", chosen, "-dump-vmstate", str(path)], timeout)
        if not path.exists():
            raise EnvironmentFault(f"{target}: -dump-vmstate wrote no file")
        return _read(str(path)), machines


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
        raise EnvironmentFault(f"{path}: {error.strerror}") from error
    return parse_dump(text)


def _machine_types(text: str) -> list[str]:
    # "Supported machines are:", then "NAME  DESCRIPTION (alias of NAME)".
    return [line.split()[0] for line in text.splitlines()[1:] if line.strip()]


def _run(arguments: list[str], timeout: float) -> str:
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        raise EnvironmentFault(f"{arguments[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault(f"{arguments[0]}: no answer in {timeout:g} seconds") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise EnvironmentFault(
            f"{' '.join(arguments[:3])} … failed with status {done.returncode}"
            + (f": {lines[-1]}" if lines else "")
        )
    return done.stdout.decode("utf-8", "replace")
