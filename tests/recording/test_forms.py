"""Both forms of a recording: what is written is read, cut and damaged anywhere."""

from __future__ import annotations

import contextlib
import json
import random
import re
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import BuildError, Malformed, SvmStreamError, Truncated, Unsupported
from qemu_svm.kvm import layouts
from qemu_svm.kvm.numbers import Level
from qemu_svm.recording import payload, records
from qemu_svm.recording.recording import Form, is_recording, read_recording
from qemu_svm.recording.records import (
    Attached,
    Descriptor,
    Ended,
    Header,
    Ioctl,
    Lost,
    Memory,
    Record,
    Runs,
    level_of_link,
)
from qemu_svm.source import BytesSource, open_source
from tests.conftest import ROOT, STREAMS
from tests.recording.recorded import FIRECRACKER, QEMU, bare, made, read, real

FORMS: tuple[Form, ...] = ("binary", "jsonl")
HEADER = Header(
    "intel", 4711, "6.1.0-32-amd64", "cloud-hypervisor", "ptrace", 1 << 60, 77, True, True
)
EVERY: list[Record] = [
    Attached(0, 1, 3),
    Descriptor(0, 1, 9, "anon_inode:kvm-vcpu:3"),
    Ioctl(0, 2, 11, 9, Level.VCPU, 3, 0x4004AE99, 0, b"\x01\0\0\0", b"", (1 << 64) - 1),
    Ioctl(0, 3, 11, 9, Level.VCPU, 3, 0xC080AEBE, -7, b"\xff" * 9, b"\x80" * 3, 5, None, 17),
    Ioctl(0, 4, 11, 9, Level.VCPU, 3, records.RUN, -4, b"", b"\x0a\0\0\0", 0, 12),
    Lost(0, 5, 70),
    Ioctl(0, 5, 11, 8, None, None, 0x4020AE46, 0, b"", b"", 0, None, 0, True),
    Memory(0, 6, -1, 0x1000_0000_0000, bytes(range(256))),
    Ended(0, 7, "stopped", (Runs(9, 3, 1 << 40),)),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_record_is_read_as_it_was_written(form: Form) -> None:
    data = made(EVERY, form, HEADER)
    found = read_recording(BytesSource(data))
    assert (found.form, found.header) == (form, HEADER)
    assert bare(found._reader) == EVERY
    assert made(EVERY, form, HEADER) == data
    assert is_recording(data[:64])


@pytest.mark.parametrize("path", [QEMU, FIRECRACKER], ids=["qemu", "firecracker"])
def test_a_real_recording_is_the_same_in_both_forms(path: Path) -> None:
    manifest = json.loads((STREAMS / "recordings/recordings.json").read_text())["recordings"]
    count = next(one["records"] for one in manifest if one["file"] == path.name)
    assert len(real(path)) == count
    for form in FORMS:
        again, damage = read(made(real(path), form))
        assert bare(again) == bare(real(path))
        assert damage is None


def test_the_level_of_a_descriptor_is_found_where_the_call_lacks_it() -> None:
    calls = list(records.ioctls(real()))
    levels = {call.fd: call.level for call in calls if call.fd in (9, 13)}
    assert levels == {9: Level.VM, 13: Level.VCPU}
    assert {call.index for call in calls} == {None}
    made_here = [
        Ioctl(0, 0, 1, 3, Level.SYSTEM, None, 0xAE01, 4),
        Ioctl(0, 0, 1, 4, None, None, 0xAE41, 7, arg=2),
        Ioctl(0, 0, 1, 7, None, None, 0xAEA3, 1),  # KVM_GET_TSC_KHZ
    ]
    last = read(made(made_here))[0][-1]
    assert isinstance(last, Ioctl)
    assert (last.level, last.index) == (Level.VCPU, 2)
    # KVM_CHECK_EXTENSION fails on a vCPU: if it succeeds, the number is that of another descriptor.
    for ret, level in ((-22, Level.VCPU), (1, None), (-22, None)):
        made_here.append(Ioctl(0, 0, 1, 7, None, None, 0xAE03, ret, arg=1))
        last = read(made(made_here))[0][-1]
        assert isinstance(last, Ioctl)
        assert last.level is level
    # A recorder that reads the link of the descriptor too late says that it is a vCPU.
    late = read(made([Ioctl(0, 0, 1, 7, Level.VCPU, 0, 0xAE03, 1, arg=1)]))[0][-1]
    assert isinstance(late, Ioctl)
    assert (late.level, late.index) == (None, None)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("/dev/kvm", (Level.SYSTEM, 0)),
        ("anon_inode:kvm-vm", (Level.VM, 0)),
        ("anon_inode:[kvm-vcpu:12]", (Level.VCPU, 12)),
        ("anon_inode:kvm-vfio", (Level.DEVICE, 0)),
        ("anon_inode:kvm-vcpu-stats:0", None),
        ("anon_inode:kvm-vcpu:99999999999", None),
        ("socket:[12]", None),
    ],
)
def test_a_link_tells_what_a_descriptor_is(text: str, kind: tuple[Level, int] | None) -> None:
    assert level_of_link(text) == kind


