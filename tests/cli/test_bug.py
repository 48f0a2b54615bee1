"""An exception that is not of the package is reported as a bug, and never as a finding."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = """
import sys
import qemu_svm.cli.inspect as verb
def broken(*_args, **_options):
    raise {error}
verb.opened = broken
sys.argv = ["svmstream", "inspect", "x"]
from qemu_svm.cli import main
main()
"""


def run(error: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-c", BROKEN.format(error=error)]
    return subprocess.run(command, capture_output=True, env=environment, check=False, timeout=60)


@pytest.mark.parametrize(
    "error",
    [
        "KeyError('a\\x1b[2Jb\\ud800')",
        "ValueError('two\\nlines')",
        "MemoryError",
        "RecursionError",
        "FileNotFoundError(2, 'no such file', '/x')",
        "AssertionError",
        "UnicodeDecodeError('a', b'', 0, 1, '')",
    ],
)
def test_any_exception_is_a_bug(error: str, tmp_path: Path) -> None:
    done = run(error, tmp_path)
    assert done.returncode == 70
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("svmstream: this is a bug in svmstream: ")
    assert line.isprintable()
    (file,) = tmp_path.iterdir()
    assert str(file) in line
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "in broken" in file.read_text()
    again = run(error, tmp_path)
    assert again.returncode == 70
    assert len(list(tmp_path.iterdir())) == 2


def test_where_no_file_can_be_written(tmp_path: Path) -> None:
    error = "KeyError(tempfile.__setattr__('mkstemp', fails))"
    fails = "def fails(**_): raise OSError(28, 'No space left on device')"
    program = BROKEN.replace("import sys", f"import sys, tempfile\n{fails}", 1)
    command = [sys.executable, "-c", program.format(error=error)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert done.returncode == 70
    assert b"no traceback: No space left on device" in done.stderr


@pytest.mark.parametrize("number", ["ENOSPC", "EROFS", "EDQUOT"])
def test_a_full_disk_is_no_bug(number: str, tmp_path: Path) -> None:
    done = run(f"OSError(__import__('errno').{number}, 'full', '/x')", tmp_path)
    assert done.returncode == 4
    assert b"cannot write '/x': full" in done.stderr
    assert not list(tmp_path.iterdir())
