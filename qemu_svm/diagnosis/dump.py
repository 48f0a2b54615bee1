"""The VMCB that kvm_amd prints with ``dump_invalid_vmcb=1``: parsed, decoded, compared.

::

    SVM: VMCB 00000000cf856f0d, last attempted VMRUN on CPU 0
    SVM: VMCB Control Area:
    SVM: intercepts:         bd4c8027 00006e7f
    SVM: VMCB State Save Area:
    SVM: es:   s: 0010 a: 0c93 l: ffffffff b: 0000000000000000
    SVM: cr0:            0000000080000011 cr2:          0000000000000000

The prefix is ``SVM:`` up to 6.1 or so, ``kvm_amd:`` later; 7.2 names ``nested_ctl`` and
``virt_ext`` ``misc_ctl`` and ``misc_ctl2``, and prints the general registers too.  Numbers are
hexadecimal but for the ASID, the pause filter, ``tlb_ctl`` and the levels.

Source: Linux ``arch/x86/kvm/svm/svm.c`` ``dump_vmcb`` (5.10, 6.1, 6.12, 7.2), and dumps of
5.10.223, 6.1.176, 6.12.117 and 7.2.12.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from qemu_svm.machine import Vcpu
from qemu_svm.nested import bits, layout
from qemu_svm.nested.exit_codes import INVALID, INVALID_32, exit_name
from qemu_svm.nested.state import build_vmcb, parse_vmcb
from qemu_svm.x86.registers import CR0, CR4, EFER
from qemu_svm.x86.segments import ATTRIBUTES, Segment

_PREFIX = re.compile(r".*?\b(?:SVM|kvm_amd|kvm)(?:\[\d{1,10}\])?: (?=\S)")
_STAMP = re.compile(
    r"^\W*(?:<\d{1,3}>)?\s*\[\s*\d{1,10}\.\d{1,9}(?:@\d{1,4})?\](?:\[[^\]]{0,20}\])?\s?"
)
START = re.compile(r"VMCB Control Area:?")
_HEAD = re.compile(
    r"\bVMCB (?:at )?(?:0x)?[0-9a-f]{4,16}, last attempted VMRUN on CPU (?P<cpu>\d{1,5})"
)
_VCPU = re.compile(r"\bvCPU ?(?P<vcpu>\d{1,5}) VMCB\b", re.IGNORECASE)
_SAVE = re.compile(r"VMCB State Save Area:?")
_SEGMENT = re.compile(
    r"\b(?P<name>[c-g]s|ss|gdtr|ldtr|idtr|tr):\s{0,8}s: ?(?P<s>[0-9a-f]{1,4})"
    r" a: ?(?P<a>[0-9a-f]{1,4}) l: ?(?P<l>[0-9a-f]{1,8}) b: ?(?P<b>[0-9a-f]{1,16})"
)
_INTERCEPTS = re.compile(r"\bintercepts:\s{0,24}(?P<w3>[0-9a-f]{1,8}) (?P<w4>[0-9a-f]{1,8})"
                         r"(?: (?P<w5>[0-9a-f]{1,8}))?")  # fmt: skip
_PAUSE = re.compile(r"\bpause filter (?P<what>count|threshold):\s{0,16}(?P<n>\d{1,10})")
_PAIR = re.compile(
    r"\b(?P<name>[a-z][a-z0-9_]{1,24}):\s{0,24}(?P<value>[0-9a-f]{1,16})(?![0-9a-z])"
)

_DECIMAL = frozenset({"asid", "tlb_ctl", "cpl", "vmpl"})
_NAMES = {
    "exit_info1": "exit_info_1", "exit_info2": "exit_info_2", "misc_ctl": "nested_ctl",
    "misc_ctl2": "virt_ext", "ghcb": "ghcb_gpa", "gpat": "g_pat", "excp_from": "last_excp_from",
    "excp_to": "last_excp_to", "sev_features": "",
}  # fmt: skip
_WORDS = {"cr_read": 0, "cr_write": 0, "dr_read": 1, "dr_write": 1, "exceptions": 2}
_HALF = {"cr_read": 0, "cr_write": 16, "dr_read": 0, "dr_write": 16, "exceptions": 0}
_GENERAL = frozenset({"rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in range(8, 16))})
_HIGH = 0xFFFF_FFFF_0000_0000
_LONG_MODE_CS = ATTRIBUTES.mask("L", "DB")


@dataclass(frozen=True, slots=True)
class VmcbDump:
    """One dump.

    :param line: of the log where it begins.
    :param cpu: processor of the last VMRUN.
    :param vcpu: number of the vCPU, which 7.x prints.
    :param page: the VMCB, 4096 bytes; fields that were not printed are 0.
    :param seen: names of the fields that were printed.
    :param registers: general registers, which 7.x prints.
    """

    line: int
    cpu: int | None
    vcpu: int | None
    page: bytes = field(repr=False)
    seen: frozenset[str]
    registers: Mapping[str, int]

    @property
    def control(self) -> Mapping[str, object]:
        """The control area by name."""
        return dict(parse_vmcb(self.page).control)

    @property
    def save(self) -> Mapping[str, object]:
        """The save area by name."""
        return dict(parse_vmcb(self.page).save)

    @property
    def exit_code(self) -> int:
        """Why the VMRUN ended."""
        code = self.control["exit_code"]
        assert isinstance(code, int)
        return code

    @property
    def failed(self) -> bool:
        """Whether the processor refused the VMCB."""
        return "exit_code" in self.seen and self.exit_code in (INVALID, INVALID_32)


class DumpReader:
    """Collects the lines of dumps, also with others in between.

    :param limit: dumps that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.dumps: list[VmcbDump] = []
        self.more = 0
        self._open: _Open | None = None
        self._head: tuple[int | None, int | None] = (None, None)

    def read(self, line: int, text: str) -> bool:
        """Read the next line; return whether it belongs to a dump."""
        if self._open is None and "VMCB" not in text:
            return False
        head = _HEAD.search(text)
        if head is not None:
            vcpu = _VCPU.search(text)
            self._head = (int(head["cpu"]), int(vcpu["vcpu"]) if vcpu else None)
            return True
        if START.search(text):
            self.finish()
            self._open = _Open(line, *self._head)
            self._head = (None, None)
            return True
        if self._open is None:
            return False
        if self._open.read(text):
            self._open.strangers = 0
            return True
        if self._open.strangers > _STRANGERS:
            self.finish()
        return False

    def finish(self) -> None:
        """Keep the dump that is open."""
        if self._open is None:
            return
        made = self._open.made()
        self._open = None
        if made is None:
            return
        if len(self.dumps) < self._limit:
            self.dumps.append(made)
        else:
            self.more += 1