@pytest.mark.parametrize("form", FORMS)
def test_a_recording_cut_anywhere_is_read_up_to_its_last_record(form: Form) -> None:
    data = made(EVERY, form, HEADER)
    if form == "binary":
        ends = [168]
        while ends[-1] < len(data):
            ends.append(ends[-1] + int.from_bytes(data[ends[-1] : ends[-1] + 4], "little"))
    else:
        ends = [at + 1 for at in range(len(data)) if data[at : at + 1] == b"\n"]
    for cut in range(12, len(data), 3):
        if cut < ends[0] - (form == "jsonl"):
            with pytest.raises((Truncated, Malformed)):
                read(data[:cut])
            continue
        found, damage = read(data[:cut])
        at_line_end = form == "jsonl" and cut + 1 in ends
        whole = sum(end <= cut for end in ends[1:])
        # A line needs no end to be whole.
        assert len(found) - whole in ((0,) if form == "binary" else (0, 1)), cut
        assert bare(found) == bare(read(data)[0][: len(found)])
        assert (damage is None) == (cut in ends or at_line_end), cut


@pytest.mark.parametrize("form", FORMS)
def test_damage_is_an_error_of_ours_or_another_value(form: Form) -> None:
    rng = random.Random(5)
    data = bytearray(made([*EVERY, *real()[:8]], form, HEADER))
    for _ in range(500):
        bad = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            bad[rng.randrange(len(bad))] = rng.choice((0, 0xFF, rng.randrange(256), 0x22, 0x39))
        with contextlib.suppress(SvmStreamError):
            read(bytes(bad))


def _patched(offset: int, format_: str, value: int) -> bytes:
    data = bytearray(made(EVERY[2:3]))
    struct.pack_into("<" + format_, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_patched(168, "I", 1 << 31), "size of a record"),
        (_patched(168, "I", 57), "size of a record"),
        (_patched(168, "I", 8), "size of a record"),
        (_patched(172, "B", 99), "unknown kind"),
        (_patched(173, "B", 5), "unknown level"),
        (_patched(168 + 48, "I", 0xFFFFFFFF), "does not fit its size"),
        (_patched(168 + 52, "I", 1 << 16), "does not fit its size"),
    ],
)
def test_a_value_that_lies_ends_the_recording(data: bytes, words: str) -> None:
    found, damage = read(data)
    assert found == []
    assert isinstance(damage, Malformed)
    assert words in str(damage)
    assert damage.offset >= 168


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"nr": "0xae80"}', "field ret"),
        ('{"nr": "KVM_SET_NOTHING", "ret": 0}', "unknown ioctl"),
        ('{"nr": "0xae80", "ret": 0, "level": "cpu"}', "unknown level"),
        ('{"nr": "0xae80", "ret": 0, "level": "vcpu", "index": 65536}', "field index"),
        ('{"nr": "0xae80", "ret": "zero"}', "field ret"),
        ('{"nr": "0xae80", "ret": true}', "field ret"),
        ('{"nr": "0xae80", "ret": 1e3}', "field ret"),
        ('{"nr": "0xae80", "ret": 0, "in": "0g"}', "hexadecimal"),
        ('{"nr": "0xae80", "ret": 0, "in": 7}', "hexadecimal"),
        ('{"nr": "0xae80", "ret": 0, "out": "' + "00" * 65537 + '"}', "too many bytes"),
        ('{"nr": "0xae80", "ret": 0, "t": -1}', "field t"),
        ('{"nr": "0xae80", "ret": 0, "t": ' + "9" * 4000 + "}", "field t"),
        ('{"nr": "0xae80", "ret": 0, "t": ' + "9" * 5000 + "}", "no JSON"),
        ('{"kind": "end", "runs": [[]]}', "field runs"),
        ('{"kind": "lost"}', "field count"),
        ("[" * 100_000 + "]" * 100_000 + "}", "no JSON"),
        ("[1]", "no object"),
        ('{"nr": 1', "is cut"),
        ("{}x}", "no JSON"),
        ('{"x": "' + "x" * 300_000 + '"}', "too long"),
    ],
)
def test_a_line_that_is_no_record_ends_the_recording(line: str, words: str) -> None:
    good = '{"t": 1, "nr": "SET_REGS", "ret": 0, "new": [1]}'
    text = f'{{"svmstream-recording": 1}}\n{good}\n{line}\n{good}\n'
    found, damage = read(text.encode())
    assert len(found) == 1
    assert words in str(damage)
    assert "line 3" in str(damage)
    assert len(str(damage)) < 300


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"svmstream-recording": 2}', Unsupported),
        ('{"svmstream-recording": true}', Unsupported),
        ('{"svmstream-recording": 1, "vendor": "via"}', Malformed),
        ('{"svmstream-recording": 1, "pid": 4294967296}', Malformed),
        ('{"svmstream-recording": 1', Truncated),
    ],
)
def test_a_first_line_that_is_none(text: str, error: type[SvmStreamError]) -> None:
    with pytest.raises(error):
        read(text.encode() + b"\n")


