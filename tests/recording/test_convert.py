"""Recordings written anew: the other form, and without what is the host's."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from qemu_svm.kvm import layouts
from qemu_svm.recording import payload
from qemu_svm.recording.records import Ioctl, Memory
from tests.conftest import Run
from tests.recording.recorded import FIRECRACKER, QEMU, bare, made, read, real

_ADDRESS = re.compile(rb"[\0-\xff]{5}\x7f\0\0|[\0-\xff]{4}[\x55\x56]\x55?\0\0")


@pytest.mark.parametrize("name", ["a.rec", "a.jsonl", "a.rec.zst", "a.jsonl.zst"])
def test_either_form_is_written_and_is_judged_alike(
    command: Run, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    done = command("record", "--convert", QEMU, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == 65
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert out.read_bytes().startswith(
        {"c": b"SVMIOCTL", "l": b'{"svm', "t": b"\x28\xb5\x2f\xfd"}[name[-1]]
    )
    ours, theirs = (json.loads(command("trace", one, "--json").stdout) for one in (out, QEMU))
    assert ours["verdict"] == theirs["verdict"] == "ok"
    first, second = (
        [value["values"] for value in one["vcpus"][0]["values"]] for one in (ours, theirs)
    )
    assert first == second
    again = command("record", "--convert", QEMU, "-o", out)
    assert again.returncode == 4
    assert b"exists already" in again.stderr


def test_redacted_recordings_have_no_address_of_the_host_and_are_judged_alike(
    command: Run, tmp_path: Path
) -> None:
    memory = Memory(0, 0, 9, 0x1000, b"secret" * 10)
    source = tmp_path / "with-memory.rec"
    source.write_bytes(made([*real(), memory]))
    out = tmp_path / "given-away.rec"
    assert command("record", "--convert", source, "-o", out, "--redact").returncode == 0
    found, damage = read(out.read_bytes())
    assert damage is None
    assert len(found) == len(real())
    kept, before = [], []
    for one, old in zip(found, real(), strict=True):
        assert isinstance(one, Ioctl)
        assert isinstance(old, Ioctl)
        assert _ADDRESS.search(one.given + one.returned) is None, one.name
        before += _ADDRESS.findall(old.given + old.returned)
        if one.name in ("KVM_SET_NESTED_STATE", "KVM_SET_REGS", "KVM_SET_XSAVE"):
            kept.append(one.name)
            assert one.given == old.given
        if one.name == "KVM_SET_MSRS":
            values = layouts.unpack_msrs(one.given)
            assert list(values) == list(layouts.unpack_msrs(old.given))
            assert {key for key, value in values.items() if value} <= {0xC0010117}
        assert payload.complete(one)
    assert len(before) > 20  # the pointers are there, and this test knows them
    assert len(set(kept)) == 3
    document = json.loads(command("trace", out, "--json").stdout)
    assert document["verdict"] == "ok"
    assert document["recording"]["redacted"]


def test_what_precedes_a_cut_is_converted(command: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "cut.rec", tmp_path / "out.jsonl"
    source.write_bytes(made(real(FIRECRACKER))[:-5])
    done = command("record", "--convert", source, "-o", out)
    assert done.returncode == 3
    assert b"ends inside a record" in done.stderr
    assert bare(read(out.read_bytes())[0]) == bare(real(FIRECRACKER)[:-1])


def test_nothing_is_left_of_what_cannot_be_converted(command: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "no.rec", tmp_path / "out.jsonl"
    source.write_bytes(b"no recording at all")
    assert command("record", "--convert", source, "-o", out).returncode == 3
    assert not out.exists()
    done = command("record", "--convert", source, "-o", out, "--pid", "1")
    assert done.returncode == 2
    assert b"records nothing" in done.stderr
