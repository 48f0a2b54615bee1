"""Names that files get when they are complete: nothing that is no file is replaced."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qemu_svm.errors import EnvironmentFault, OutputExists
from qemu_svm.qmp.output import Output


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe, name = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    stdout = tmp_path / "stdout"
    stdout.symlink_to("/proc/self/fd/1")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(name))
        for path in (pipe, name, link, Path("/dev/full"), stdout):
            before = path.lstat()
            with pytest.raises(EnvironmentFault, match="a device, a pipe or a socket"):
                Output(str(path), replace=True)
            assert path.lstat() == before
            with pytest.raises(OutputExists):
                Output(str(path))
    assert {one.name for one in tmp_path.iterdir()} == {"pipe", "socket", "link", "stdout"}


def test_a_link_is_replaced_and_not_what_it_points_at(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "dump.bin"
    victim.write_bytes(b"before")
    link.symlink_to(victim)
    with Output(str(link), replace=True) as out:
        out.fill(b"after")
    assert (victim.read_bytes(), link.read_bytes()) == (b"before", b"after")
    assert not link.is_symlink()
