"""States that no processor can be in: each kind is found, and no capture has one."""

from __future__ import annotations

import pytest

from qemu_svm.findings.check import check
from qemu_svm.findings.consistency import consistency
from qemu_svm.findings.impossible import IMPOSSIBLE, impossible
from qemu_svm.machine import Machine, read_machine
from qemu_svm.machine.paths import vcpu_tree
from qemu_svm.model.profiles import profiles
from qemu_svm.nested import layout
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS, capture_bytes
from tests.model.conftest import PAGED, PLAIN, machine_of, patched

PAE = capture_bytes("guests/qemu10.0-linux6.12-pae.mig.zst")
CODE16, TSS, LDT = 0x9B, 0x89, 0x82


def register(name: str, value: int, size: int = 8, data: bytes = PLAIN) -> Machine:
    """The capture with a register of the vCPU changed; ``tr.flags`` is a part of a segment."""
    vcpu = machine_of(data).vcpus[0]
    name, _, part = name.partition(".")
    if part:
        node = vcpu.segment_values[name].child(part)
        assert node is not None
        place = node.offset
    else:
        place = vcpu.registers[name].offset
    return patched(data, place, value.to_bytes(size, "big"))


def l1(*changes: tuple[str, int, int], data: bytes = PLAIN) -> Machine:
    """The capture with fields of L1's save area changed: ``("efer", 0, 8)``."""
    nested = machine_of(data).vcpus[0].nested
    assert nested is not None
    for place, value, size in changes:
        name, _, part = place.partition(".")
        at = nested.vmcb_offset + layout.SAVE_OFFSET + layout.SAVE.member(name).offset
        at += {"": 0, "attrib": 2, "base": 8}[part]
        data = data[:at] + value.to_bytes(size, "little") + data[at + size :]
    return machine_of(data)


def control(name: str, value: int, size: int = 4, data: bytes = PLAIN) -> Machine:
    nested = machine_of(data).vcpus[0].nested
    assert nested is not None
    at = nested.vmcb_offset + layout.CONTROL.member(name).offset
    return patched(data, at, value.to_bytes(size, "little"))


def found(machine: Machine) -> list[tuple[str, str]]:
    return [(one.rule, one.path.partition(".")[2]) for one in impossible(machine)]


L1, L2 = "nested.l1_save.", "registers."
SHAPES: list[tuple[Machine, str, str]] = [
    # L1's mode, then L2's.
    (l1(("efer", 0x1400, 8)), "X-20", L1 + "efer"),
    (l1(("efer", 0x1100, 8)), "X-20", L1 + "efer"),
    (l1(("cr4", 0, 8)), "X-20", L1 + "cr4"),
    (l1(("cr0", 0x80000010, 8)), "X-20", L1 + "cr0"),
    (l1(("cs.attrib", 0x69B, 2)), "X-20", L1 + "cs"),
    (register("efer", 0x1400), "X-20", L2 + "efer"),
    (register("efer", 0x1100), "X-20", L2 + "efer"),
    (register("cr0", 0x11), "X-20", L2 + "efer"),
    (register("cr4", 0), "X-20", L2 + "cr4"),
    (register("cr0", 0x80000010), "X-20", L2 + "cr0"),
    # Reserved bits.
    (l1(("cr0", 0x1_80000011, 8)), "X-21", L1 + "cr0"),
    (l1(("cr0", 0xA0000011, 8)), "X-21", L1 + "cr0"),
    (l1(("cr4", 0x8020, 8)), "X-21", L1 + "cr4"),
    (l1(("efer", 0x1504, 8)), "X-21", L1 + "efer"),
    (l1(("cr3", 0x10000000101000, 8)), "X-21", L1 + "cr3"),
    (register("cr4", 0x80000020), "X-21", L2 + "cr4"),
    (register("cr0", 0xA0000011), "X-21", L2 + "cr0"),
    (register("efer", 0x400001500), "X-21", L2 + "efer"),
    # Addresses.
    (l1(("rip", 0x800000100238, 8)), "X-22", L1 + "rip"),
    (l1(("gdtr.base", 1 << 63, 8)), "X-22", L1 + "gdtr"),
    (register("rip", 0x1000000100288), "X-22", L2 + "rip"),
    (register("lstar", 0x800000000000), "X-22", L2 + "lstar"),
    (register("gs.base", 0xFFFF00000000), "X-22", "segments.gs"),
    (register("tr.base", 1 << 62), "X-22", "segments.tr"),
    # Types, privileges.
    (register("tr.flags", TSS << 8, 4), "X-23", "segments.tr"),
    (register("tr.flags", LDT << 8, 4), "X-23", "segments.tr"),
    (register("ldt.flags", TSS << 8, 4), "X-23", "segments.ldt"),
    (register("ss.flags", 0xCFF300, 4), "X-24", "segments.cs"),
    (l1(("cpl", 3, 1)), "X-24", L1 + "cpl"),
    (l1(("ss.attrib", 0xCF3, 2), ("cs.attrib", 0xAFB, 2)), "X-24", L1 + "ss"),
    # RFLAGS, debug registers, PAT.
    (register("rflags", 0x400002), "X-25", L2 + "rflags"),
    (register("rflags", 0x20002), "X-25", L2 + "rflags"),
    (l1(("rflags", 0, 8)), "X-25", L1 + "rflags"),
    (l1(("rflags", 0xA, 8)), "X-25", L1 + "rflags"),
    (register("dr7", 1 << 32 | 0x400), "X-26", L2 + "dr7"),
    (register("dr6", 0xFFFF1FF0), "X-26", L2 + "dr6"),
    (l1(("dr6", 1 << 40, 8)), "X-26", L1 + "dr6"),
    (register("pat", 0x0007040600070402), "X-27", L2 + "pat"),
    (l1(("g_pat", 8, 8)), "X-27", L1 + "g_pat"),
    # What L1 asked for.
    (control("asid", 0), "X-31", "nested.control.asid"),
    (control("nested_cr3", 1 << 60, 8, PAGED), "X-21", "nested.control.nested_cr3"),
    (control("int_ctl", 0x2000), "X-28", "nested.control.int_ctl"),
    (control("int_ctl", 1 << 26), "X-28", "nested.control.int_ctl"),
    (control("event_inj", 0x80000130), "X-29", "nested.control.event_inj"),
    (control("event_inj", 0x80000302), "X-29", "nested.control.event_inj"),
    (control("event_inj", 0x80000305), "X-29", "nested.control.event_inj"),
    (control("event_inj", 0x8000130D), "X-29", "nested.control.event_inj"),
]