def test_other_input_is_refused_in_words() -> None:
    with pytest.raises(Malformed, match="not a recording") as found:
        read(b"QEVM\0\0\0\3")
    assert "svmstream-recording" in str(found.value)
    with pytest.raises(Unsupported, match="expected 1, found 9"):
        read(_patched(8, "H", 9))


def test_what_does_not_fit_is_not_written() -> None:
    call = EVERY[2]
    assert isinstance(call, Ioctl)
    for bad in (call._replace(given=bytes(65537)), call._replace(tid=1 << 32)):
        with pytest.raises(BuildError):
            made([bad])
    with pytest.raises(BuildError):
        made([], header=replace(HEADER, pid=1 << 40))


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    block = made(real()[:30] * 20)[168:]
    peaks = []
    for times in (4, 16):
        path = tmp_path / f"{times}.rec"
        path.write_bytes(made([]) + block * times)
        tracemalloc.start()
        try:
            with open_source(str(path)) as source:
                assert sum(1 for _ in read_recording(source)) == 30 * 20 * times
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_the_direction_in_a_number_may_be_wrong() -> None:
    calls = [call for call in records.ioctls(real()) if call.name == "KVM_SET_IRQCHIP"]
    assert len(calls) == 3
    for call in calls:
        assert call.given == b""
        assert len(payload.given(call)) == 520
        assert payload.returned(call) == b""


def test_every_payload_of_a_real_recording_is_complete() -> None:
    for path in (QEMU, FIRECRACKER):
        for call in records.ioctls(real(path)):
            assert payload.complete(call), call.name
    msrs = next(call for call in records.ioctls(real()) if call.name == "KVM_SET_MSRS")
    assert not payload.complete(msrs._replace(given=msrs.given[:-1]))
    assert not payload.complete(msrs._replace(missing=True))


def _block(page: str, language: str) -> str:
    text = (ROOT / page).read_text()
    found = re.search(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_writer_of_the_documentation_writes_a_recording(tmp_path: Path) -> None:
    program = tmp_path / "writer.py"
    regs = layouts.REGS.pack({"rip": 0x1000}).hex()
    use = (
        "\nrecorder = Recorder(open('vmm.jsonl', 'w'))\n"
        f"recorder.ioctl(13, 'vcpu', 0, 0x4090ae82, 0, given=bytes.fromhex({regs!r}))\n"
        "recorder.ioctl(13, 'vcpu', 0, 0xae80, -4, runs=0)\n"
    )
    program.write_text(_block("docs/recording.md", "python") + use)
    subprocess.run([sys.executable, "-I", program], cwd=tmp_path, check=True)
    found, damage = read((tmp_path / "vmm.jsonl").read_bytes())
    assert damage is None
    assert [one.name for one in records.ioctls(found)] == ["KVM_SET_REGS", "KVM_RUN"]


def test_the_layout_in_words_is_the_layout(tmp_path: Path) -> None:
    """What the module's text says about :mod:`struct` is what a recorder may write."""
    from qemu_svm.recording import structs

    text = structs.__doc__ or ""
    formats = re.findall(r'(HEADER|RECORD) = struct\.Struct\("(.*?)"\)', text)
    assert {name: struct.calcsize(format_) for name, format_ in formats} == {
        "HEADER": structs.HEADER.sizeof(),
        "RECORD": structs.RECORD.sizeof(),
    }
    rows: list[tuple[str, Any]] = []
    for layout in (structs.HEADER, structs.RECORD):
        at = 0
        for one in layout.subcons:
            rows.append((one.name, (at, one.sizeof())))
            at += one.sizeof()
    words = [
        (found[3], (int(found[1]), int(found[2])))
        for found in re.finditer(r"^(\d+) +(\d+) +(\w+) ", text, re.MULTILINE)
    ]
    assert words == rows
