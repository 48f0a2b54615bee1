"""Inputs that lie beside streams: opened if there is a stream in them, else named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest
import zstandard

from qemu_svm.errors import StreamError
from qemu_svm.findings.inspection import findings
from qemu_svm.machine import read_machine
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import Kind, read_stream
from tests.conftest import STREAMS, Run
from tests.support import builders
from tests.support.builders import Section

DEVICE = Section("timer", bytes(4), [{"name": "ticks", "type": "uint32", "size": 4}])
PAGES = [
    b"".join(builders.page(n * builders.PAGE, b"x", None if n else "pc.ram") for n in range(9))
]
XEN_STATE = (
    builders.header()
    + builders.named(builders.RecordType.FULL, 4, "apic", 0, 3, bytes(181))
    + b"\0"
)
XL = b"Xen saved domain, xl format\n \0 \r" + bytes(16) + b"{}" + b"LibxlFmt" + bytes(8)


def words(number: int, order: str) -> bytes:
    return number.to_bytes(4, order)  # type: ignore[arg-type]


def context(order: str, state: bytes) -> bytes:
    return words(3, order) + words(len(state) + 8, order) + words(2, order) + bytes(4) + state


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("before", [0, 1, 3, 100_003, (1 << 20) - 20, (2 << 20) + 5])
def test_a_saved_domain_of_xen(order: str, before: int, tmp_path: Path) -> None:
    # The guest's memory may look like a stream: only the emulator's record counts.
    memory = (b"QEVM\0\0\0\3junk" + bytes(before))[:before]
    data = XL + memory + context(order, XEN_STATE) + bytes(12)
    path = tmp_path / "a.save"
    path.write_bytes(data)
    for start in (0, data.index(b"LibxlFmt")):
        path.write_bytes(data[start:])
        with open_source(str(path)) as source:
            assert source.container == "xen"
            assert source.stream_offset == data.rindex(b"QEVM") - start
            assert source.read_at(0, 1 << 30) == XEN_STATE
            assert source.size() == len(XEN_STATE)
            assert read_stream(source).complete


@pytest.mark.parametrize("name", [b"DeviceModelRecord0002", b"QemuDeviceModelRecord"])
def test_older_states_of_xen(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / "qemu-save.1"
    for data in (
        name + len(XEN_STATE).to_bytes(4, "little") + XEN_STATE + b"rest",
        XL + bytes(77) + name + len(XEN_STATE).to_bytes(4, "little") + XEN_STATE + b"rest",
        name + XEN_STATE,
    ):
        path.write_bytes(data)
        with open_source(str(path)) as source:
            assert source.read_at(0, source.size()) == XEN_STATE


def test_a_domain_without_a_device_model(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "pv.save"
    path.write_bytes(XL + bytes(5000))
    done = command("inspect", path)
    assert done.returncode == 3
    assert b"a saved domain of Xen without the state of its QEMU" in done.stderr


def stale(machine: str, pages: int) -> tuple[bytes, bytes]:
    """A short stream, and a volume in which the end of a longer one follows it."""
    config = builders.configuration(machine)
    parts = [builders.zero(0, "pc.ram")] + PAGES * pages
    longer = builders.stream([DEVICE], parts, config=config)
    short = builders.stream([DEVICE], [builders.zero(0, "pc.ram")], config=config)
    return short, short + longer[len(short) :]


@pytest.mark.parametrize("more", [b"junk", b"\0" * 5000 + b"\xff" * 99, None])
def test_stale_bytes_behind_a_stream(more: bytes | None, command: Run, tmp_path: Path) -> None:
    short, volume = stale("pc-i440fx-9.0+pve0", 3)
    data = volume if more is None else short + more
    stream = read_stream(BytesSource(data))
    assert (stream.complete, stream.problems) == (True, ())
    assert stream.trailing is not None
    assert len(short) <= stream.trailing <= len(short) + (1 << 16)
    assert [record.offset for record in stream.sections()] == [short.index(b"\x05timer") - 5]
    (found,) = [one for one in findings(read_machine(stream)) if one.rule == "trailing-data"]
    assert found.severity == "info"
    path = tmp_path / "volume.raw"
    path.write_bytes(data)
    done = command("inspect", path)
    assert done.returncode == 0, done.stderr
    assert b"complete" in done.stdout


@pytest.mark.parametrize(
    ("machine", "padding"),
    [("pc-i440fx-9.0+pve0", 0), ("pc-i440fx-9.0", 512), ("pc-q35-9.2", 1 << 20), ("none", 1)],
)
def test_a_stale_end_is_not_taken_for_this_one(machine: str, padding: int) -> None:
    # The devices of the older stream, with a description, are at the end of the volume,
    # behind RAM that a quick walk would skip.
    short, volume = stale(machine, 130)
    assert len(volume) - len(short) > 4 << 20
    stream = read_stream(BytesSource(volume + bytes(padding)))
    assert stream.trailing == len(short)
    assert all(record.end <= len(short) for record in stream.records)


def test_the_state_of_proxmox_backup_server() -> None:
    state = (5).to_bytes(8, "big") + b"state"
    section = builders.named(builders.RecordType.START, 7, "pbs-state", 0, 1, state)
    data = builders.stream([DEVICE], [builders.zero(0, "pc.ram")])
    at = data.index(builders.named(builders.RecordType.START, 2, "ram", 0, 4, b"", footers=False))
    stream = read_stream(BytesSource(data[:at] + section + data[at:]))
    assert (stream.complete, stream.problems) == (True, ())
    (record,) = [one for one in stream.records if one.name == "pbs-state"]
    assert record.kind is Kind.START
    value = stream.values(record)
    assert value is not None
    assert value.resolve("[0].state.size").value == 5  # type: ignore[union-attr]
    assert value.resolve("[0].state.state").value == b"state"  # type: ignore[union-attr]


@pytest.mark.parametrize("skipped", [0, 4, 15, 16, 70_000, 3 << 20])
@pytest.mark.parametrize("number", [0, 7, 15])
def test_zstd_behind_a_skippable_frame(skipped: int, number: int, tmp_path: Path) -> None:
    data = builders.stream([DEVICE])
    head = (0x184D2A50 + number).to_bytes(4, "little") + skipped.to_bytes(4, "little")
    path = tmp_path / "a.zst"
    path.write_bytes((head + bytes(skipped)) * 2 + zstandard.ZstdCompressor().compress(data))
    with open_source(str(path)) as source:
        assert source.layers == ("zstd",)
        assert source.read_at(0, 1 << 20) == data


def test_many_skippable_frames_are_skipped_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    data = builders.stream([DEVICE])
    for count in (100, 70_000, 200_000):  # the last are more than are looked at
        head = b"\x50\x2a\x4d\x18\0\0\0\0" * count
        path.write_bytes(head + zstandard.ZstdCompressor().compress(data))
        with open_source(str(path)) as source:
            assert source.read_at(0, 1 << 20) == data


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("dump.bin")
        info.size = 20
        archive.addfile(info, io.BytesIO(b"QEVM\0\0\0\3" + bytes(12)))
    return out.getvalue()


ELF = b"\x7fELF\2\1\1" + bytes(9)
NEIGHBOURS = {
    "empty": (b"", "the input is empty"),
    "tls": (bytes.fromhex("16030100c7010000c303034cc62d420d") + bytes(99), "a TLS connection"),
    "tls data": (bytes.fromhex("1703034011") + bytes(range(200)), "a TLS connection"),
    "kdump": (b"KDUMP   " + bytes(500), "a kdump file"),
    "flattened kdump": (b"makedumpfile\0\0\0\0\0\0\0\1" + bytes(500), "a flattened kdump file"),
    "diskdump": (b"DISKDUMP" + bytes(500), "crash"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(99), "lz4 -d"),
    "lz4 behind a skippable frame": (
        b"\x50\x2a\x4d\x18\4\0\0\0skip\x04\x22\x4d\x18" + bytes(99), "lz4 -d",
    ),
    "elf core": (ELF + b"\4\0\x3e\0" + bytes(99), "an ELF core"),
    "elf": (ELF + b"\2\0\x3e\0" + bytes(99), "an ELF file"),
    "xml": (b"<domain type='kvm'>\n  <name>a</name>\n</domain>\n", "XML of libvirt"),
    "xml after a declaration": (b"<?xml version='1.0'?>\n<!-- made by -->\n", "XML of libvirt"),
    "json": (b'{"page_size": 4096, "devices": []}', "--description"),
    "strace": (b"1234  ioctl(12, KVM_RUN, 0) = 0\n" * 20, "svmstream trace"),
    "qemu log": (b"kvm_vcpu_ioctl cpu_index 0, type 0xae80, arg (nil)\n" * 9, "svmstream trace"),
    "tar": (tar(), "a tar archive"),
    "zip": (b"PK\3\4" + bytes(99), "a zip archive"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_what_is_named(name: str, command: Run, tmp_path: Path) -> None:
    data, says = NEIGHBOURS[name]
    path = tmp_path / "input"
    path.write_bytes(data)
    with open_source(str(path)) as source, pytest.raises(StreamError, match=says):
        read_stream(source)
    if name in ("empty", "tls", "tar", "strace"):
        done = command("inspect", path)
        assert (done.returncode, done.stdout) == (3, b"")
        assert says.encode() in done.stderr


@pytest.mark.parametrize("name", ["gzip", "bz2", "lzma", "zstd"])
def test_compressed_neighbours_are_named_too(name: str, tmp_path: Path) -> None:
    pack = {
        "gzip": gzip.compress, "bz2": bz2.compress, "lzma": lzma.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }[name]  # fmt: skip
    path = tmp_path / "input"
    path.write_bytes(pack(tar()))
    with open_source(str(path)) as source, pytest.raises(StreamError, match="a tar archive"):
        read_stream(source)


def test_a_log_of_svmtrace_is_named() -> None:
    log = STREAMS / "qemu10.0-linux6.12-nested-npt.restore.svmtrace.zst"
    with open_source(str(log)) as source, pytest.raises(StreamError, match="svmstream vmruns"):
        read_stream(source)


def test_the_document_names_the_container(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.save"
    path.write_bytes(XL + context("little", XEN_STATE) + bytes(8))
    found = json.loads(command("inspect", "--json", path).stdout)["source"]
    assert (found["container"], found["layers"]) == ("xen", ["xen"])