@pytest.mark.parametrize(("machine", "rule", "path"), SHAPES, ids=[
    f"{number}-{rule}-{path}" for number, (_, rule, path) in enumerate(SHAPES)
])  # fmt: skip
def test_an_impossible_state_is_an_error(machine: Machine, rule: str, path: str) -> None:
    assert (rule, path) in found(machine)
    assert rule in [one.rule for one in consistency(machine)]


@pytest.mark.parametrize(
    "machine",
    [
        l1(("cs.attrib", 0x29B, 2)),  # 64-bit code without G
        l1(("cs.attrib", 0xA9F, 2)),  # conforming
        l1(("dr6", 0, 8), ("dr7", 0, 8)),  # 5.10 leaves both clear
        register("fs.base", 0xFFFF800000000000),
        register("tr.flags", 0x8300, 4),  # a busy TSS of 16 bits, as after reset
        register("tr.flags", 0, 4),  # not present
        register("ss.flags", 0, 4),  # the null selector
        register("cr4", 0x1000020),  # bits that only some processors have
        register("efer", 0x205500),
        control("int_ctl", 0x030F_11FF),
        control("nested_cr3", 1 << 60, 8),  # without nested paging nobody reads it
        control("event_inj", 0x80000B0D),
        control("event_inj", 0x00000130),  # not valid, so nothing
        control("event_inj", 0x80000480),
    ],
)
def test_unusual_states_are_none_of_them(machine: Machine) -> None:
    assert found(machine) == []


def test_no_capture_has_one() -> None:
    wrong, vcpus = [], 0
    for path in sorted(STREAMS.rglob("*.mig.zst")):
        with open_source(str(path)) as source:
            machine = read_machine(read_stream(source))
            vcpus += len(machine.vcpus)
            wrong += [(path.name, one.message) for one in impossible(machine)]
    assert wrong == []
    assert vcpus > 60


def test_pdptes_are_looked_up_in_memory() -> None:
    """L1's are not in the stream: its CR3 leads to them."""
    protected = (("efer", 0x1000, 8), ("cs.attrib", 0xC9B, 2))
    assert found(l1(*protected, ("cr3", 0x3000, 8))) == []  # an empty page
    # The header of L1's program.
    assert found(l1(*protected, ("cr3", 0x100000, 8))) == [("X-30", "nested.l1_save.cr3")]


def test_pdptes_of_the_stream() -> None:
    vcpu = machine_of(PAE).vcpus[0]
    if "pdptr1" not in vcpu.registers:
        pytest.fail("the capture has no cpu/pdptrs")
    place = vcpu.registers["pdptr1"].offset
    changed = patched(PAE, place, (0x105_1E7).to_bytes(8, "big"))
    assert found(changed) == [("X-30", "registers.pdptr1")]


def test_every_kind_of_state_is_a_rule_that_some_state_meets() -> None:
    met = {rule for _, rule, _ in SHAPES} | {"X-30"}
    assert met == {rule.id for rule in IMPOSSIBLE}


@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12.117", "6.12.118", "7.2"])
def test_lma_without_lme_is_an_error_on_every_kernel(kernel: str) -> None:
    machine = l1(("efer", 0x1400, 8), ("cr4", 0, 8), data=PAGED)
    report = check(machine, profiles(kernel))
    errors = [one for one in report.findings if one.rule == "X-20"]
    assert [vcpu_tree(machine.vcpus[0]).resolve(one.path.partition(".")[2]) for one in errors]
    assert all(one.offset for one in errors)


@pytest.mark.parametrize(
    ("kernel", "verdict"),
    [("6.1", "broken"), ("6.12.117", "broken"), ("6.12.118", "wrong"), ("7.2", "broken")],
)
def test_an_l1_that_cannot_run_is_not_accepted(kernel: str, verdict: str) -> None:
    """6.12.118 refuses it, and QEMU's further steps run L2's code as L1."""
    machine = l1(("efer", 0x1400, 8), ("cr4", 0, 8), data=PAGED)
    report = check(machine, profiles(kernel))
    (judged,) = report.verdicts[0].values()
    assert judged.verdict == verdict
    killed = any("KVM kills the VM" in line for line in judged.lines)
    assert killed is (kernel == "6.12.117")
