"""Stream, model and processor beside each other, on recorded logs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qemu_svm.findings.witness import FieldVerdict, Witness, explain_value, witness
from qemu_svm.machine import read_machine
from qemu_svm.model import plans
from qemu_svm.model.area import RESET
from qemu_svm.model.kernels.derive import profile_of
from qemu_svm.model.kernels.release import parse_if_any
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.kvm.vmcb02 import vmcb02_control
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.saved import Saved, areas, from_vcpu, guest_cpuid
from qemu_svm.model.simulate import simulate
from qemu_svm.render.text.witness_verdict import verdict
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from qemu_svm.vmruns.log import read_log
from qemu_svm.x86.segments import Segment
from tests.conftest import STREAMS
from tests.vmruns.recorded import LOGS, NAMES
from tests.vmruns.written import Writer, vmcb


def saved_of(entry: dict[str, Any]) -> Saved:
    with open_source(str(STREAMS / entry["provenance"]["stream"])) as source:
        return from_vcpu(read_machine(read_stream(source)).vcpus[0])


def seen(entry: dict[str, Any], saved: Saved, plan: str = "qemu") -> Witness:
    release = parse_if_any(entry["provenance"]["kernel"])
    assert release is not None
    kernel = profile_of(release)
    assert kernel is not None
    host = Host(cpuid=guest_cpuid(saved))
    simulation = simulate(kernel, saved, plans.parse(plan), host=host)
    with open_source(str(STREAMS / entry["file"])) as source:
        return witness(read_log(source), saved, simulation, npt=True)


@pytest.mark.parametrize("entry", LOGS, ids=NAMES)
def test_each_level_gets_its_own_registers(entry: dict[str, Any]) -> None:
    found = seen(entry, saved_of(entry))
    assert found.clean
    parts = {part.name: part for part in found.parts}
    assert set(parts) == {"vmcb02", "vmcb01", "control"}
    for name, facts in (("vmcb02", "first"), ("vmcb01", "first_l1")):
        fields = {field.name: field for field in parts[name].fields}
        for register, value in entry["facts"][facts].items():
            assert fields[register].given == int(value, 16)
            assert fields[register].stream == int(value, 16)
            assert fields[register].model == int(value, 16)
            assert fields[register].verdict is FieldVerdict.RIGHT
        for segment in ("cs", "ss", "ds", "es", "gdtr", "idtr"):
            assert fields[segment].verdict is FieldVerdict.RIGHT
        cr4 = fields["cr4"]
        assert (cr4.verdict, cr4.why) == (FieldVerdict.EXPLAINED, "KVM adds the host's MCE")
    names = {field.name for field in parts["control"].fields}
    assert {"intercepts", "asid", "nested_cr3", "tsc_offset", "int_ctl"} <= names


def test_another_restore_is_not_this_one() -> None:
    """The model of a wrong order is refuted by a log of the right one."""
    found = seen(LOGS[0], saved_of(LOGS[0]), "cpuid,sregs:l1,nested,regs,msrs,run")
    assert not found.wrong
    assert {field.name for field in found.refuted} >= {"cr3"}


def test_wrong_registers_are_told_with_their_owner() -> None:
    """The log holds L2's CR3; a stream that has L1's there says what it should be."""
    entry = LOGS[0]
    saved = saved_of(entry)
    other = saved.sregs.copy()
    other.set("cr3", 0x105000, RESET)
    found = seen(entry, replace(saved, sregs=other))
    (wrong,) = found.wrong
    assert (wrong.name, wrong.given, wrong.stream) == ("cr3", 0x104000, 0x105000)
    assert wrong.predicted is False
    words = "\n".join(str(line) for line in verdict(found))
    assert "L2 runs with a wrong value of CR3: 0x104000 instead of 0x105000" in words


def test_nothing_was_seen(tmp_path: Any) -> None:
    saved = saved_of(LOGS[0])
    simulation = simulate(PROFILES["6.12"], saved, plans.parse("qemu"))
    found = witness(read_log(Writer().source()), saved, simulation, npt=True)
    assert found.parts == ()
    assert len(found.missing) == 2
    assert not found.clean


def test_l1_first_is_no_mistake() -> None:
    """An interrupt that L1 waits for: KVM leaves L2 before it was entered once."""
    saved = saved_of(LOGS[0])
    kept = saved.l1()
    l1 = {name: kept.get(name) for name in ("rip", "rsp", "rax", "cr3", "cr0", "efer")}
    vmrun = l1 | {"rip": l1["rip"] + 0x20}
    l2 = {"rip": 0x1002A2, "rsp": 0x10C000}
    log = Writer()
    log.run(0xA000, vmcb(0, **l1), vmcb(0x400, **l1))
    log.run(0xA000, vmcb(0x400, **l1), vmcb(0x80, **vmrun), vmcb12=vmcb(0x60, **l2))
    log.run(0xB000, vmcb(0, **l2), vmcb(0x72, **l2))
    simulation = simulate(PROFILES["6.12"], saved, plans.parse("qemu"))
    found = witness(read_log(log.source()), saved, simulation, npt=True)
    late, part = found.parts
    assert (late.name, late.level, late.late) == ("vmcb02", "L2", True)
    assert (part.name, part.level, part.late) == ("vmcb01", "L1", False)
    assert found.missing == ()
    fields = {field.name: field for field in part.fields}
    for name in ("rip", "rsp", "rax", "cr3"):
        assert fields[name].verdict is FieldVerdict.RIGHT
    fields = {field.name: field for field in late.fields}
    assert fields["rip"].verdict is fields["rsp"].verdict is FieldVerdict.RIGHT
    why = "L1 had control first, and may have changed it"
    assert (fields["cr3"].verdict, fields["cr3"].why) == (FieldVerdict.EXPLAINED, why)


def test_l2_that_is_not_entered_again_was_not_seen() -> None:
    saved = saved_of(LOGS[0])
    kept = saved.l1()
    l1 = {name: kept.get(name) for name in ("rip", "rsp", "rax", "cr3", "cr0", "efer")}
    l2 = {"rip": 0x1002A2, "rsp": 0x10C000}
    log = Writer()
    log.run(0xA000, vmcb(0, **l1), vmcb(0x400, **l1))
    vmrun = l1 | {"rip": l1["rip"] + 0x20}
    log.run(0xA000, vmcb(0x400, **l1), vmcb(0x80, **vmrun), vmcb12=vmcb(0x60, **l2))
    log.run(0xA000, vmcb(0x400, **l1), vmcb(0x80, **vmrun))
    simulation = simulate(PROFILES["6.12"], saved, plans.parse("qemu"))
    found = witness(read_log(log.source()), saved, simulation, npt=True)
    assert not found.clean


def test_one_of_several_vcpus() -> None:
    """Another vCPU's VMCBs come before and between; the registers tell which are meant."""
    saved = saved_of(LOGS[0])
    kept = saved.l1()
    l1 = {name: kept.get(name) for name in ("rip", "rsp", "rax", "cr3", "cr0", "efer")}
    vmrun = l1 | {"rip": l1["rip"] + 0x20}
    l2 = {name: saved.regs[name] for name in ("rip", "rsp", "rax")} | {"cr3": 0x104000}
    other = {"rip": 0x5000, "rsp": 0x6000, "rax": 0x7000, "cr3": 0x8000}
    log = Writer()
    log.run(0xC000, vmcb(0, **other), vmcb(0x400, **other))
    log.run(0xB000, vmcb(0, **l2), vmcb(0x72, **l2))
    log.run(0xC000, vmcb(0x400, **other), vmcb(0x400, **other))
    log.run(0xA000, vmcb(0x72, **l1), vmcb(0x80, **vmrun), vmcb12=vmcb(0x60, **l2))
    log.run(0xB000, vmcb(0, **l2), vmcb(0x72, **l2))
    simulation = simulate(PROFILES["6.12"], saved, plans.parse("qemu"))
    whole = read_log(log.source())
    found = witness(whole, saved, simulation, npt=True, alone=False)
    assert [(part.name, part.address) for part in found.parts] == [
        ("vmcb02", 0xB000), ("vmcb01", 0xA000), ("control", 0xB000),
    ]  # fmt: skip
    fields = {field.name: field for part in found.parts[:1] for field in part.fields}
    for name in ("rip", "rsp", "rax", "cr3"):
        assert fields[name].verdict is FieldVerdict.RIGHT
    alone = witness(whole, saved, simulation, npt=True)
    assert alone.parts[0].address == 0xC000  # taken for the only one
    elsewhere = replace(
        saved, regs={**saved.regs, "rip": 0x9000}, nested=replace(saved.nested, flags=0x100)
    )
    nothing = witness(whole, elsewhere, simulation, npt=True, alone=False)
    assert "did not run" in nothing.missing[0]


