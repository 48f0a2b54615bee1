"""Virtio devices decoded from streams, against QEMU, Linux and what was made by hand."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import LabError
from qemu_svm.findings.diff import compare
from qemu_svm.machine import Machine, pci, read_machine
from qemu_svm.machine.paths import find
from qemu_svm.machine.sections import section_values, virtio_device
from qemu_svm.machine.virtio import features
from qemu_svm.machine.virtio.decode import decode_field
from qemu_svm.machine.virtio.device import Driver, VirtioDevice
from qemu_svm.render.words import bit_names
from qemu_svm.source import open_source
from qemu_svm.source.plain import BytesSource
from qemu_svm.stream import Value, read_stream
from tests.conftest import STREAMS, Run
from tests.support import builders
from tests.support import virtio as said
from tests.support.real import Monitor, command

TRUTHS = sorted((STREAMS / "virtio").glob("*.truth.json"))
PMEM = "f41a5b10"  # virtio-pmem has no section: its state is in RAM
INTERRUPT = 1 << 3  # of the PCI status register: not migrated


def load(name: str) -> Machine:
    return read_machine(read_stream(open_source(str(STREAMS / "virtio" / f"{name}.mig.zst"))))


@pytest.fixture(params=TRUTHS, ids=lambda path: path.name.removesuffix(".truth.json"))
def recorded(request: pytest.FixtureRequest) -> tuple[Machine, dict[str, Any]]:
    """A stream of a machine whose devices Linux drives, and what was said of it."""
    path: Path = request.param
    return load(path.name.removesuffix(".truth.json")), json.loads(path.read_text())


def test_devices_are_as_qemu_says(recorded: tuple[Machine, dict[str, Any]]) -> None:
    machine, truth = recorded
    ours = sorted(map(said.of_stream, said.devices_in(machine)), key=said.order)
    theirs = [said.of_qemu(one) for one in truth["devices"] if one["name"] != "virtio-pmem"]
    assert ours == sorted(theirs, key=said.order)


def test_features_and_pci_are_as_linux_says(recorded: tuple[Machine, dict[str, Any]]) -> None:
    machine, truth = recorded
    if not truth["guest"]:
        pytest.skip("driven by firmware, which does not say")
    devices = said.devices_in(machine)
    # In streams PCI devices may be in another order than in sysfs.
    theirs = [one for one in truth["guest"] if not one["config"].startswith(PMEM)]
    ours = sorted((hex(one.features), f"{one.status:#010x}") for one in devices)
    assert ours == sorted((one["features"], one["status"]) for one in theirs)
    spaces = sorted(map(space_of, devices))
    assert spaces == sorted(without_interrupt(one["config"]) for one in theirs)


def space_of(device: VirtioDevice) -> str:
    space = device.pci
    data = device.tree.value
    if space is None or not isinstance(data, bytes):
        return ""
    start = space.offset - device.tree.offset
    return without_interrupt(data[start : start + space.size].hex())


def without_interrupt(config: str) -> str:
    data = bytearray.fromhex(config)
    if data:
        data[6] &= ~INTERRUPT
    return data.hex()


def test_every_byte_is_in_one_value(recorded: tuple[Machine, dict[str, Any]]) -> None:
    for device in said.devices_in(recorded[0]):
        partitioned(device.tree)


def partitioned(value: Value) -> None:
    if not value.children:
        return
    at = value.offset
    if value.type == "subsection":  # after its own header
        at = value.children[0].offset
        assert at == value.offset + 2 + len(value.name)
    for child in value.children:
        assert child.offset == at, child.name
        at = child.end
        partitioned(child)
    assert at == value.end, value.name


def test_the_field_keeps_its_bytes(recorded: tuple[Machine, dict[str, Any]]) -> None:
    machine = recorded[0]
    for record in machine.stream.sections():
        plain = machine.stream.values(record)
        values = section_values(machine, record)
        if plain is None or values is None or plain == values:
            continue
        assert [child._replace(children=()) for child in values.children] == list(plain.children)


# A QEMU that is asked now.

DEVICES = (
    ("virtio-blk-pci,drive=d", "virtio-scsi-pci", "virtio-net-pci,mq=on,rss=on,hash=on")
    + ("virtio-serial-pci,max_ports=40", "virtconsole,chardev=c", "virtserialport,name=x")
    + ("virtio-balloon-pci,iothread=io,free-page-hint=on,free-page-reporting=on",)
    + ("virtio-rng-pci", "virtio-keyboard-pci", "virtio-tablet-pci", "virtio-mouse-pci")
    + ("virtio-gpu-pci,edid=on", "virtio-blk-pci,drive=e,disable-legacy=on,packed=on")
    + ("virtio-mem-pci,memdev=plug,requested-size=32M", "virtio-9p-pci,fsdev=f,mount_tag=t")
)
OTHERS = {
    "q35": ("pcie-root-port,id=p,chassis=1", "virtio-net-pci,bus=p", "virtio-iommu-pci,addr=9"),
    "microvm": ("virtio-blk-device,drive=d", "virtio-net-device", "virtio-serial-device"),
}


@contextmanager
def running(version: str, machine: str, folder: Path) -> Iterator[Monitor]:
    """A VM that its firmware has driven."""
    try:
        qemu = command(version)
    except LabError as error:
        pytest.skip(f"no QEMU {version}: {error}")
    image = folder / "disk"
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))
    drives = [f"if=none,id={name},file={image},format=raw,snapshot=on" for name in "de"]
    objects = ("memory-backend-ram,id=plug,size=64M", "iothread,id=io")
    process = subprocess.Popen(
        [*qemu, "-M", machine, "-m", "64,maxmem=256M", "-accel", "tcg", "-display", "none"]
        + ["-nodefaults", "-chardev", "null,id=c"]
        + ["-fsdev", f"local,id=f,path={folder},security_model=none"]
        + ["-global", "virtio-mmio.force-legacy=off"] * (machine == "microvm")
        + [part for drive in drives for part in ("-drive", drive)]
        + [part for one in objects for part in ("-object", one)]
        + [part for one in OTHERS.get(machine, DEVICES) for part in ("-device", one)]
        + ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"],
        stdin=subprocess.DEVNULL,
    )
    try:
        yield Monitor(folder / "qmp")
    finally:
        process.kill()
        process.wait()


@pytest.mark.qemu
@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("machine", ["pc", "q35", "microvm"])
def test_devices_of_a_live_qemu(version: str, machine: str, tmp_path: Path) -> None:
    with running(version, machine, tmp_path) as monitor:
        # microvm's firmware may not drive a disk on virtio-mmio.
        end = time.monotonic() + (5 if machine == "microvm" else 60)
        while time.monotonic() < end:  # until the firmware has found its disk
            devices = asked(monitor)
            if any("DRIVER_OK" in str(one["status"]["status"]) for one in devices):
                break
            time.sleep(0.5)
        monitor.run("stop")
        devices = asked(monitor)
        listed = monitor.run("human-monitor-command", **{"command-line": "info qtree"})
        stream = tmp_path / "stream"
        monitor.run("migrate", uri=f"exec:cat > {stream}")
        while monitor.run("query-migrate").get("status") not in ("completed", "failed"):
            time.sleep(0.1)
    ours = said.devices_in(read_machine(read_stream(open_source(str(stream)))))
    assert len(ours) == len(devices)
    pairs = zip(
        sorted(map(said.of_stream, ours), key=said.order),
        sorted(map(said.of_qemu, devices), key=said.order),
        strict=True,
    )
    for mine, theirs in pairs:
        assert mine == theirs
    on_pci = sorted(filter(None, map(configured, ours)))
    assert on_pci == listed_in(listed)
    assert bool(on_pci) is (machine != "microvm")


Configured = tuple[tuple[int, int, int, int], tuple[tuple[int, str, int], ...]]
NOT_MAPPED = (1 << 64) - 1


def listed_in(qtree: str) -> list[Configured]:
    """Identity and BARs of each virtio-pci device in ``info qtree``."""
    found = []
    for device in qtree.split("dev: ")[1:]:
        head = re.search(r"pci id (\w+):(\w+) \(sub (\w+):(\w+)\)", device)
        if re.match(r"virtio-\S+-pci", device) and head is not None:
            bars = re.findall(r"bar ([0-5]): (i/o|mem) at (0x[0-9a-f]+)", device)
            identity = tuple(int(word, 16) for word in head.groups())
            found.append((identity, tuple((int(n), kind, int(at, 16)) for n, kind, at in bars)))
    return sorted(found)  # type: ignore[arg-type]


def configured(device: VirtioDevice) -> Configured | None:
    """The same of a device of a stream; None if it is not on PCI."""
    config = device.tree.resolve("pci.config")
    if config is None:
        return None
    number = config.number
    identity = ("vendor_id", "device_id", "subsystem_vendor_id", "subsystem_id")
    bar = config.child("bar")
    assert bar is not None
    words = bar.value
    assert isinstance(words, tuple)
    bars, at = [], 0
    while at < len(words):
        word = int(words[at])
        wide = word & 7 == 4
        if word & 1:
            kind, place, on = "i/o", word & ~3, number("command") & 1
        else:
            high = int(words[at + 1]) << 32 if wide else 0
            kind, place, on = "mem", (word & ~15) | high, number("command") & 2
        if word:
            bars.append((at, kind, place if on else NOT_MAPPED))
        at += 2 if wide else 1
    return tuple(number(name) for name in identity), tuple(bars)  # type: ignore[return-value]


def asked(monitor: Monitor) -> list[dict[str, Any]]:
    found = []
    for device in monitor.run("x-query-virtio"):
        path = device["path"]
        status = monitor.run("x-query-virtio-status", path=path)
        queues = [
            monitor.run("x-query-virtio-queue-status", path=path, queue=queue)
            for queue in range(status["num-vqs"])
        ]
        found.append({"status": status, "queues": queues})
    return found


# By hand.


def test_names_of_features() -> None:
    net = {feature.name: feature for feature in features.features("net")}
    assert (net["MRG_RXBUF"].bit, net["MRG_RXBUF"].since) == (15, "1.0")
    assert (net["RING_PACKED"].bit, net["RING_PACKED"].since) == (34, "1.1")
    for device in {*features.DEVICE_IDS.values(), features.STATUS}:
        bits = [feature.bit for feature in features.features(device)]
        assert len(bits) == len(set(bits)), device
    assert features.feature_bits("blk").names(1 << 4 | 1 << 25) == ["GEOMETRY", "bit 25"]


@pytest.mark.parametrize("name", ["virtio-net", "virtio-blk", "virtio-console", "virtio-unheard"])
def test_what_is_not_understood_stays_bytes(name: str) -> None:
    for data in (
        b"",
        b"\0",
        bytes(300),
        bytes(range(256)) * 200,
        b"\0\0\0\2\xf4\x1a" + bytes(5000),
    ):
        assert decode_field(Value("virtio", "virtio", 0, len(data), data), name) is None
    section = builders.Section(
        f"0000:00:01.0/{name}", bytes(9), [{"name": "virtio", "type": "virtio", "size": 9}]
    )
    machine = read_machine(read_stream(BytesSource(builders.stream([section]))))
    record = next(machine.stream.sections())
    assert virtio_device(machine, record) is None
    assert find(machine, f"section:0000:00:01.0/{name}.virtio").value.value == bytes(9)


def test_truncated_and_altered_state() -> None:
    # Never an error, and never a tree that does not cover the bytes.
    machine = load("qemu7.2-legacy")
    for device in said.devices_in(machine):
        data = device.tree.value
        assert isinstance(data, bytes)
        for at in range(len(data)):
            for wrong in (data[:at], data[:at] + b"\xff" + data[at + 1 :]):
                found = decode_field(
                    Value("virtio", "virtio", 0, len(wrong), wrong), f"virtio-{device.type}"
                )
                if found is not None:
                    partitioned(found)


def test_a_section_that_nothing_describes() -> None:
    machine = load("qemu7.2-packed")
    record = next(r for r in machine.stream.sections() if (r.name or "").endswith("virtio-blk"))
    data = machine.stream.source.read_at(record.payload, record.payload_size)
    section = builders.Section("0000:00:04.0/virtio-blk", data, [])
    stream = read_stream(BytesSource(builders.stream([section], describe=False)))
    (one,) = stream.sections()
    found = virtio_device(read_machine(stream), one)
    assert found is not None
    assert (found.type, found.driver) == ("blk", Driver.MODERN)


def test_names_of_pci_registers() -> None:
    machine = load("qemu7.2-packed")
    device = next(one for one in said.devices_in(machine) if one.type == "net")
    space = bytes.fromhex(space_of(device))
    assert pci.register_at(space, 0x34) == "capabilities"
    assert pci.register_at(space, 0x3D) == "interrupt_pin"
    assert pci.register_at(space, pci.capabilities(space)[pci.MSIX] + 2) == "msix.control"
    assert pci.register_at(space, 5000) == ""


def test_a_chain_of_capabilities_that_leads_back() -> None:
    space = bytearray(256)
    space[0x34], space[0x41], space[0x51] = 0x40, 0x50, 0x40
    found = pci.config_space(bytes(space), 0)
    assert sum(value.size for value in found) == 256


def test_diff_names_what_differs() -> None:
    source = open_source(str(STREAMS / "virtio/qemu7.2-packed.mig.zst"))
    data = bytearray(source.read_at(0, source.size()))
    before = read_machine(read_stream(BytesSource(bytes(data))))
    device = next(one for one in said.devices_in(before) if one.type == "blk")
    bits = device.tree.resolve("virtio/64bit_features.guest_features")
    assert bits is not None
    data[bits.offset : bits.end] = (int(bits) ^ 1 << 13).to_bytes(8, "big")
    after = read_machine(read_stream(BytesSource(bytes(data))))
    (found,) = compare(before, after).counting
    path = "section:0000:00:01.0:00.0/virtio-blk.virtio.virtio/64bit_features.guest_features"
    assert found.path == path
    assert found.b is not None
    assert bit_names(path, bits) != bit_names(path, found.b)
    assert "DISCARD" in (bit_names(path, bits) or ())
    assert "DISCARD" not in (bit_names(path, found.b) or ())


def test_show(command: Run) -> None:
    path = STREAMS / "virtio/qemu7.2-packed.mig.zst"
    name = "section:0000:00:02.0:00.0/virtio-net"
    text = command("show", path, name).stdout.decode()
    assert "virtio-net (PCI), a driver of virtio 1" in text
    assert "RING_PACKED" in text
    document = json.loads(command("show", path, name, "--json").stdout)
    assert document["virtio"]["type"] == "net"
    names = {one["name"]: one["since"] for one in document["virtio"]["features"]["names"]}
    assert names["RING_PACKED"] == "1.1"
    (field,) = document["children"]
    assert len(field["value"]) == 2 * field["size"]
    assert field["children"][0]["name"] == "pci"
