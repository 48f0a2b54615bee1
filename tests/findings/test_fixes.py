"""Bugs that a change of KVM repaired: one input that meets each, one that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.doctor import facts
from qemu_svm.doctor.judge_host import judge_host
from qemu_svm.findings.advisories import COMMON, EVERY
from qemu_svm.findings.advisory import Advisory, Case
from qemu_svm.findings.check import check
from qemu_svm.findings.fixes import CHANGE_OF, FIXES, rules_of
from qemu_svm.findings.looks import Looks
from qemu_svm.findings.rules import RULES, explained
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.memory.memory import GuestMemory
from qemu_svm.model.kernels.changes import Side
from qemu_svm.model.kernels.release import parse
from qemu_svm.model.kernels.table import BY_ID, CHANGES
from qemu_svm.model.profiles import profiles
from qemu_svm.model.saved import from_vcpu
from qemu_svm.nested import bits
from qemu_svm.rules import Severity
from qemu_svm.stream.ram.read import read_ram
from qemu_svm.stream.vmstate.values import Value
from qemu_svm.trace.rules import ORDERS
from qemu_svm.vmruns.log import read_log
from qemu_svm.vmruns.select import Selection, exit_codes, select
from tests.conftest import capture_bytes
from tests.model.conftest import PAGED, PLAIN, machine_of
from tests.vmruns.written import Writer, vmcb

SMM = capture_bytes("guests/qemu10.0-linux6.12-smm.mig.zst")
RIP = 0x100288
VMCB12 = 0x108000
INTERCEPTS = bits.INTERCEPTS


@dataclass(frozen=True)
class Edit:
    """Changes of a stream.

    :param vmcb: by offset in the VMCB: a number and its size.
    :param env: fields of the vCPU's section by the end of their path.
    :param ram: bytes by their L1-physical address.
    :param flags: of the nested state, and of hflags and hflags2: bits set and bits cleared.
    """

    vmcb: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    env: Mapping[str, int] = field(default_factory=dict)
    ram: Mapping[int, bytes] = field(default_factory=dict)
    flags: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __or__(self, other: Edit) -> Edit:
        return Edit(
            {**self.vmcb, **other.vmcb}, {**self.env, **other.env},
            {**self.ram, **other.ram}, {**self.flags, **other.flags},
        )  # fmt: skip

    def of(self, data: bytes) -> bytes:
        machine = machine_of(data)
        vcpu = machine.vcpus[0]
        raw = bytearray(data)
        for offset, (value, size) in self.vmcb.items():
            assert vcpu.nested is not None
            at = vcpu.nested.vmcb_offset + offset
            raw[at : at + size] = value.to_bytes(size, "little")
        nodes = dict(vcpu.section.walk())
        for name, value in self.env.items():
            put(raw, node(nodes, name), value)
        for name, (on, off) in self.flags.items():
            one = node(nodes, name)
            assert isinstance(one.value, int)
            put(raw, one, one.value & ~off | on)
        memory = looked(machine)()
        for address, content in self.ram.items():
            at = place_of(data, memory, address)
            raw[at : at + len(content)] = content
        return bytes(raw)


def node(nodes: Mapping[str, Value], name: str) -> Value:
    return next(one for path, one in nodes.items() if path.endswith(name))


def put(raw: bytearray, one: Value, value: int) -> None:
    signed = value < 0
    raw[one.offset : one.offset + one.size] = value.to_bytes(one.size, "big", signed=signed)


def place_of(data: bytes, memory: GuestMemory, address: int) -> int:
    page = memory.read(address & ~0xFFF, 4096)
    assert page.strip(b"\0"), "a page of zeros is not in the stream"
    return data.rindex(page) + (address & 0xFFF)


SOFT = Edit(vmcb={0xA8: (0x8000_0480, 4)})
INT3 = Edit(vmcb={0xA8: (0x8000_0303, 4)})
PAE = Edit(vmcb={0x4D0: (0x1000, 8), 0x548: (0x20, 8), 0xB0: (0x10_5018, 8)})
RUN_PENDING = Edit(flags={"env.nested_state.flags": (2, 0)})
IF = Edit(env={"env.eflags": 0x202})
BAD_L2 = Edit(env={"env.cr[0]": 0xA000_0011})
NO_GIF = Edit(flags={"env.nested_state.flags": (0, 0x100), "env.hflags2": (0, 1)})
INTERRUPT = Edit(env={"env.interrupt_injected": 0x30})
NOWHERE = 0xF_0000_0000


def intercepting(*names: str) -> Edit:
    number = INTERCEPTS.mask("VMRUN", *names)
    return Edit(vmcb={4 * word: (number >> 32 * word & 0xFFFF_FFFF, 4) for word in range(6)})


def pa(address: int) -> Edit:
    return Edit(env={"hdr.svm.vmcb_pa": address, "env.vm_vmcb": address})


E0 = Edit()
# Rule, stream, edits that show it, edits that do not, a kernel without the fix, one with it.
MET: list[tuple[str, bytes, Edit, Edit, str, str]] = [
    ("K-01", PLAIN, SOFT, SOFT | Edit(vmcb={0xC8: (0x1234, 8)}), "6.1.174", "6.1.175"),
    ("K-01", PLAIN, SOFT, E0, "5.15.100", "6.12.86"),
    ("K-02", PLAIN, SOFT, E0, "6.12.113", "6.12.114"),
    ("K-02", PLAIN, INT3, Edit({0xA8: (0x8000_030D, 4)}), "6.12.113", "6.12.114"),
    ("K-02", PLAIN, SOFT, SOFT | RUN_PENDING, "5.19", "6.12.114"),
    ("K-03", PLAIN, Edit({0xB8: (1, 8)}), Edit({0xB8: (2, 8)}), "6.12.113", "6.12.114"),
    ("K-03", PLAIN, Edit({0x670: (1, 8)}), Edit({0x670: (2, 8)}), "6.18.26", "6.18.27"),
    ("K-04", PLAIN, Edit({0xB8: (1, 8)}), Edit({0x670: (1, 8)}), "6.1.190", "6.1.191"),
    ("K-05", PAGED, PAE, PAE | Edit({0xB0: (0x10_5000, 8)}), "6.1.114", "6.1.115"),
    ("K-05", PAGED, PAE, Edit({0xB0: (0x10_5018, 8)}), "5.10.228", "5.10.229"),
    ("K-06", PLAIN, Edit({0x60: (1 << 31, 4)}), Edit({0x60: (1 << 24, 4)}), "5.10.59", "5.10.60"),
    ("K-07", PLAIN, Edit({0x3E0: (1, 4)}), E0, "6.12.87", "6.12.88"),
    ("K-07", PLAIN, Edit({0x3E0: (1, 4)}), Edit({0x3E0: (1, 4), 0x90: (1, 8)}), "6.12.87", "7.1"),
    ("K-08", SMM, E0, Edit(flags={"env.hflags": (0, 1 << 19)}), "6.12.87", "6.12.88"),
    ("K-09", PLAIN, IF | Edit(ram={RIP - 1: b"\xfb"}), IF, "6.12.85", "6.12.86"),
    ("K-09", PLAIN, IF | Edit(ram={RIP - 1: b"\xfb"}),
     IF | Edit({0x68: (1, 4)}, ram={RIP - 1: b"\xfb"}), "5.10.257", "5.10.258"),
    ("K-10", PLAIN, PAE | Edit({0x550: (0xF000_0000, 8)}), E0, "6.1.190", "6.1.191"),
    ("K-10", PLAIN, PAE | Edit({0x550: (VMCB12, 8)}, ram={VMCB12: b"\x03" + bytes(31)}),
     PAE | Edit({0x550: (VMCB12, 8)}, ram={VMCB12: b"\x01" + bytes(31)}), "6.12.113", "6.12.114"),
    ("K-10", PLAIN, Edit({0x550: (1 << 40, 8)}), E0, "5.10.200", "6.12.114"),
    ("K-11", PLAIN, intercepting(), intercepting("VMMCALL"), "6.12.85", "6.12.86"),
    ("K-12", PLAIN, intercepting("MSR_PROT"), intercepting(), "7.2.9", "7.2.10"),
    ("K-14", PLAIN, intercepting("VMLOAD"), intercepting("VMLOAD", "VMSAVE"), "5.10.59", "5.10.60"),
    ("K-15", PLAIN, intercepting(), intercepting("SHUTDOWN"), "5.10.156", "5.10.157"),
    ("K-20", PLAIN, intercepting("MSR_PROT") | Edit({0x48: (NOWHERE, 8)}),
     intercepting("MSR_PROT"), "6.12.116", "6.12.117"),
    ("K-21", PLAIN, BAD_L2 | SOFT, BAD_L2, "6.12.116", "6.12.117"),
    ("K-21", PLAIN, BAD_L2 | SOFT, SOFT, "7.2.9", "7.2.10"),
    ("K-22", PLAIN, BAD_L2 | Edit({0x5C: (1, 1)}), Edit({0x5C: (1, 1)}), "7.2.9", "7.2.10"),
    ("K-23", PLAIN, Edit(env={"env.cr[3]": 1 << 45}), E0, "6.1.164", "6.1.165"),
    ("K-25", PAGED, E0, Edit({0x90: (0, 8)}), "6.1.128", "6.1.129"),
    ("K-26", PLAIN, Edit(ram={VMCB12 + 0x4D0: b"\x00\x14"}), E0, "6.12.116", "6.12.117"),
    ("K-27", PLAIN, NO_GIF | INTERRUPT, INTERRUPT, "5.10.136", "5.10.137"),
    ("K-27", PLAIN, NO_GIF | INTERRUPT, NO_GIF, "5.15.60", "5.15.61"),
    ("K-28", PLAIN, INT3, INT3 | Edit(ram={RIP: b"\xcc"}), "6.12.61", "6.12.62"),
    ("K-29", SMM, E0, Edit(flags={"env.hflags": (0, 1 << 19)}), "6.1.190", "6.1.191"),
    ("K-30", SMM, E0, Edit(flags={"env.hflags": (0, 1 << 19)}), "5.16.10", "5.16.11"),
    ("K-32", PAGED, PAE, E0, "5.10.36", "5.10.37"),
    ("K-33", PLAIN, INTERRUPT, INTERRUPT | RUN_PENDING, "5.10.12", "5.10.13"),
    ("K-33", PLAIN, INTERRUPT, E0, "5.10.12", "5.11"),
    ("K-34", PLAIN, Edit(env={"env.cr[3]": 0x104005}), E0, "5.9.1", "5.9.2"),
    ("K-35", PLAIN, Edit(env={"env.efer": 0x1000}), E0, "5.10.19", "5.10.20"),
    ("K-36", PLAIN, Edit({0x60: (0x100, 4), 0x64: (0x30, 4)}), Edit({0x64: (0x30, 4)}),
     "5.10.71", "5.10.72"),
    ("K-37", PLAIN, Edit({0xB8: (2, 8)}), E0, "5.10.70", "5.10.71"),
    ("K-38", PLAIN, BAD_L2, E0, "5.10.257", "5.10.258"),
    ("K-38", PLAIN, Edit(env={"env.efer": 0x500}), E0, "6.1.174", "6.1.175"),
    ("K-39", PLAIN, pa(NOWHERE), E0, "6.1.174", "6.1.175"),
    ("K-40", PLAIN, pa(NOWHERE), E0, "6.18.26", "6.18.27"),
    ("K-41", PLAIN, Edit(env={"env.efer": 0x500}), E0, "6.12.85", "6.12.86"),
    ("K-42", PLAIN, SOFT, SOFT | RUN_PENDING, "6.12.85", "6.12.86"),
    ("K-43", PLAIN, SOFT | RUN_PENDING, SOFT, "6.1.174", "6.1.175"),
    ("K-43", PLAIN, SOFT | RUN_PENDING, INT3 | RUN_PENDING, "6.12.85", "6.12.86"),
    ("K-44", PLAIN, Edit(env={"env.exception_nr": 14}), Edit(env={"env.exception_nr": 13}),
     "6.12.85", "6.12.86"),
    ("K-45", PLAIN, intercepting("VMLOAD"), intercepting("VMLOAD", "VMSAVE"), "6.1.164", "6.1.165"),
    ("K-46", PLAIN, intercepting("SELECTIVE_CR0"), intercepting("CR0_WRITE"),
     "6.12.63", "6.12.64"),
    ("K-47", PLAIN, Edit(ram={VMCB12 + 0x74: b"\x12\x34"}), E0, "6.12.63", "6.12.64"),
    ("K-49", PLAIN, Edit({0xB8: (1, 8)}), E0, "6.12.60", "6.12.61"),
    ("K-54", PLAIN, intercepting(), intercepting("MSR_PROT"), "7.0", "7.1"),
]  # fmt: skip


LOOKING = frozenset({"K-01", "K-09", "K-10", "K-26", "K-28", "K-47"})
"""Rules that look into memory."""


@cache
def edited(data: bytes, edit: int) -> Machine:
    return machine_of(EDITS[edit].of(data))


EDITS: dict[int, Edit] = {id(one): one for row in MET for one in row[2:4]}


def looked(machine: Machine) -> Callable[[], GuestMemory]:
    return lambda: GuestMemory(machine, read_ram(machine.stream, ()))


def found(machine: Machine, kernel: str, source: str | None = None, **options: Any) -> set[str]:
    saved_by = None if source is None else profiles(source)[0]
    if options.pop("looks", True):
        options["memory"] = looked(machine)
    return {
        one.rule for one in check(machine, profiles(kernel), source=saved_by, **options).findings
    }


@pytest.mark.parametrize(
    ("rule", "stream", "shows", "other", "without", "fixed"), MET,
    ids=[f"{row[0]}-{number}" for number, row in enumerate(MET)],
)  # fmt: skip
def test_one_stream_that_meets_it_and_one_that_does_not(
    rule: str, stream: bytes, shows: Edit, other: Edit, without: str, fixed: str
) -> None:
    machine = edited(stream, id(shows))
    against = edited(stream, id(other))
    side, looks = BY_ID[RULES[rule].change].side, rule in LOOKING
    if side is Side.SOURCE:
        assert rule in found(machine, "7.3", without, looks=looks)
        assert rule not in found(machine, "7.3", fixed, looks=looks)
        assert rule not in found(against, "7.3", without, looks=looks)
        return
    assert rule in found(machine, without, looks=looks)
    assert rule not in found(machine, fixed, looks=looks)
    assert rule not in found(against, without, looks=looks)
    if side is Side.BOTH:
        assert rule in found(machine, fixed, without, looks=looks)


def test_hosts_without_nested_paging() -> None:
    machine = machine_of(PLAIN)
    assert "K-31" in found(machine, "5.10.19", npt=False)
    assert "K-31" not in found(machine, "5.10.20", npt=False)
    assert "K-31" not in found(machine, "5.10.19")


@pytest.mark.parametrize(("rule", "without"), [("K-24", "6.1.53"), ("K-53", "5.16.11")])
def test_a_scaled_tsc(rule: str, without: str) -> None:
    # No capture has the subsection: the emulator does not scale.
    advisory = next(one for one in FIXES if one.rule.id == rule)
    vcpu = machine_of(PLAIN).vcpus[0]
    for ratio, met in ((1 << 33, True), (1 << 32, False)):
        name = "cpu/amd_tsc_scale_msr"
        value = Value("env.amd_tsc_scale_msr", "uint64", 0, 8, ratio)
        scale = Value(name, "subsection", 0, 8, None, (value,))
        section = vcpu.section._replace(children=(*vcpu.section.children, scale))
        case = Case(replace(vcpu, section=section), from_vcpu(vcpu))
        assert (advisory.met(case) is not None) is met
    assert advisory.concerns(profiles(without)[0])
    assert not advisory.concerns(profiles("6.12.118")[0])


def soft(instruction: bytes, next_rip: int) -> Machine:
    edit = SOFT | Edit({0xC8: (next_rip, 8)}, ram={RIP: instruction})
    return machine_of(edit.of(PLAIN))


def test_the_instruction_in_memory_says_what_next_rip_has_to_be() -> None:
    machine = soft(b"\xcd\x80", RIP + 2)
    assert "K-01" not in found(machine, "7.3", "6.1.100")
    for instruction, next_rip in (
        (b"\xcd\x80", RIP),
        (b"\xcd\x80", 0x1234),
        (b"\xcc\x90", RIP + 2),
    ):
        machine = soft(instruction, next_rip)
        assert "K-01" in found(machine, "7.3", "6.1.100")
        assert "K-01" in found(machine, "7.3")  # memory shows it, whatever the source was
        assert "K-01" not in found(machine, "7.3", "6.1.175")
        assert "K-01" not in found(machine, "7.3", looks=False)


def test_a_shadow_that_was_lost() -> None:
    machine = machine_of((IF | Edit(ram={RIP - 1: b"\xfb"})).of(PLAIN))
    (finding,) = [
        one for one in check(machine, profiles("7.3"), memory=looked(machine)).findings
        if one.rule == "K-09"
    ]  # fmt: skip
    assert finding.severity is Severity.WARNING
    assert "the byte before L2's RIP is STI" in finding.message
    # Without memory nothing shows it: said only of a source that has the bug.
    assert "K-09" not in found(machine, "7.3", looks=False)
    report = check(machine, profiles("7.3"), source=profiles("6.1.100")[0])
    (finding,) = [one for one in report.findings if one.rule == "K-09"]
    assert finding.severity is Severity.INFO
    assert "saved by 6.1.100" in finding.message


def test_a_source_is_named() -> None:
    machine = machine_of(SOFT.of(PLAIN))
    report = check(machine, profiles("7.3"), source=profiles("6.1.0-44-amd64")[0])
    (finding,) = [one for one in report.findings if one.rule == "K-01"]
    assert "saved by 6.1.0-44-amd64" in finding.message
    assert "6.1.175, 6.6.140, 6.12.86" in finding.do


@pytest.mark.parametrize("data", [PLAIN, PAGED])
@pytest.mark.parametrize("kernel", ["5.8", "5.10", "6.1.100", "6.12.117", "7.3"])
def test_nothing_of_it_is_in_every_stream(data: bytes, kernel: str) -> None:
    machine = machine_of(data)
    saved_by = profiles("5.10")[0]
    report = check(machine, profiles(kernel), source=saved_by, memory=looked(machine))
    for one in report.findings:
        if one.rule.startswith("K-"):
            assert one.severity is Severity.INFO
            assert one.rule in COMMON


# Rule, a parameter of kvm_amd that shows it, one that does not, a kernel without, one with it.
HOSTS = [
    ("K-06", {}, {"nested": "0"}, "5.10.59", "5.10.60"),
    ("K-13", {}, {"nested": "N"}, "5.10.27", "5.10.28"),
    ("K-14", {}, {"nested": "0"}, "5.10.59", "5.10.60"),
    ("K-15", {}, {"nested": "0"}, "5.10.156", "5.10.157"),
    ("K-16", {"avic": "Y"}, {"avic": "N"}, "6.12.85", "6.12.86"),
    ("K-17", {"avic": "1"}, {"avic": "0"}, "6.12.102", "6.12.103"),
    ("K-18", {"avic": "Y"}, {}, "6.1.61", "6.1.62"),
    ("K-31", {"npt": "N"}, {"npt": "Y"}, "5.10.19", "5.10.20"),
    ("K-50", {"avic": "Y"}, {"avic": "N"}, "6.1.59", "6.1.60"),
    ("K-51", {"avic": "Y"}, {"avic": "N"}, "6.12.48", "6.12.49"),
    ("K-52", {"avic": "Y"}, {"avic": "N"}, "6.12.77", "6.12.78"),
]


@pytest.mark.parametrize(("rule", "shows", "other", "without", "fixed"), HOSTS)
def test_one_host_that_meets_it_and_one_that_does_not(
    rule: str, shows: dict[str, str], other: dict[str, str], without: str, fixed: str
) -> None:
    path = Path(__file__).parents[1] / "doctor" / "hosts" / "linux6.12.json"
    good = facts.read(facts.load(str(path)))

    def bugs(parameters: dict[str, str], release: str) -> set[str]:
        modules = {**good.modules, "kvm_amd": {**good.modules["kvm_amd"], **parameters}}
        host = replace(good, kernel=parse(release), name=release, modules=modules)
        return {one.name.removeprefix("bug ") for one in judge_host(host)}

    assert rule in bugs(shows, without)
    assert rule not in bugs(shows, fixed)
    assert rule not in bugs(other, without)


def test_a_failed_vmrun_in_a_log_of_vmruns() -> None:
    shown = [one for one in EVERY if one.vmruns]
    assert {one.rule.id for one in shown} == {"K-21", "K-22", "K-38"}
    for code, met in ((0xFFFF_FFFF_FFFF_FFFF, True), (0xFFFF_FFFF, True), (0x400, False)):
        log = Writer()
        log.run(0x1000, vmcb(), vmcb(code))
        read = read_log(log.source())
        for one in shown:
            selection = Selection(exits=exit_codes(one.vmruns))
            assert bool(list(select(read, selection))) is met


def test_every_rule_says_what_shows_it() -> None:
    orders = {rule.id for rule in ORDERS}
    for one in EVERY:
        shown = one.applies is not None or one.host is not None or bool(one.trace)
        assert shown != bool(one.unseen), one.rule.id
        assert set(one.trace) <= orders
        assert (one.host is not None) == bool(one.avoided_by)
    tested = {rule for rule, *_ in MET} | {"K-24", "K-31", "K-53"}
    assert {one.rule.id for one in FIXES if one.applies is not None} == tested
    assert {one.rule.id for one in FIXES if one.host is not None} == {rule for rule, *_ in HOSTS}


def test_every_rule_names_a_change() -> None:
    for one in FIXES:
        assert one.rule.change in BY_ID
        assert one.rule.id in RULES
    for rule, change in CHANGE_OF.items():
        assert rule in RULES
        assert change in BY_ID


def test_every_change_with_a_number_or_a_commit_is_explained() -> None:
    for change in CHANGES:
        for word in (*change.cve, *change.commits):
            for spelling in (word, word.lower(), word.upper(), f" {word} "):
                assert change in explained(spelling).changes
        if change.cve:
            assert rules_of(change.id), change.id
        assert set(rules_of(change.id)) <= set(RULES)
    assert rules_of("lma-without-pae-bug") == ("SV-18", "K-26")
    assert explained("2021-29657").changes
    assert explained("03bee264f8eb" + "0" * 28).changes


def test_what_a_rule_without_a_look_into_memory_says() -> None:
    vcpu: Vcpu = machine_of(PLAIN).vcpus[0]

    def nothing() -> GuestMemory:
        raise AssertionError("RAM is indexed for a rule that does not need it")

    case = Case(vcpu, from_vcpu(vcpu), looks=Looks(nothing))
    needed: list[str] = []
    for one in EVERY:
        try:
            Advisory.met(one, case)
        except AssertionError:
            needed.append(one.rule.id)
    assert needed == ["K-26", "K-47"]
