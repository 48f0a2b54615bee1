"""Messages of QEMU 5.2 to 11.1, one by one, beside a stream."""

from __future__ import annotations

import pytest

from qemu_svm.findings.qemu_functions import function_of
from qemu_svm.findings.refusal import explain_refusal
from qemu_svm.findings.refusal_messages import MEANINGS, compiled, meanings_of
from qemu_svm.machine import Machine, read_machine
from qemu_svm.rules import Finding
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS

BLK = "error while loading state for instance 0x0 of device '0000:00:02.0/virtio-blk'"


@pytest.fixture(scope="module")
def driven() -> Machine:
    """A stream of a machine with virtio devices that Linux drives."""
    path = STREAMS / "virtio/qemu7.2-pci.mig.zst"
    return read_machine(read_stream(open_source(str(path))))


def explained(machine: Machine, *lines: str) -> dict[str, Finding]:
    return {one.rule.removeprefix("refused-"): one for one in explain_refusal(machine, list(lines))}


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("Size mismatch: 0000:00:04.0/virtio-net-pci.rom: 0x10000 != 0x20000", "ram-size"),
        ("Length mismatch: pc.ram: 0x1000000 in != 0x2000000: Invalid argument", "ram-size"),
        ("Failed to load PCIDevice:config", "pci-config"),
        ("get_pci_config_device: Bad config data: i=0x34 read: 98 device: 84", "pci-config"),
        ("Features 0x130afffa7 unsupported. Allowed features: 0x179bfffe7", "virtio-features"),
        ("VQ 0 vring.num 0x0 invalid", "virtio-queue"),
        ("VQ 1 size 0x80 < last_avail_idx 0x0 - used_idx 0x45", "virtio-queue"),
        ("VQ 1 vring.num 128 exceeds allocated max 0", "virtio-queue"),
        ("VQ 0 address 0x0 inconsistent with Host index 0x1", "virtio-queue"),
        ("Configuration section missing", "configuration"),
        ("Configuration section missing, 1 != 7", "configuration"),
        ("Unknown combination of migration flags: 0x400", "ram-flags"),
        ("Expected vmdescription section, but got 0", "vmdesc"),
        ("Failed to load element of type pci config for config: -22", "element"),
        ("Failed to load element of type pci config for config", "element"),
        ("check_section_footer: Read section footer failed: -5", "footer"),
        ("Mismatched section id in footer for ram - read 0x3 expected 0x2", "footer"),
        ("Missing section footer for 0000:00:02.0/virtio-blk", "footer"),
        ("error: failed to set MSR 0xc0000080 to 0x1d01", "msr"),
        ("TSC frequency mismatch between VM (2994375 kHz) and host (2394375 kHz), and", "tsc"),
        ("Mismatch between user-specified TSC frequency and migrated TSC frequency", "tsc"),
        ("VM subsection 'cpu/pdptrs' in 'cpu' does not exist", "subsection"),
        ("post load hook failed for: virtio-net, version_id: 11, minimum_version: 11, ret: -22",
         "hook"),
        ("Input validation failed: fifo8_num/fifo", "validation"),
        ("inconsistent migration stream (cq->cqid != i)", "validation"),
        ("Migration mapped-ram header has invalid page_size 65536 (expected 4096)", "mapped-ram"),
        ("inflight buffer subsection has not been loaded", "vhost"),
        ("Received nested state when kernel cannot restore it", "nested"),
        ("vmstate_load_state: Assertion `first_elem || !n_elems || !size' failed.", "no-svm"),
        ("Failed to set special registers", "put-registers"),
        ("does not accept value 'S2Ebad!'", "run-state"),
        ("Property 'memaddr' changed from 0x100000000 to 0x140000000", "virtio-mem"),
        ("virtio-net: saved image requires vnet_hdr=on", "virtio-net"),
        ("Received TARGET_PAGE_BITS is 12 but local is 14", "page-bits"),
        ("UUID received is 1 and local is 2", "uuid"),
        ("multifd: received packet magic 1 expected 11223344", "multifd"),
        ("CMD_POSTCOPY_ADVISE in wrong postcopy state (1)", "postcopy"),
        ("virtio: bogus descriptor or out of resources", "virtio-rings"),
    ],
)  # fmt: skip
def test_messages_of_one_line(line: str, rule: str, driven: Machine) -> None:
    found = explained(driven, f"qemu-system-x86_64: {line}")
    assert rule in found
    assert found[rule].do
    assert found[rule].message.endswith(found[rule].do)


