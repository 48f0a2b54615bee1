"""The share of a box with a foreign kernel or module: a limit, and nothing that leads elsewhere.

What a real box can do in it is tried by ``make trials``.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from qemu_svm.errors import LabError
from qemu_svm.lab import Box
from qemu_svm.lab.box import share as shares
from qemu_svm.lab.box.emulator import Machine, arguments
from qemu_svm.lab.box.share import Share, discard, forget, limited_share
from qemu_svm.lab.witness import WitnessBox
from tests.conftest import Run

NOWHERE = Path("/nowhere")
MODULES = {"kvm-amd.ko": b""}


def test_the_host_keeps_the_limit() -> None:
    with limited_share(1 << 20) as share:
        path = share.path
        (path / "folder").mkdir()
        (path / "folder/file").write_bytes(b"here")
        # Other processes of this user can use the path, and see no mount.
        assert subprocess.check_output(["cat", path / "folder/file"]) == b"here"
        assert "share" not in Path("/proc/mounts").read_text().split()
        assert share.full is None
        with pytest.raises(OSError, match="No space left") as caught:
            (path / "large").write_bytes(bytes(2 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert share.full == f"the box has filled its share: 1 MiB, {shares.FILES} files"
    assert not path.exists()
    assert share.full is None  # nothing is left to be full


def test_its_files_are_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "FILES", 20)
    with limited_share() as share:
        for number in range(19):
            (share.path / f"{number}").touch()
        with pytest.raises(OSError, match="No space left"):
            (share.path / "one more").touch()
        assert share.full is not None


def test_without_root_and_user_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unshare").write_text("#!/bin/sh\necho 'unshare failed: not permitted' >&2\nexit 1")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(LabError, match=r"needs a limit.*not permitted.*user namespaces"):
        limited_share().__enter__()


def test_what_a_box_made_may_be_deeper_than_can_be_removed() -> None:
    """A tree deeper than Python's stack does no harm: it goes with the share."""
    with limited_share() as share:
        top = os.open(share.path, os.O_RDONLY)
        at = os.dup(top)
        for _ in range(1500):
            os.mkdir("d", dir_fd=at)
            at, left = os.open("d", os.O_RDONLY, dir_fd=at), at
            os.close(left)
        os.close(at)
        os.close(top)
        discard(share.path / "d")


@pytest.mark.parametrize(("limited", "model"), [(True, "mapped-file"), (False, "none")])
def test_links_and_devices_are_made_in_a_directory_of_the_user_only(
    limited: bool, model: str
) -> None:
    share = Share(Path("/s"), limited)
    words = arguments(Machine(), NOWHERE, NOWHERE, root=NOWHERE, share=share, run=NOWHERE)
    (found,) = (word for word in words if "id=share" in word)
    assert found == f"local,id=share,path=/s,multidevs=remap,security_model={model}"


def test_a_foreign_module_sees_no_directory_of_the_user(tmp_path: Path, svmstream: Run) -> None:
    with pytest.raises(LabError, match="a share of its own only"):
        Box(modules=MODULES, share=tmp_path)
    with pytest.raises(LabError, match="a share of its own only"):
        Box(modules=MODULES, share=Share(tmp_path))
    Box(share=tmp_path)
    assert WitnessBox("6.1", modules=MODULES)._foreign
    patch = tmp_path / "p.patch"
    patch.write_text("")
    done = svmstream("lab", "run", "--patch", patch, "--share", tmp_path, "--", "true")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"a directory of its own only, with a limit" in done.stderr


def test_a_file_that_a_box_made_something_else(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder/inner").mkdir(parents=True)
    for name in ("file", "folder", "nothing"):
        forget(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