CODE = Segment(8, 0, 0xFFFF_FFFF, 0xA9B)


@pytest.mark.parametrize(
    ("name", "wanted", "given", "npt", "answer"),
    [
        ("rip", 1, 1, True, ""),
        ("rip", 1, 2, True, None),
        ("cr0", 0xE000_0011, 0x8000_0011, True, "CD and NW"),
        ("cr0", 0x11, 0x8001_0011, False, "PG and WP"),
        ("cr0", 0x11, 0x8001_0011, True, None),
        ("cr4", 0x20, 0x60, True, "MCE"),
        ("cr4", 0x20, 0x20 | 1 << 16, True, None),
        ("cr4", 0, 0x60, False, "MCE"),
        ("cr3", 0x1000, 0x2000, False, "KVM's own tables"),
        ("cr3", 0x1000, 0x2000, True, None),
        ("efer", 0x500, 0x1500, True, "SVME"),
        ("efer", 0x500, 0x1D00, False, "NX"),
        ("rflags", 0, 2, True, "bit 1"),
        ("dr6", 0xFFFF_0FF1, 0xFFFF_0FF0, True, "keeps DR6 clear"),
        ("cs", CODE, replace(CODE, attrib=0xA9A), True, "accessed"),
        ("cs", CODE, replace(CODE, base=0x1000), True, None),
        ("idtr", Segment(0, 0, 0x3FF, 0), Segment(0, 0, 0, 0), True, None),
        ("ds", replace(CODE, attrib=0), replace(CODE, attrib=0, limit=0), True, "not present"),
    ],
)
def test_explanations(name: str, wanted: Any, given: Any, npt: bool, answer: str | None) -> None:
    found = explain_value(name, wanted, given, npt=npt)
    if answer is None or answer == "":
        assert found == answer
    else:
        assert found is not None
        assert answer in found


def test_merge_of_controls() -> None:
    """Rules that no capture needs: V_INTR_MASKING of L1, and its MSR bitmap."""
    l0, _ = areas(bytes(4096), RESET)
    l1 = l0.copy()
    vintr, cr8_write, vmmcall, msr = 1 << 100, 1 << 24, 1 << 129, 1 << 124
    l0.set("intercepts", vintr | cr8_write | vmmcall, RESET)
    l0.set("tsc_offset", (1 << 64) - 5, RESET)
    l1.set("intercepts", msr, RESET)
    l1.set("int_ctl", 1 << 24, RESET)
    l1.set("tsc_offset", 7, RESET)
    for name, kept in (("6.1", 0), ("6.12.117", vmmcall), ("7.2", vmmcall)):
        merged = {one.name: one for one in vmcb02_control(PROFILES[name], l0, l1)}
        assert merged["intercepts"].value == msr | kept
        assert merged["tsc_offset"].value == 2
        assert merged["msrpm_base_pa"].value is None
