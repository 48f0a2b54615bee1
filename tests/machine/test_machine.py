"""vCPUs of real streams, and paths into them."""

from __future__ import annotations

from typing import Any

import pytest

from qemu_svm.errors import PathError
from qemu_svm.findings.inspection import findings
from qemu_svm.machine import Machine, read_machine, type_version
from qemu_svm.machine.paths import find, section_label
from qemu_svm.memory.layout import layout
from qemu_svm.source import BytesSource
from qemu_svm.stream import Value, read_stream
from tests.support.builders import Section, configuration, stream


def test_registers_are_l2s(machine: Machine, capture: dict[str, Any]) -> None:
    (vcpu,) = machine.vcpus
    assert (vcpu.index, vcpu.guest_mode, vcpu.gif, vcpu.smm, vcpu.cpl) == (0, True, True, False, 0)
    for name, text in capture["facts"]["registers"].items():
        assert f"{vcpu.get(name):#x}" == text
    loop = int(capture["facts"]["l2_loop"], 0)
    assert loop <= vcpu.get("rip") <= loop + 0x10
    assert vcpu.get("rcx") > 0  # the counter of L2
    assert vcpu.get("no such register") == 0
    assert vcpu.segments["cs"].attrib == 0xA9B
    assert vcpu.segments["gdt"].limit == 0x17


def test_registers_know_their_bytes(machine: Machine) -> None:
    vcpu = machine.vcpus[0]
    read = machine.stream.source.read_at
    for name, value in vcpu.registers.items():
        raw = int.from_bytes(read(value.offset, value.size), "big")
        assert raw == value.value, name
    # 7.1 of the stream format: rip at 128, efer at 816 of the section's payload.
    start = vcpu.section.offset
    assert vcpu.registers["rip"].offset == start + 128
    assert vcpu.registers["r15"].offset == start + 15 * 8
    assert vcpu.registers["efer"].offset == start + 816
    assert vcpu.segment_values["cs"].offset == start + 236 + 20


@pytest.mark.parametrize(
    ("path", "full"),
    [
        ("header", "header"),
        ("header.version", "header.version"),
        ("configuration", "configuration"),
        ("configuration.machine", "configuration.machine"),
        ("vcpu0", "vcpu0"),
        ("vcpu0.cr3", "vcpu0.registers.cr3"),
        ("vcpu0.registers.cr3", "vcpu0.registers.cr3"),
        ("vcpu0.cs", "vcpu0.segments.cs"),
        ("vcpu0.cs.base", "vcpu0.segments.cs.base"),
        ("vcpu0.nested", "vcpu0.nested"),
        ("vcpu0.nested.control.asid", "vcpu0.nested.control.asid"),
        ("vcpu0.nested.l1_save.cs.attrib", "vcpu0.nested.l1_save.cs.attrib"),
        ("section:apic", "section:apic"),
        ("section:apic.lvt", "section:apic.lvt"),
        ("section:dma[1]", "section:dma[1]"),
        ("section:cpu.env.cr[3]", "section:cpu.env.cr[3]"),
        ("section:0000:00:01.1/ide.bmdma[1].cmd", "section:0000:00:01.1/ide.bmdma[1].cmd"),
    ],
)
def test_paths(machine: Machine, path: str, full: str) -> None:
    found = find(machine, path)
    assert found.path == full
    assert find(machine, full).value == found.value


