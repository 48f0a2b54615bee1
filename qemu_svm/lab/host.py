"""What the lab needs of the machine that it runs on: child processes, and its failures."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

from qemu_svm.errors import LabError


def mortal(command: list[str]) -> list[str]:
    """Return a command line whose process is killed when the thread that started it ends.

    :raises LabError: ``setpriv`` is not installed.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise LabError("setpriv is not installed", hint="apt-get install util-linux")
    return [setpriv, "--pdeathsig", "KILL", *command]


@contextlib.contextmanager
def host_faults(doing: str, *, hint: str | None = None) -> Iterator[None]:
    """Raise what this machine refuses (no space, no permission, no program) as a LabError.

    :param doing: what is attempted, as in ``cannot make the share``.
    :raises LabError: an OSError, or a program that failed or took too long.
    """
    try:
        yield
    except OSError as error:
        raise LabError(f"cannot {doing}: {error.strerror or error}", hint=hint) from error
    except subprocess.SubprocessError as error:
        raise LabError(f"cannot {doing}: {error}", hint=hint) from error
