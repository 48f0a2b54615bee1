"""Text and JSON: the contract, the escapes, the widths."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.findings.inspection import Inspection, findings
from qemu_svm.findings.results import Shown
from qemu_svm.machine import Machine, read_machine
from qemu_svm.machine.paths import Node, find
from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words
from qemu_svm.render.text import inspect as inspect_text
from qemu_svm.render.text import show as show_text
from qemu_svm.render.text.base import columns, finding_lines
from qemu_svm.render.text.values import hexdump
from qemu_svm.rules import Finding, Severity
from qemu_svm.source import BytesSource
from qemu_svm.stream import Value, Walk, read_stream
from tests.support import builders
from tests.support.builders import Section


def plain(lines: Any) -> str:
    return "\n".join(line.plain for line in lines)


def report(machine: Machine, *, ram: bool = False, verbose: bool = False) -> str:
    result = Inspection(machine, tuple(findings(machine)), ram)
    return plain(inspect_text.render(result, verbose=verbose))


def test_json_contract(machine: Machine, capture: dict[str, Any]) -> None:
    made = json.loads(json.dumps(Inspection(machine, tuple(findings(machine))).to_json()))
    facts = capture["facts"]
    assert made["schema_version"] == 1
    source = made["source"]
    assert source["size"] == capture["size"]
    assert (source["container"], source["compression"]) == ("plain", "zstd")
    assert source["stream_offset"] == 0
    stream = made["stream"]
    assert (stream["version"], stream["complete"], stream["page_size"]) == (3, True, 4096)
    assert (stream["capabilities"], stream["description"]) == ([], "embedded")
    assert stream["machine"] == capture["provenance"]["machine"]
    for section in made["sections"]:
        assert {"offset", "size", "type", "section_id", "name", "instance_id", "version_id"} <= set(
            section
        )
    assert [s["type"] for s in made["sections"] if s["name"] == "cpu"] == ["full"]
    assert made["ram"] is None
    assert made["problems"] == []
    (vcpu,) = made["vcpus"]
    assert (vcpu["index"], vcpu["guest_mode"], vcpu["gif"]) == (0, True, True)
    for name in ("rip", "rsp", "rflags", "cr0", "cr2", "cr3", "cr4", "efer", "dr7", "r15"):
        assert vcpu["registers"][name].startswith("0x")
    for name, value in facts["registers"].items():
        assert vcpu["registers"][name] == value
    nested = vcpu["nested"]
    assert nested["format"] == "svm"
    assert nested["flags"] == {"value": "0x101", "names": ["guest_mode", "gif_set"]}
    assert (nested["size"], nested["vmcb_pa"]) == (4224, "0x108000")
    assert nested["offset"] == facts["nested_offset"]
    for name, value in facts["control"].items():
        assert nested["control"][name] == value, name
    for name, value in facts["l1_save"].items():
        assert nested["l1_save"][name] == value, name
    assert nested["l1_save"]["cs"]["attrib"] == "0xa9b"
    assert nested["l1_save"]["cpl"] == 0
    assert "fs" in nested["l1_save"]["not_l1_state"]
    assert "cr3" not in nested["l1_save"]["not_l1_state"]


def test_json_with_ram(machine: Machine) -> None:
    stream = read_stream(machine.stream.source, walk=Walk.RAM)
    made = Inspection(read_machine(stream), (), ram=True).to_json()
    assert made["ram"]["blocks"][0] == {"name": "pc.ram", "size": 32 << 20}
    pages = made["ram"]["pages"]
    assert set(pages) == {"normal", "zero", "xbzrle", "compressed"}
    assert pages["normal"] + pages["zero"] >= 8192


def test_report_makes_the_chimera_plain(machine: Machine, capture: dict[str, Any]) -> None:
    text = report(machine)
    assert "L2 (vCPU registers)" in text
    assert "L1 (save area of the nested state)" in text
    assert "What L1 requests for L2 (control area)" in text
    line = next(line for line in text.splitlines() if line.strip().startswith("cr3"))
    assert line.split() == ["cr3", "0x104000", "0x101000"]
    assert "0x1500 [LME LMA SVME]" in text
    assert "CPUID VMRUN" in text
    assert "No problems found." in text
    assert capture["provenance"]["machine"] in text


def test_report_fits_eighty_columns(machine: Machine) -> None:
    lines = report(machine, ram=True, verbose=True).splitlines()[1:]
    assert max(map(len, lines)) <= 80


def test_show_of_the_whole_machine(machine: Machine) -> None:
    for path in ("vcpu0", "vcpu0.nested", "section:apic", "vcpu0.nested.control.int_ctl"):
        place = find(machine, path)
        raw = machine.stream.source.read_at(place.value.offset, place.value.size)
        text = plain(show_text.render(Shown(place, raw), verbose=False))
        assert f"{place.value.offset:#x}" in text
        made = Shown(place, raw).to_json()
        assert bytes.fromhex(made["raw"]) == raw
        assert made["offset"] == place.value.offset


def test_show_says_what_bits_mean(machine: Machine) -> None:
    def text(path: str) -> str:
        place = find(machine, path)
        return plain(show_text.render(Shown(place, b""), verbose=False))

    assert "[LME LMA SVME]" in text("vcpu0.efer")
    assert "[CPUID VMRUN]" in text("vcpu0.nested.control.intercepts")
    assert "0x72 CPUID" in text("vcpu0.nested.control.exit_code")
    assert "code64" in text("vcpu0.nested.l1_save.cs")
    assert "code64" in text("vcpu0.cs")
    assert "GUEST" in text("section:cpu.env.hflags")
    assert "L1's page tables" in text("vcpu0.nested.l1_save")
    assert "hidden" in text("vcpu0.nested.control")


def test_json_of_show_names_bits(machine: Machine) -> None:
    made = Shown(find(machine, "vcpu0.nested.control.intercepts"), b"").to_json()
    assert made["names"] == ["CPUID", "VMRUN"]
    assert made["value"] == ["0x0", "0x0", "0x0", "0x40000", "0x1", "0x0"]
    assert made["description"] == "what L1 intercepts"
    kinds = [
        (Value("x", "int32", 0, 4, -1), "-0x1"),
        (Value("x", "bool", 0, 1, True), True),
        (Value("x", "buffer", 0, 1, b"\1"), "01"),
        (Value("x", "capability", 0, 1, "a"), "a"),
    ]
    for value, shown in kinds:
        node = Shown(Node("x", value), b"")
        assert node.to_json()["value"] == shown
        assert plain(show_text.render(node, verbose=True))


def test_names_from_a_stream_are_escaped() -> None:
    evil = "\x1b[31mred\x07\u202e\n"
    section = Section(evil, b"\1", [{"name": evil, "type": "uint8", "size": 1}])
    data = builders.stream(
        [section], [], {evil: builders.PAGE}, config=builders.configuration(evil)
    )
    stream = read_stream(BytesSource(data, path=evil))
    assert stream.complete
    machine = read_machine(stream)
    text = report(machine, ram=True, verbose=True)
    place = find(machine, f"section:{evil}")
    text += plain(show_text.render(Shown(place, b"\1"), verbose=True))
    text += plain(finding_lines([Finding(Severity.INFO, "x", evil)]))
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "\\x1b[31mred" in text
    made = json.dumps(Inspection(machine, (), ram=True).to_json())
    assert made.isascii()
    assert made.isprintable()


@given(st.text())
def test_printable(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_many_vcpus_are_shown_in_brief() -> None:
    fields = [{"name": "env.eip", "type": "uint64", "size": 8}]
    cpus = [Section("cpu", bytes(8), fields, instance=index) for index in range(6)]
    machine = read_machine(read_stream(BytesSource(builders.stream(cpus))))
    assert len(machine.vcpus) == 6
    assert report(machine).count("rip, cr3") == 2
    assert report(machine, verbose=True).count("rip, cr3") == 0


def test_hexdump_squeezes_equal_rows() -> None:
    lines = [line.plain for line in hexdump(bytes(16 * 10) + b"end", 0x100)]
    assert len(lines) == 3
    assert lines[1].strip() == "*"
    assert lines[2].startswith("  000001a0  65 6e 64")


def test_small_helpers() -> None:
    assert [size_words(n) for n in (5, 2048, 32 << 20, 3 << 30)] == [
        "5 bytes",
        "2 KiB",
        "32 MiB",
        "3 GiB",
    ]
    assert list(columns([])) == []


@pytest.mark.parametrize("opaque", [True, False])
def test_stepped_over_and_opaque_sections_are_marked(opaque: bool, sample: bytes) -> None:
    from qemu_svm.limits import Limits

    if opaque:
        data = builders.stream([Section("timer", b"\1", [])], describe=False)
        text = report(read_machine(read_stream(BytesSource(data))))
        assert "(not described)" in text
        assert "description none" in text
    else:
        stream = read_stream(BytesSource(sample), Limits(ram_walk_bytes=0))
        assert "ram (--ram reads it)" in report(read_machine(stream))
