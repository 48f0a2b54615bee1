"""Looks in files: a real one (Linux 6.1.176, L2 of the guest nested-npt), and what is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qemu_svm as svm
from qemu_svm.errors import EnvironmentFault, SourceError
from qemu_svm.inside.file import is_kept
from qemu_svm.inside.host import domain_folder, process_of_domain
from qemu_svm.inside.kept import parse_kept, read_kept
from qemu_svm.inside.saved import would_save
from tests.conftest import Run

KEPT = Path(__file__).with_name("look-6.1.json")
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(KEPT.read_text())
    return found


def test_a_file_is_read_as_it_was_written(document: dict[str, Any]) -> None:
    assert is_kept(str(KEPT))
    found = read_kept(str(KEPT))
    assert found.to_json() == document
    (vcpu,) = found.vcpus
    assert (vcpu.guest, vcpu.label) == ("L2", "vCPU 0")
    saved = would_save(vcpu.values)
    assert saved["nested.flags"] == 0x101
    assert saved["l1.cr3"] == vcpu.values["vmcb01.save.cr3"] != saved["sregs.cr3"]
    assert saved["ctl.asid"] == vcpu.values["nested.ctl.asid"]


def test_two_looks_differ_member_by_member(
    document: dict[str, Any], tmp_path: Path, command: Run
) -> None:
    inside = document["vcpus"][0]["inside"]
    inside["nested.save.cr3"] = "0x101000"
    inside["exits"] = "0x1"
    del inside["gif"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    found = svm.diff_inside(KEPT, other)
    assert [(one.path, one.b) for one in found.counting] == [
        ("vcpu0.nested.save.cr3", 0x101000), ("vcpu0.gif", None),
    ]  # fmt: skip
    assert [one.name for one in found.differences if one.mask] == ["exits"]
    assert svm.diff_inside(KEPT, other, mask=["vcpu0.gif", "*.nested.save"]).same
    done = command("diff", KEPT, other)
    assert done.returncode == 1
    assert b"nested.save.cr3  0x11a000  0x101000" in done.stdout
    assert b"2 differences, 1 more masked" in done.stdout
    assert command("diff", KEPT, KEPT).returncode == 0
    assert command("diff", KEPT, other, "--ram").returncode == 2


def test_the_process_of_a_domain(tmp_path: Path, command: Run) -> None:
    (tmp_path / "guest one.pid").write_text("4242\n")
    (tmp_path / "broken.pid").write_text("x")
    (tmp_path / "driver.pid").write_text("4241")  # libvirt's own
    assert process_of_domain("guest one", str(tmp_path)) == 4242
    for name in ("guest", "../broken", "", "driver"):
        with pytest.raises(EnvironmentFault, match="has the process of broken, guest one"):
            process_of_domain(name, str(tmp_path))
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        process_of_domain("broken", str(tmp_path))
    done = command("inside", "--domain", "there-is-none")
    assert done.returncode == 4
    assert b"no domain 'there-is-none' runs" in done.stderr
    assert command("inside", "--domain", "a", "--pid", "1").returncode == 2
    assert command("inside", "--connect", "qemu:///session").returncode == 2
    done = command("inside", "--domain", "a", "--connect", "qemu+ssh://root@host/system")
    assert done.returncode == 4
    assert b"no libvirt of this host" in done.stderr


def test_where_a_libvirt_keeps_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    for uri, folder in (
        (None, "/run/libvirt/qemu"), ("qemu:///system", "/run/libvirt/qemu"),
        ("qemu:///session", "/run/user/1000/libvirt/qemu/run"),
        ("qemu+unix:///session?socket=/a%20b/libvirt-sock", "/a b/qemu/run"),
    ):  # fmt: skip
        assert domain_folder(uri) == folder
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert domain_folder("qemu:///session").endswith("/.cache/libvirt/qemu/run")
    for uri in ("qemu+ssh://root@host/system", "qemu://host/system", "xen:///system", "qemu:///x"):
        with pytest.raises(EnvironmentFault, match="no libvirt of this host"):
            domain_folder(uri)


def test_a_process_that_does_not_use_kvm_is_said() -> None:
    """The kernel's own, whatever this host is."""
    with pytest.raises(EnvironmentFault, match=r"kvm_amd|not root|PID namespace|process 2"):
        svm.look_inside(2)


@pytest.mark.parametrize(
    "edit",
    [
        lambda found: found.pop("vcpus"),
        lambda found: found.update(vcpus={}),
        lambda found: found["process"].update(pid="7"),
        lambda found: found["vcpus"][0].update(state="asleep"),
        lambda found: found["vcpus"][0].update(inside=[]),
        lambda found: found["vcpus"][0]["inside"].update({"vmcb01.save.cs": "0x8"}),
        lambda found: found["vcpus"][0]["inside"].update({"vmcb02.control.int_state": {}}),
        lambda found: found["vcpus"][0]["inside"].update({"gif": True}),
        lambda found: found["vcpus"][0]["inside"].update({"gif": "-0x1"}),
        lambda found: found["vcpus"][0]["inside"].update({"gif": "0x" + "f" * 100}),
        lambda found: found["vcpus"][0]["inside"].update({"current": 1}),
    ],
)
def test_what_is_no_look_is_said(
    edit: Edit, document: dict[str, Any], tmp_path: Path, command: Run
) -> None:
    edit(document)
    with pytest.raises(SourceError, match="not one of svmstream inside"):
        parse_kept(json.dumps(document).encode(), "here")
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(document))
    done = command("diff", KEPT, path)
    assert (done.returncode, done.stdout) == (3, b"")


def test_nothing_of_a_file_reaches_a_terminal_raw(
    document: dict[str, Any], tmp_path: Path, command: Run
) -> None:
    document["process"]["name"] = "\x1b[31mqemu"
    document["vcpus"][0]["inside"] |= {"\x1b[2J": "0x1", "current": "\x1b]0;"}
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document))
    done = command("diff", KEPT, path)
    assert done.returncode == 1
    assert b"\x1b" not in done.stdout