def test_every_byte_has_a_name(machine: Machine) -> None:
    size = machine.stream.source.size()
    for offset in [*range(60), *range(machine.vcpus[0].section.offset, size - 110_000, 997)]:
        place = find(machine, f"@{offset:#x}")
        assert place.value.offset <= offset < place.value.end
    nested = machine.vcpus[0].nested
    assert nested is not None
    assert find(machine, f"@{nested.vmcb_offset + 0x58}").path == "vcpu0.nested.control.asid"
    assert find(machine, f"@{nested.vmcb_offset + 0x552}").path == "vcpu0.nested.l1_save.cr3"
    assert find(machine, f"@{nested.offset + 2}").path == "vcpu0.nested.format"


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("vcpu0.cr33", "vcpu0.cr3"),
        ("vcpu0.nested.control.asids", "vcpu0.nested.control.asid"),
        ("section:apci", "section:apic"),
        ("section:apic.lvx", "section:apic.lvt"),
        ("nothing at all", ""),
        ("vcpu1", "vcpu0"),
        ("@zzz", ""),
        ("@0xffffffffff", ""),
    ],
)
def test_wrong_paths_tell_what_is_near(machine: Machine, path: str, near: str) -> None:
    with pytest.raises(PathError) as caught:
        find(machine, path)
    assert near == "" or near in caught.value.near


def test_labels(machine: Machine) -> None:
    labels = [section_label(machine, record) for record in machine.stream.sections()]
    assert len(labels) == len(set(labels))
    assert "dma[1]" in labels


def test_sections_without_description_are_shown_raw() -> None:
    data = stream([Section("timer", b"\1\2\3", [])], describe=False)
    found = find(read_machine(read_stream(BytesSource(data))), "section:timer")
    assert (found.value.value, found.value.type) == (b"\1\2\3", "opaque")


def test_a_section_called_cpu_need_not_be_one() -> None:
    fields = [{"name": "x", "type": "uint8", "size": 1}]
    found = read_machine(read_stream(BytesSource(stream([Section("cpu", b"\1", fields)]))))
    assert found.vcpus == ()


def test_a_broken_cpu_is_a_problem(sample: bytes) -> None:
    # The description promises a subsection that is not on the wire any more.
    at = sample.index(b"\x0bcpu/tsc_khz")
    broken = sample[: at + 1] + b"cpu/tsc_xxx" + sample[at + 12 :]
    found = read_machine(read_stream(BytesSource(broken)))
    assert found.vcpus == ()
    assert "tsc_khz" in str(found.problems[0])


def test_older_cpus_have_fewer_registers() -> None:
    fields = [
        {"name": "env.regs", "array_len": 8, "type": "uint32", "size": 4},
        {"name": "env.eip", "type": "uint32", "size": 4},
        {"name": "env.hflags", "type": "uint32", "size": 4},
    ]
    efer = {"name": "env.efer", "type": "uint64", "size": 8}
    sub = [{"vmsd_name": "cpu/efer32", "version": 1, "fields": [efer]}]
    payload = bytes(range(32)) + b"\0\0\xff\xf0" + b"\0\0\0\0"
    payload += b"\x05\x0acpu/efer32\0\0\0\1" + (0x1000).to_bytes(8, "big")
    data = stream([Section("cpu", payload, fields, sub)])
    (vcpu,) = read_machine(read_stream(BytesSource(data))).vcpus
    assert isinstance(vcpu.registers["rsp"], Value)
    assert vcpu.get("rsp") == 0x10111213
    assert vcpu.get("efer") == 0x1000
    assert "r8" not in vcpu.registers
    assert (vcpu.cpl, vcpu.guest_mode) == (0, False)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("pc-i440fx-7.2", (7, 2)),
        ("pc-q35-10.0", (10, 0)),
        ("virt", None),
        ("pc-7.2-custom", None),
        (None, None),
        (f"pc-{'9' * 5000}.1", None),
    ],
)
def test_the_version_of_a_machine_type(name: str | None, version: tuple[int, int] | None) -> None:
    assert type_version(name) == version


def test_a_version_of_any_length_is_only_a_name() -> None:
    data = stream(blocks={"pc.ram": 4 << 30}, config=configuration(f"pc-i440fx-{'9' * 5000}.1"))
    machine = read_machine(read_stream(BytesSource(data)))
    assert findings(machine) is not None
    assert layout(machine) is not None
