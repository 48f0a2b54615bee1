"""What real QEMUs print when they refuse a stream, and what is said of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from qemu_svm.findings.refusal import explain_refusal
from qemu_svm.machine import Machine, read_machine
from qemu_svm.machine.sections import virtio_device
from qemu_svm.rules import Finding
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.support.real import Monitor, command

pytestmark = pytest.mark.qemu

DEVICES = {
    "blk": "virtio-blk-pci,drive=d,addr=4",
    "serial": "virtio-serial-pci,addr=5,max_ports=40",
    "net": "virtio-net-pci,netdev=n,addr=6",
    "e1000": "e1000,netdev=m,addr=7",
    "balloon": "virtio-balloon-pci,addr=8",
}


@dataclass
class Source:
    """A stream of a VM whose firmware has driven its virtio disk."""

    path: Path
    folder: Path
    machine: Machine


def arguments(
    folder: Path,
    changes: Mapping[str, str | None] | None = None,
    *,
    machine: str = "pc",
    memory: str = "16",
) -> list[str]:
    """The VM; ``changes`` are properties to add to a device, or None to leave it out."""
    changes = changes or {}
    chosen = [
        one + (f",{changes[name]}" if changes.get(name) else "")
        for name, one in DEVICES.items()
        if changes.get(name, "") is not None
    ]
    return [
        *command("7.2"), "-M", machine, "-m", memory, "-accel", "tcg", "-nodefaults",
        "-display", "none", "-drive", f"if=none,id=d,file={folder}/disk,format=raw,snapshot=on",
        "-netdev", "user,id=n", "-netdev", "user,id=m",
        *(part for one in chosen for part in ("-device", one)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("source")
    (folder / "disk").write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))
    path = folder / "stream"
    process = subprocess.Popen(
        [*arguments(folder), "-qmp", f"unix:{folder}/qmp,server=on,wait=off"],
        stdin=subprocess.DEVNULL,
    )
    try:
        monitor = Monitor(folder / "qmp")
        disk = next(d for d in monitor.run("x-query-virtio") if d["name"] == "virtio-blk")
        for _ in range(200):
            status = monitor.run("x-query-virtio-status", path=disk["path"])
            if "DRIVER_OK" in str(status["status"]):
                break
            subprocess.run(["sleep", "0.2"], check=True)
        monitor.run("stop")
        monitor.run("migrate", uri=f"exec:cat > {path}")
        while monitor.run("query-migrate").get("status") != "completed":
            pass
    finally:
        process.kill()
        process.wait()
    return Source(path, folder, read_machine(read_stream(open_source(str(path)))))


def refused(
    source: Source, vm: Sequence[str], change: Callable[[bytearray], object] | None = None
) -> tuple[str, list[Finding]]:
    """What QEMU prints of the stream, and what is said of that."""
    data = bytearray(source.path.read_bytes())
    path = source.folder / "changed"
    if change is not None:
        change(data)
    path.write_bytes(data)
    done = subprocess.run(
        [*vm, "-incoming", f"exec:cat {path}"], capture_output=True, timeout=60, check=False
    )
    words = done.stderr.decode()
    machine = read_machine(read_stream(open_source(str(path))))
    return words, explain_refusal(machine, words.splitlines())


def rules(found: list[Finding]) -> list[str]:
    return [one.rule.removeprefix("refused-") for one in found]


@pytest.mark.parametrize(
    ("changes", "message", "rule", "said"),
    [
        ({"blk": "vectors=0"}, "Bad config data: i=0x34", "pci-config",
         "byte 0x34 of section:0000:00:04.0/virtio-blk.virtio.pci.config (capabilities) is 0x98"),
        ({"blk": "vectors=5"}, "Bad config data", "pci-config", "(msix.control)"),
        ({"e1000": "mac=52:54:00:12:34:57,multifunction=on"}, "Bad config data: i=0xe",
         "pci-config", "section:0000:00:07.0/e1000"),
        ({"blk": "seg-max-adjust=off,disable-modern=on"}, "Bad config data", "pci-config",
         "in this QEMU's device"),
        ({"serial": "max_ports=4"}, "Missing section footer", "footer",
         "virtio.device.ports_map (max_ports=)"),
        ({"blk": None}, "Unknown savevm section", "section-unknown", "virtio-blk"),
        ({"net": "romfile="}, "Unknown ramblock", "ram-unknown",
         "block '0000:00:06.0/virtio-net-pci.rom' has"),
        ({"net": "romsize=1048576"}, "Size mismatch: 0000:00:06.0", "ram-size",
         "option ROM"),
        ({"memory": "32"}, "Size mismatch: pc.ram", "ram-size", "0x2000000 in this QEMU"),
        ({"machine": "q35"}, "Machine type received", "machine", "pc-i440fx-7.2"),
    ],
)  # fmt: skip
def test_another_vm(
    changes: dict[str, str | None], message: str, rule: str, said: str, source: Source
) -> None:
    machine, memory = changes.get("machine") or "pc", changes.get("memory") or "16"
    vm = arguments(source.folder, changes, machine=machine, memory=memory)
    words, found = refused(source, vm)
    assert message in words
    assert rule in rules(found), (words, found)
    assert any(said in one.message for one in found), (words, found)


def field(source: Source, inner: str) -> tuple[int, int]:
    record = next(
        r for r in source.machine.stream.sections() if (r.name or "").endswith("virtio-blk")
    )
    device = virtio_device(source.machine, record)
    assert device is not None
    value = device.tree.resolve(inner)
    assert value is not None
    return value.offset, value.size


@pytest.mark.parametrize(
    ("inner", "value", "message", "rule", "said"),
    [
        ("virtio/64bit_features.guest_features", 1 << 32 | 1 << 13 | 1 << 50,
         "unsupported. Allowed features", "virtio-features", "does not offer bit 50"),
        # The next index stands after the address.
        ("queues[0].desc", bytes(9) + b"\1", "address 0x0", "virtio-queue", "descriptors at 0x0"),
        ("queue_count", 5000, "Invalid number of virtqueues", "virtio-queue", ""),
        ("pci.config.revision", 0x77, "Bad config data: i=0x8", "pci-config", "(revision)"),
        ("pci.irq_state", 7, "must be 0 or 1", "irq", "virtio-blk"),
        ("virtio/started.version_id", 9, "error while loading", "section", "virtio-blk"),
    ],
)  # fmt: skip
def test_another_value(
    inner: str, value: int | bytes, message: str, rule: str, said: str, source: Source
) -> None:
    offset, size = field(source, inner)

    def change(data: bytearray) -> None:
        new = value if isinstance(value, bytes) else value.to_bytes(size, "big")
        data[offset : offset + len(new)] = new

    words, found = refused(source, arguments(source.folder), change)
    assert message in words
    assert rule in rules(found), (words, found)
    assert any(said in one.message for one in found), (words, found)
    assert all(one.offset is not None for one in found if one.rule.endswith("-config"))


def test_without_what_old_machines_lack(source: Source) -> None:
    no_configuration = ["-global", "migration.send-configuration=off"]
    words, found = refused(source, [*arguments(source.folder), *no_configuration])
    assert "Unknown savevm section type" in words
    assert "record" in rules(found)
    footers = ["-global", "migration.send-section-footer=off"]
    words, found = refused(source, [*arguments(source.folder), *footers])
    assert found, words


def test_a_stream_without_a_configuration_record(source: Source) -> None:
    def change(data: bytearray) -> None:
        size = int.from_bytes(data[9:13], "big")
        del data[8 : 13 + size]

    words, found = refused(source, arguments(source.folder), change)
    assert "Configuration section missing" in words
    assert rules(found)[0] == "configuration"
    assert "the stream has no configuration record" in found[0].message


def test_ram_records_that_qemu_does_not_know(source: Source) -> None:
    part = next(r for r in source.machine.stream.records if r.kind.value == "part")

    def change(data: bytearray) -> None:
        data[part.payload + 6 : part.payload + 8] = b"\x04\x00"

    words, found = refused(source, arguments(source.folder), change)
    assert "Unknown combination of migration flags" in words
    assert "ram-flags" in rules(found)
