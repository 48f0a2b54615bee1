"""A put held against the stream that it restores, and against another put."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import qemu_svm as svm
from qemu_svm.recording.records import Ioctl, Record
from tests.conftest import Run
from tests.recording.recorded import FIRECRACKER, QEMU, STREAM, made, real


def puts(a: Path, b: Path = STREAM) -> Any:
    (found,) = svm.diff(a, b).puts
    return found


def changed(tmp_path: Path, records: Sequence[Record]) -> Path:
    path = tmp_path / "changed.jsonl"
    path.write_bytes(made(records, "jsonl"))
    return path


def with_byte(line: int, offset: int, mask: int = 0x10) -> list[Record]:
    found = list(real())
    at = next(at for at, one in enumerate(found) if one.number == line)
    call = found[at]
    assert isinstance(call, Ioctl)
    data = bytearray(call.given)
    data[offset] ^= mask
    found[at] = call._replace(given=bytes(data))
    return found


def test_qemu_puts_what_the_stream_says() -> None:
    report = svm.diff(QEMU, STREAM)
    (found,) = report.puts
    assert report.same
    assert found.differences == ()
    assert found.compared > 350
    assert found.b == "what QEMU puts of the stream"


def test_a_vmm_that_leaves_out_nested_state_is_told_so_first() -> None:
    for a, b, only in ((FIRECRACKER, STREAM, "b"), (STREAM, FIRECRACKER, "a")):
        (found,) = svm.diff(a, b).puts
        assert (found.first.ioctl, found.first.only) == ("NESTED_STATE", only)
        assert not svm.diff(a, b).same


@pytest.mark.parametrize(
    ("line", "offset", "ioctl", "name"),
    [
        (26, 12, "SREGS2", "cs.selector"),
        (26, 240, "SREGS2", "cr3"),
        (26, 264, "SREGS2", "efer"),
        (27, 0, "NESTED_STATE", "flags"),
        (27, 8, "NESTED_STATE", "vmcb_pa"),
        (27, 128 + 0x58, "NESTED_STATE", "control.asid"),
        (27, 128 + 0x400 + 0x178, "NESTED_STATE", "l1_save.rip"),
        (27, 128 + 0x400 + 0x10 + 2, "NESTED_STATE", "l1_save.cs.attrib"),
        (32, 128, "REGS", "rip"),
        (33, 24, "XSAVE", "mxcsr"),
        (33, 160, "XSAVE", "@0xa0"),
        (34, 16, "XCRS", "xcr0"),
        (36, 9 - 8, "VCPU_EVENTS", ""),
        (36, 10, "VCPU_EVENTS", ""),
        (36, 8, "VCPU_EVENTS", "int_injected"),
        (36, 24, "VCPU_EVENTS", "smm"),
        (37, 0, "MP_STATE", "mp_state"),
        (39, 40, "DEBUGREGS", "dr7"),
    ],
)
def test_the_first_difference_is_the_value_that_is_wrong(
    tmp_path: Path, line: int, offset: int, ioctl: str, name: str
) -> None:
    found = puts(changed(tmp_path, with_byte(line, offset)))
    if not name:  # the vector of an event that does not exist
        assert found.first is None
        return
    assert (found.first.ioctl, found.first.name, found.first.record_a) == (ioctl, name, line)
    assert found.first.a != found.first.b


def test_msrs_are_told_by_name(tmp_path: Path) -> None:
    found = list(real())
    at = next(at for at, one in enumerate(found) if one.number == 35)
    call = found[at]
    assert isinstance(call, Ioctl)
    data = bytearray(call.given)
    for entry in range(16, len(data), 16):
        data[entry] ^= 0x10
    found[at] = call._replace(given=bytes(data))
    differences = puts(changed(tmp_path, found)).differences
    assert {(one.ioctl, one.record_a) for one in differences} == {("MSRS", 35)}
    names = {one.name for one in differences}
    assert {"pat", "vm_hsave_pa", "tsc", "0x2ff", "0x400", "star", "0x12"} <= names
    assert len(names) > 60


def test_bytes_that_do_not_count_are_no_difference(tmp_path: Path) -> None:
    for line, offset in ((26, 300), (33, 480), (33, 28), (36, 16), (12, 0x390)):
        assert puts(changed(tmp_path, with_byte(line, offset))).first is None, (line, offset)


def test_a_call_that_is_missing_or_failed_or_twice(tmp_path: Path) -> None:
    without = [one for one in real() if one.number != 27]
    first = puts(changed(tmp_path, without)).first
    assert (first.ioctl, first.only) == ("NESTED_STATE", "b")
    failed = [
        one._replace(ret=-22) if isinstance(one, Ioctl) and one.number == 27 else one
        for one in real()
    ]
    first = puts(changed(tmp_path, failed)).first
    assert (first.ioctl, first.only) == ("NESTED_STATE", "b")
    # A put has what was set last.
    wrong = next(one for one in with_byte(37, 0) if one.number == 37)
    twice = [other for one in real() for other in ([wrong, one] if one.number == 37 else [one])]
    assert puts(changed(tmp_path, twice)).first is None


def test_two_recordings_by_value_and_order(tmp_path: Path) -> None:
    same = puts(QEMU, QEMU)
    assert same.differences == ()
    assert same.order is None
    other = puts(QEMU, FIRECRACKER)
    assert other.order == "MSRS"
    assert other.first.ioctl == "NESTED_STATE"
    assert other.first.only == "a"
    assert {one.ioctl for one in other.differences} <= {
        *("NESTED_STATE", "LAPIC", "XSAVE", "VCPU_EVENTS", "MSRS"),
    }
    swapped = list(real())
    at = {one.number: place for place, one in enumerate(swapped)}
    swapped[at[26]], swapped[at[32]] = swapped[at[32]], swapped[at[26]]
    found = puts(QEMU, changed(tmp_path, swapped))
    assert (found.differences, found.order) == ((), "SREGS")


def test_the_report(command: Run, tmp_path: Path) -> None:
    wrong = changed(tmp_path, with_byte(27, 128 + 0x58))
    done = command("diff", wrong, STREAM)
    assert done.returncode == 1
    line = next(one for one in done.stdout.splitlines() if b"first difference" in one)
    assert line == b"  first difference: record 27, NESTED_STATE control.asid: 0x11, in B 0x1"
    document = json.loads(command("diff", wrong, STREAM, "--json").stdout)
    assert document["puts"][0]["differences"] == [
        {
            "ioctl": "KVM_SET_NESTED_STATE",
            "name": "control.asid",
            "only": None,
            "why": None,
            "record_a": 27,
            "record_b": None,
            "a": "0x11",
            "b": "0x1",
        }
    ]
    assert json.loads(command("diff", STREAM, STREAM, "--json").stdout)["puts"] == []


def test_damaged_puts_are_compared_without_an_exception(tmp_path: Path) -> None:
    rng = random.Random(4)
    for _ in range(8):
        line = rng.choice([26, 27, 32, 33, 34, 35, 36, 37, 39, 12])
        data = with_byte(line, rng.randrange(4), rng.randrange(256))
        call = next(one for one in data if one.number == line)
        assert isinstance(call, Ioctl)
        cut = call._replace(given=call.given[: rng.randrange(len(call.given))])
        path = changed(tmp_path, [cut if one is call else one for one in data])
        svm.diff(path, STREAM)
        svm.diff(STREAM, path)