_STRANGERS = 40


@cache
def _sizes() -> tuple[dict[str, int], dict[str, int]]:
    # Bytes of the fields of control and save area that are numbers.
    vmcb = parse_vmcb(bytes(layout.VMCB_SIZE))
    control = {one.name: one.layout.sizeof() for one in layout.CONTROL.members
               if isinstance(vmcb.control[one.name], int)}  # fmt: skip
    save = {one.name: one.layout.sizeof() for one in layout.SAVE.members
            if isinstance(vmcb.save[one.name], int)}  # fmt: skip
    return control, save


class _Open:
    def __init__(self, line: int, cpu: int | None, vcpu: int | None) -> None:
        self.strangers = 0
        self._line, self._cpu, self._vcpu = line, cpu, vcpu
        self._save = False
        self._control: dict[str, int] = {}
        self._saved: dict[str, object] = {}
        self._intercepts = [0] * 6
        self._registers: dict[str, int] = {}
        self._seen: set[str] = set()

    def read(self, text: str) -> bool:
        if _SAVE.search(text):
            self._save = True
            return True
        prefix = _PREFIX.match(text)
        rest = text[prefix.end() :] if prefix is not None else _STAMP.sub("", text)
        if self._words(rest):
            return True
        self.strangers += 1
        return False

    def _words(self, text: str) -> bool:
        segment = _SEGMENT.search(text)
        if segment is not None:
            name = segment["name"]
            selector, attrib, limit, base = (int(segment[key], 16) for key in "salb")
            self._saved[name] = {
                "selector": selector, "attrib": attrib, "limit": limit, "base": base
            }  # fmt: skip
            self._seen.add(name)
            return True
        words = _INTERCEPTS.search(text)
        if words is not None:
            for at, key in enumerate(("w3", "w4", "w5"), 3):
                self._intercepts[at] = int(words[key] or "0", 16)
            self._seen.add("intercepts")
            return True
        pause = _PAUSE.search(text)
        if pause is not None:
            name = "pause_filter_count" if pause["what"] == "count" else "pause_filter_thresh"
            self._control[name] = int(pause["n"]) & 0xFFFF
            return True
        found = list(_PAIR.finditer(text))
        known = [self._pair(one["name"], one["value"]) for one in found]
        return any(known)

    def _pair(self, name: str, value: str) -> bool:
        if not self._save and name in _WORDS:
            self._intercepts[_WORDS[name]] |= int(value, 16) << _HALF[name] & 0xFFFF_FFFF
            self._seen.add("intercepts")
            return True
        own = _NAMES.get(name, name)
        if own in _DECIMAL and not value.isdecimal():
            return False
        number = int(value, 10 if own in _DECIMAL else 16)
        control, saved = _sizes()
        if not self._save and own in control:
            self._control[own] = number
        elif self._save and own in saved:
            self._saved.setdefault(own, number)
        elif self._save and own in _GENERAL:
            self._registers[own] = number
        else:
            return False
        self._seen.add(own)
        return True

    def made(self) -> VmcbDump | None:
        if len(self._seen) < _FEWEST:
            return None
        vmcb = parse_vmcb(bytes(layout.VMCB_SIZE))
        vmcb.control.intercepts = self._intercepts
        sizes, saved = _sizes()
        for name, number in self._control.items():
            vmcb.control[name] = number & (1 << 8 * sizes[name]) - 1
        for name, value in self._saved.items():
            if isinstance(value, dict):
                vmcb.save[name].update(value)
            elif isinstance(value, int):
                vmcb.save[name] = value & (1 << 8 * saved[name]) - 1
        return VmcbDump(
            self._line, self._cpu, self._vcpu, build_vmcb(vmcb), frozenset(self._seen),
            MappingProxyType(self._registers),
        )  # fmt: skip