def test_a_byte_of_pci_configuration(driven: Machine) -> None:
    line = "get_pci_config_device: Bad config data: i=0x34 read: 98 device: 84 cmask: ff"
    found = explained(driven, line, "Failed to load PCIDevice:config", BLK)["pci-config"]
    assert "virtio-blk.virtio.pci.config (capabilities) is 0x98 in the stream" in found.message
    assert "0x84 in this QEMU's device: one side has a capability" in found.message
    assert found.offset is not None
    assert driven.stream.source.read_at(found.offset, 1) == b"\x98"


def test_features_by_name(driven: Machine) -> None:
    line = "Features 0x130006e54 unsupported. Allowed features: 0x179000654"
    found = explained(driven, line, BLK)["virtio-features"]
    assert "does not offer CONFIG_WCE, DISCARD, WRITE_ZEROES" in found.message


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("VQ 0 vring.num 256 exceeds allocated max 128",
         ["virtio-blk.virtio.queues[0] has 256 entries", "this QEMU's device has at most 128"]),
        ("VQ 3 vring.num 999 exceeds allocated max 128", []),
        ("get_pci_config_device: Bad config data: i=0x8 read: 3 device: 2",
         ["piix4_pm.", "(revision) is 0x03 in the stream, 0x02 in"]),
        ("Failed to load element of type uint8 for halted: -22", []),
        ("Failed to load element of type uint32 for halted: -22", ["section:cpu_common", "halted"]),
        ("post load hook failed for: cpu_common, version_id: 1", ["section:cpu_common"]),
    ],
)  # fmt: skip
def test_without_the_section_it_is_looked_for(line: str, says: list[str], driven: Machine) -> None:
    # The line that names the section was not given.
    found = explain_refusal(driven, [line])
    if not says:
        assert [one.path for one in found] == [""]
    for word in says:
        assert any(word in one.message for one in found), (word, found)


def test_several_messages_in_one_line(driven: Machine) -> None:
    # As 10.2 and later print them.
    line = (
        "load of migration failed: Invalid argument: "
        f"{BLK}: Failed to load element of type virtio for virtio: -22: "
        "VM subsection 'virtio/started' in 'virtio' does not exist"
    )
    found = explained(driven, line)
    assert list(found) == ["section", "element", "subsection"]
    assert "virtio.virtio/started is " in found["subsection"].message


def test_an_msr_that_is_a_register() -> None:
    path = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"
    machine = read_machine(read_stream(open_source(str(path))))
    efer = machine.vcpus[0].get("efer")
    found = explained(machine, f"error: failed to set MSR 0xc0000080 to {efer:#x}")["msr"]
    assert found.path == "vcpu0.efer"
    assert found.offset == machine.vcpus[0].registers["efer"].offset


def test_messages_that_are_only_named(driven: Machine) -> None:
    found = explained(driven, "postcopy_place_page: copy host: 0x7f00 from: 0x7f10 (size: 4096)")
    assert found  # known by a word of postcopy
    line = "POLLERR on poll 0 fd=3"
    assert function_of(line) == "postcopy_ram_fault_thread"
    assert "postcopy_ram_fault_thread()" in explained(driven, line)["unknown"].message
    assert explained(driven, "something else") == {}


def test_the_table() -> None:
    for meaning in MEANINGS:
        assert compiled(meaning).groups >= 0
        assert meaning.means
        assert meaning.do
    assert meanings_of("") == []
