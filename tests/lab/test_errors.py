"""What the host refuses, and what is used at the wrong time, are errors of the project."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qemu_svm.errors import LabError
from qemu_svm.lab import Box, svmtrace
from qemu_svm.lab.box import boot, named
from qemu_svm.lab.box.life import Folder
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.guests import assemble, find
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.restore import copy_to_share
from qemu_svm.lab.suites import cache, modules
from qemu_svm.lab.suites.cache import Built, Manifest
from qemu_svm.lab.suites.catalogue import SUITES
from qemu_svm.lab.suites.kernel_image import decompressed, unpacked
from qemu_svm.source import open_source
from tests.conftest import CAPTURES, STREAMS

NOWHERE = Path("/proc/none")  # nothing can be made there, not even by root


def built() -> Built:
    suite = SUITES[1]
    packages = {"linux-image-6.1": "6.1.1-1", "busybox-static": "1"}
    return Built(suite.name, NOWHERE, Manifest(suite.name, "mirror", "now", "6.1", packages))


def copied() -> None:
    box: Any = SimpleNamespace(share=NOWHERE)
    with open_source(str(STREAMS / CAPTURES[0]["file"])) as source:
        copy_to_share(box, source)


def taken() -> None:
    with named.taken("box"):
        pass


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (copied, "cannot write /proc/none/stream-"),
        (taken, "cannot make /proc/none/qemu-svm/up/box.json"),
        (lambda: boot.kernel(built()), "cannot write /proc/none/qemu-svm/boot/bookworm-6.1"),
        (lambda: boot.initrd(built(), built()), "cannot write /proc/none/qemu-svm/boot/bookworm-"),
        (lambda: modules.in_order(built()), "cannot read the modules of bookworm"),
        (svmtrace.plugin, "cannot build svmtrace"),
        (lambda: assemble(find("nested")), "cannot assemble the guest 'nested'"),
        (Folder, "cannot make a directory for the box"),
    ],
)
def test_a_place_that_cannot_be_written(
    work: Callable[[], object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(NOWHERE))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(NOWHERE))
    with pytest.raises(LabError, match=f"{says}.*: No such file or directory") as caught:
        work()
    assert isinstance(caught.value.__cause__, OSError)


def test_what_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "qemu-svm/bookworm/root").mkdir(parents=True)
    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(LabError, match=r"cannot remove .*bookworm.gone: Operation not permitted"):
        cache.clean([cache.Named("bookworm")])


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(LabError, match="XDG_CACHE_HOME"):
        cache.folder()


@pytest.mark.parametrize("data", [b"\xfd7zXZ\0" + b"x" * 100, b"\x28\xb5\x2f\xfd" + b"x" * 100])
def test_damage_in_a_suite(data: bytes) -> None:
    with pytest.raises(LabError, match="damaged"):
        decompressed(data)
    header = bytes(0x1F1) + b"\1" + bytes(0x10) + b"HdrS" + bytes(0x42)
    image = (header + bytes(4) + len(data).to_bytes(4, "little")).ljust(1024, b"\0")
    with pytest.raises(LabError, match="damaged"):
        unpacked(image + data)
    assert unpacked(image[:0x24C]) is None
    assert unpacked(image + b"other") is None


def test_programs_that_fail() -> None:
    for argv in (["false"], ["/none"], ["sleep", "9"]):
        with pytest.raises(LabError, match=r"^cannot do it: "), host_faults("do it"):
            subprocess.run(argv, check=True, timeout=0.1)


def test_a_box_that_was_not_started() -> None:
    box = Box()
    for use in (lambda: box.run(["true"]), lambda: box.forward("/run/x"), box.serve, box.wait):
        with pytest.raises(LabError, match="was not started"):
            use()


def test_a_box_that_was_closed() -> None:
    class Empty(BoxSession):
        def _start(self) -> None:
            self._start_loop()

    with Empty() as box:
        folder = box._folder.path
        assert folder.exists()
    for use in (lambda: box.run(["true"]), lambda: box.forward("/run/x")):
        with pytest.raises(LabError, match="the box was closed"):
            use()
    assert not folder.exists()