_FEWEST = 3


@dataclass(frozen=True, slots=True)
class Impossible:
    """A state with which VMRUN fails.

    :param rule: KVM's rule that checks the same; empty if none does.
    :param field: where in the VMCB.
    """

    rule: str
    words: str
    field: str


def impossible(dump: VmcbDump) -> tuple[Impossible, ...]:
    """What in a VMCB makes VMRUN fail (APM volume 2, 15.5.1).

    Only fields that were printed count.
    """
    control, save = parse_vmcb(dump.page).control, parse_vmcb(dump.page).save
    cr0, cr4, efer = save.cr0, save.cr4, save.efer
    long_mode = bool(efer & EFER.mask("LME") and cr0 & CR0.mask("PG"))
    pae, pe = bool(cr4 & CR4.mask("PAE")), bool(cr0 & CR0.mask("PE"))
    event = control.event_inj
    rows = (
        ("S-01", "EFER.SVME is clear", "save.efer", not efer & EFER.mask("SVME")),
        ("S-02", "CR0.NW is set and CD is clear", "save.cr0",
         bool(cr0 & CR0.mask("NW")) and not cr0 & CR0.mask("CD")),
        ("S-03", "CR0 has bits set above bit 31", "save.cr0", bool(cr0 & _HIGH)),
        ("S-04", "DR6 has bits set above bit 31", "save.dr6", bool(save.dr6 & _HIGH)),
        ("S-04", "DR7 has bits set above bit 31", "save.dr7", bool(save.dr7 & _HIGH)),
        ("S-05", "EFER.LME and CR0.PG are set and CR4.PAE is clear", "save.cr4",
         long_mode and not pae),
        ("S-06", "EFER.LME and CR0.PG are set and CR0.PE is clear", "save.cr0",
         long_mode and not pe),
        ("", "CR0.PG is set and CR0.PE is clear", "save.cr0",
         bool(cr0 & CR0.mask("PG")) and not pe and not long_mode),
        ("S-09", "in long mode, CS has L and D set", "save.cs",
         long_mode and pae and save.cs.attrib & _LONG_MODE_CS == _LONG_MODE_CS),
        ("S-07", "CR3 has bits set above bit 51", "save.cr3", bool(save.cr3 >> 52)),
        ("S-10", "CR4 has bits set above bit 31", "save.cr4", bool(cr4 & _HIGH)),
        ("S-11", "EFER has unknown bits set", "save.efer", bool(efer & ~_EFER_KNOWN)),
        ("SV-18", "EFER.LMA is set and LME is clear", "save.efer",
         bool(efer & EFER.mask("LMA")) and not efer & EFER.mask("LME")),
        ("C-01", "VMRUN is not intercepted", "control.intercepts",
         not control.intercepts[4] & 1),
        ("C-02", "the ASID is 0", "control.asid", control.asid == 0),
        ("C-08", "event_inj has a reserved type or an invalid vector", "control.event_inj",
         bool(event >> 31 & 1) and _bad_event(event)),
    )  # fmt: skip
    return tuple(
        Impossible(rule, words, where)
        for rule, words, where, holds in rows
        if holds and where.partition(".")[2] in dump.seen
    )


