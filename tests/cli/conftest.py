"""The command inside the process of the tests: an order of magnitude faster than starting it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qemu_svm import cli
from tests.conftest import Run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run the command line in this process; the result is that of :func:`subprocess.run`."""

    def run(*args: str | Path) -> subprocess.CompletedProcess[bytes]:
        words = ["svmstream", *map(str, args)]
        monkeypatch.setattr(sys, "argv", words)
        capfdbinary.readouterr()
        status = cli._run()
        sys.stdout.flush()
        out, errors = capfdbinary.readouterr()
        return subprocess.CompletedProcess(words, status, out, errors)

    return run