_EFER_KNOWN = 0x37_FD01  # SCE, LME, LMA, NXE, SVME, LMSLE, FFXSR, TCE, MCOMMIT, INTWB, UAIE, AIBRSE


def _bad_event(event: int) -> bool:
    kind, vector = event >> 8 & 7, event & 0xFF
    return kind in (1, 5, 6, 7) or (kind == 3 and (vector == 2 or vector > 31))


@dataclass(frozen=True, slots=True)
class DumpMatch:
    """Which VMCB of a stream a dump is.

    :param level: ``L1`` or ``L2``: whose registers are in the save area; empty if neither's.
    :param same: fields that agree; ``differs``: field, value of the dump, of the stream.
    :param telling: those of ``same`` that tell one guest from another.
    """

    vcpu: int
    level: str
    same: tuple[str, ...]
    differs: tuple[tuple[str, int, int], ...]
    telling: tuple[str, ...] = ()


_COMPARED = ("cr3", "gdtr", "idtr", "rsp", "rip", "cr0", "cr4", "efer", "cs", "ss", "rflags", "rax")
_IDENTIFY = frozenset({"cr3", "gdtr", "idtr", "rsp", "rip"})


def compare(dump: VmcbDump, vcpus: tuple[Vcpu, ...]) -> DumpMatch | None:
    """Compare a dump with the vCPUs of a stream; None if it resembles none of them.

    The save area is compared with L1's of the nested state and with the vCPU's own registers;
    the guest ran on after it was saved, so RIP and RSP may differ.
    """
    best: DumpMatch | None = None
    for vcpu in vcpus:
        for level, values in _states(vcpu):
            match = _match(dump, vcpu.index, level, values)
            if best is None or _score(match) > _score(best):
                best = match
    return best if best is not None and len(best.telling) >= _ENOUGH else None


_ENOUGH = 2


def _score(match: DumpMatch) -> int:
    return 3 * len(match.telling) + len(match.same)


def _states(vcpu: Vcpu) -> list[tuple[str, dict[str, int]]]:
    own = {name: vcpu.get(name) for name in ("cr3", "rsp", "rip", "cr0", "cr4", "efer", "rflags")}
    own["rax"] = vcpu.get("rax")
    for name in ("cs", "ss", "gdt", "idt"):
        segment: Segment | None = vcpu.segments.get(name)
        if segment is not None:
            table = name in ("gdt", "idt")
            own[f"{name}r" if table else name] = segment.base << 32 if table else _number(segment)
    found = [("L2" if vcpu.guest_mode else "L1", own)]
    if vcpu.nested is not None and vcpu.nested.vmcb:
        save = parse_vmcb(vcpu.nested.vmcb).save
        found.append(("L1", {name: _field(name, save[name]) for name in _COMPARED}))
    return found


def _match(dump: VmcbDump, index: int, level: str, values: Mapping[str, int]) -> DumpMatch:
    vmcb = parse_vmcb(dump.page)
    same, differs = [], []
    for name in _COMPARED:
        if name not in dump.seen or name not in values:
            continue
        found = _field(name, vmcb.save[name])
        if found == values[name]:
            same.append(name)
        else:
            differs.append((name, found, values[name]))
    telling = tuple(name for name in same if name in _IDENTIFY and values[name])
    return DumpMatch(index, level, tuple(same), tuple(differs), telling)


def _field(name: str, value: object) -> int:
    if isinstance(value, int):
        return value
    assert isinstance(value, dict)
    if name in ("gdtr", "idtr"):
        return int(value["base"]) << 32
    return _number(Segment(*(int(value[part]) for part in ("selector", "base", "limit", "attrib"))))


def segment_text(value: object) -> str:
    """A segment of a dump in words; nothing for another value."""
    if not isinstance(value, dict):
        return ""
    return f"{value['selector']:#x}, attributes {value['attrib']:#x}, base {value['base']:#x}"


def field_text(name: str, value: int) -> str:
    """A compared value in words; see :class:`DumpMatch`."""
    if name in ("gdtr", "idtr"):
        return f"{value >> 32:#x}"
    if name in ("cs", "ss"):
        return f"{value & 0xFFFF:#x}, attributes {value >> 16 & 0xFFF:#x}, base {value >> 32:#x}"
    return f"{value:#x}"


def _number(segment: Segment) -> int:
    # Base, attributes without the accessed bit, selector; tables have neither of the latter.
    return segment.base << 32 | (segment.attrib & 0xFFE) << 16 | segment.selector


def words(dump: VmcbDump) -> tuple[str, ...]:
    """The fields that matter, decoded."""
    vmcb = parse_vmcb(dump.page)
    control, save = vmcb.control, vmcb.save
    intercepts = sum(word << 32 * at for at, word in enumerate(control.intercepts))
    lines = {
        "exit_code": f"exit_code {control.exit_code:#x} [{exit_name(control.exit_code)}]",
        "intercepts": f"intercepts {' '.join(_brief(bits.INTERCEPTS.names(intercepts)))}",
        "asid": f"asid {control.asid}",
        "int_ctl": f"int_ctl {control.int_ctl:#x} "
        f"[{' '.join(bits.INT_CTL.names(control.int_ctl))}]",
        "nested_ctl": f"nested_ctl {control.nested_ctl:#x} "
        f"[{' '.join(bits.NESTED_CTL.names(control.nested_ctl))}], nested_cr3 "
        f"{control.nested_cr3:#x}",
        "event_inj": f"event_inj {control.event_inj:#x}",
        "efer": f"efer {save.efer:#x} [{' '.join(EFER.names(save.efer))}]",
        "cr0": f"cr0 {save.cr0:#x} [{' '.join(CR0.names(save.cr0))}]",
        "cr4": f"cr4 {save.cr4:#x} [{' '.join(CR4.names(save.cr4))}]",
        "cr3": f"cr3 {save.cr3:#x}, rip {save.rip:#x}, rsp {save.rsp:#x}",
        "cs": f"cs {save.cs.selector:#x}, attributes {save.cs.attrib:#x} "
        f"[{' '.join(ATTRIBUTES.names(save.cs.attrib))}]",
    }
    return tuple(text for name, text in lines.items() if name in dump.seen)


_MANY = 10


def _brief(names: list[str]) -> list[str]:
    return names if len(names) <= _MANY else [*names[:_MANY], f"and {len(names) - _MANY} more"]
