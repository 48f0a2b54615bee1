"""States that no x86 processor can be in, whether or not a kernel checks them.

Each kind of state is one rule; it is applied to the vCPU's registers (L2's in guest mode,
else L1's), to L1's in the nested state, and to what L1 asked for L2.  Bits that only some
processors have are allowed everywhere.

Source: AMD64 Architecture Programmer's Manual volume 2, 3.1 (system registers), 4.8
(descriptors), 5.3 (page tables), 7.8 (PAT), 13.1 (debug registers), 14.5.3 (long mode
consistency checks), 15.5.1 (VMRUN's checks), 15.20 (event injection), 15.21 (interrupts),
appendix B (VMCB).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from qemu_svm.errors import SvmStreamError
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.machine.paths import vcpu_tree
from qemu_svm.model.area import Area
from qemu_svm.model.saved import areas
from qemu_svm.nested import bits
from qemu_svm.rules import Finding, Rule, RuleKind, Severity
from qemu_svm.x86.msrs import pat_valid
from qemu_svm.x86.registers import CR0, CR4, EFER, RFLAGS, uses_pae
from qemu_svm.x86.segments import ATTRIBUTES, Segment

_DO = "find out what wrote this value: no processor has it"
_APM = "AMD APM volume 2, "
# Id, when it fails, what follows, source.
_ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("X-20", "EFER, CR0, CR4 and CS select no mode of the processor",
     "KVM refuses the state, kills the VM or runs the guest in a wrong mode", "14.5.3, 15.5.1"),
    ("X-21", "a control register or a physical address has reserved bits set, or CR0 NW without CD",
     "KVM refuses the state, or the VM entry fails", "3.1, 5.3.1, 15.5.1"),
    ("X-22", "an address that must be canonical is not",
     "the VM entry fails, or the processor uses another address", "5.3.1, 15.5.1"),
    ("X-23", "TR holds no busy TSS, or LDTR no LDT",
     "the VM entry fails on some processors; the guest's next task switch or interrupt faults",
     "4.8.3"),
    ("X-24", "CPL, SS.DPL and CS.DPL contradict each other",
     "the guest runs at another privilege level than it was saved at", "4.8, 15.5.1"),
    ("X-25", "RFLAGS has reserved bits set, bit 1 clear, or VM set in long mode",
     "the VM entry fails, or the processor changes RFLAGS", "3.1.6"),
    ("X-26", "DR6 or DR7 has bits set that are always clear",
     "KVM refuses the state, or the VM entry fails", "13.1.1, 15.5.1"),
    ("X-27", "the PAT has a memory type that does not exist", "KVM refuses it", "7.8.1"),
    ("X-28", "int_ctl has reserved bits set, or virtual NMIs without the NMI intercept",
     "the VM entry fails, or means something else on a later processor", "15.21, appendix B"),
    ("X-29", "event_inj describes no event", "the VM entry fails (VMEXIT_INVALID)", "15.20"),
    ("X-30", "a PDPTE in PAE paging has reserved bits set",
     "KVM_RUN fails, or L1 gets a triple fault", "5.3.4"),
    ("X-31", "L2's ASID is 0", "the VM entry fails: 0 is the host's", "15.5.1"),
)  # fmt: skip

IMPOSSIBLE: tuple[Rule, ...] = tuple(
    Rule(rule, Severity.ERROR, RuleKind.CONSISTENCY, when, means, _DO, _APM + source)
    for rule, when, means, source in _ROWS
)
_RULES = {rule.id: rule for rule in IMPOSSIBLE}

_ALL = (1 << 64) - 1
_HIGH = _ALL ^ 0xFFFF_FFFF
_PE, _PG, _NW, _CD = (CR0.mask(name) for name in ("PE", "PG", "NW", "CD"))
_PAE, _LA57 = CR4.mask("PAE"), CR4.mask("LA57")
_LME, _LMA = EFER.mask("LME"), EFER.mask("LMA")
_VM = RFLAGS.mask("VM")
_L, _DB, _S = ATTRIBUTES.mask("L"), ATTRIBUTES.mask("DB"), 0x10
_CODE, _CONFORMING = 0x18, 0x1C
_CR3_RESERVED = _ALL << 52 & _ALL  # in long mode, without PCIDs
_LAM = 3 << 61  # address masking, in CR3
_DR6_CLEAR = _HIGH | 1 << 12
_DR7_CLEAR = _HIGH | 1 << 12 | 3 << 14
_PDPTE_RESERVED = _ALL << 52 & _ALL | 0x1E6
_TSS_BUSY, _TSS, _LDT = (3, 11), (1, 3, 9, 11), (2,)


@dataclass(frozen=True, slots=True)
class Level:
    """The registers of one level.

    :param name: ``L1``, ``L2``, or empty if there is only one.
    :param values: by name.
    :param place: path below the vCPU of a register.
    :param kvm: it is what KVM returns, which marks every TSS as busy; TCG keeps the descriptor.
    """

    name: str
    values: Area
    place: Callable[[str], str]
    kvm: bool = True

    def get(self, name: str) -> int:
        """Return a register."""
        return self.values.get(name)

    @property
    def long_mode(self) -> bool:
        """EFER.LMA."""
        return bool(self.get("efer") & _LMA)

    @property
    def code64(self) -> bool:
        """Whether 64-bit code runs."""
        return self.long_mode and self.values.segment("cs").long

    @property
    def pae(self) -> bool:
        """Whether paging has PDPTEs that the processor keeps."""
        return uses_pae(self.get("cr0"), self.get("cr4"), self.get("efer"))


_NEEDED = frozenset({"rflags", "cr0", "cr4"})
"""A vCPU whose section lacks one of these, as a damaged one may, is not judged."""
Found = tuple[str, str, str]
"""Id of the rule, the register, what is wrong with it."""


def impossible(machine: Machine) -> Iterator[Finding]:
    """Find the states of a stream's vCPUs that no processor can be in."""
    memory = _Tables(machine)
    for vcpu in machine.vcpus:
        for rule, place, words in _of_vcpu(vcpu, memory):
            node = vcpu_tree(vcpu).resolve(place)
            yield _RULES[rule].finding(
                f"vCPU {vcpu.index}: {words}",
                None if node is None else node.offset,
                path=f"vcpu{vcpu.index}.{place}",
            )


def _of_vcpu(vcpu: Vcpu, memory: _Tables) -> Iterator[Found]:
    nested = vcpu.nested
    running = _running(vcpu)
    if vcpu.registers.keys() >= _NEEDED and "cs" in vcpu.segments:
        yield from _all(running, _EVERYWHERE)
        yield from _all(running, _OF_VCPU)
    paging = False
    if nested is not None and nested.is_svm and nested.guest_mode and nested.vmcb:
        control, save = areas(nested.vmcb)
        l1 = Level("L1", save, lambda name: f"nested.l1_save.{name}")
        yield from _all(l1, _EVERYWHERE)
        yield from _all(l1, _OF_L1)
        for rule, name, words in _controls(control, running):
            yield rule, f"nested.control.{name}", words
        if nested.vmcb_pa >> _WIDEST:
            yield "X-21", "nested.vmcb_pa", f"vmcb12's address {nested.vmcb_pa:#x} {_TOO_WIDE}"
        paging = bool(control.get("nested_ctl") & 1)
        yield from memory.entries(l1, l1.get("cr3"))
        if paging and l1.pae:
            yield from memory.entries(l1, control.get("nested_cr3"), "nested.control.nested_cr3")
    if not paging:
        yield from memory.entries(running, running.get("cr3"))


def _running(vcpu: Vcpu) -> Level:
    # What SREGS and the MSRs hold: L2's registers in guest mode.
    values = Area("registers", {name: vcpu.get(name) for name in vcpu.registers})
    for name, segment in vcpu.segments.items():
        values.set(_LONG_NAMES.get(name, name), segment, values.writer(name))
    name = "L2" if vcpu.guest_mode else ""

    def place(register: str) -> str:
        short = _SHORT_NAMES.get(register, register)
        return f"segments.{short}" if short in vcpu.segments else f"registers.{short}"

    return Level(name, values, place, kvm=vcpu.nested is not None)


_LONG_NAMES = {"ldt": "ldtr", "gdt": "gdtr", "idt": "idtr"}
_SHORT_NAMES = {long: short for short, long in _LONG_NAMES.items()}
_Check = Callable[[Level], Iterator[Found]]


def _all(level: Level, checks: tuple[_Check, ...]) -> Iterator[Found]:
    whose = f"{level.name}'s " if level.name else ""
    for check in checks:
        for rule, name, words in check(level):
            yield rule, level.place(name), f"{whose}{words}"


def _mode(level: Level) -> Iterator[Found]:
    efer, cr0, cr4 = level.get("efer"), level.get("cr0"), level.get("cr4")
    lme, lma, pg = efer & _LME, efer & _LMA, cr0 & _PG
    value = f"EFER {efer:#x}, CR0 {cr0:#x}, CR4 {cr4:#x}"
    if lma and not lme:
        yield "X-20", "efer", f"EFER has LMA set and LME clear ({value})"
    elif lma and not pg:
        yield "X-20", "efer", f"EFER has LMA set and CR0 has PG clear ({value})"
    elif lme and pg and not lma:
        yield "X-20", "efer", f"EFER has LME set and LMA clear, with CR0.PG set ({value})"
    if (lma or lme) and pg and not cr4 & _PAE:
        yield "X-20", "cr4", f"CR4 has PAE clear in long mode ({value})"
    if pg and not cr0 & _PE:
        yield "X-20", "cr0", f"CR0 has PG set and PE clear ({value})"
    attrib = level.values.segment("cs").attrib
    if lma and attrib & _L and attrib & _DB:
        yield "X-20", "cs", f"CS has L and D set in long mode (attributes {attrib:#x})"


def wrong_mode(values: Area) -> str:
    """Say why EFER, CR0, CR4 and CS select no mode of the processor; empty if they do."""
    found = next(_mode(Level("", values, str)), None)
    return "" if found is None else found[2]


def _reserved(level: Level) -> Iterator[Found]:
    for name, table in (("cr0", CR0), ("cr4", CR4), ("efer", EFER)):
        value = level.get(name)
        wrong = value & ~table.mask(*(word for _, word in table.items()))
        if wrong:
            yield "X-21", name, f"{name.upper()} {value:#x} has reserved bits set ({wrong:#x})"
    cr0, cr3 = level.get("cr0"), level.get("cr3")
    if cr0 & _NW and not cr0 & _CD:
        yield "X-21", "cr0", f"CR0 {cr0:#x} has NW set and CD clear"
    wrong = cr3 & _CR3_RESERVED & ~_LAM
    if level.long_mode and wrong:
        yield "X-21", "cr3", f"CR3 {cr3:#x} has reserved bits set ({wrong:#x})"


def _addresses(level: Level) -> Iterator[Found]:
    width = 57 if level.get("cr4") & _LA57 else 48
    rip = level.get("rip")
    if level.code64 and not _canonical(rip, width):
        yield "X-22", "rip", f"RIP {rip:#x} is not canonical"
    elif not level.code64 and rip & _HIGH:
        yield "X-22", "rip", f"RIP {rip:#x} has more than 32 bits outside of 64-bit mode"
    for name in ("gdtr", "idtr"):
        base = level.values.segment(name).base
        if not _canonical(base, width):
            yield "X-22", name, f"{name.upper()}'s base {base:#x} is not canonical"


def _more_addresses(level: Level) -> Iterator[Found]:
    width = 57 if level.get("cr4") & _LA57 else 48
    for name in ("fs", "gs", "tr", "ldtr"):
        base = level.values.segment(name).base
        if not _canonical(base, width):
            yield "X-22", name, f"{name.upper()}'s base {base:#x} is not canonical"
    for name in ("lstar", "cstar", "kernel_gs_base", "sysenter_esp", "sysenter_eip"):
        value = level.get(name)
        if not _canonical(value, width):
            yield "X-22", name, f"{name.upper()} {value:#x} is not canonical"


def _canonical(address: int, width: int) -> bool:
    top = address >> width - 1
    return top in (0, (1 << 65 - width) - 1)


def _system_segments(level: Level) -> Iterator[Found]:
    task = (_TSS_BUSY, "busy TSS") if level.kvm else (_TSS, "TSS")
    for name, kinds, words in (("tr", *task), ("ldtr", _LDT, "LDT")):
        segment = level.values.segment(name)
        if segment.present and (segment.attrib & _S or segment.type not in kinds):
            yield (
                "X-23",
                name,
                (
                    f"{name.upper()} has attributes {segment.attrib:#x}, which are not those of a "
                    f"{words}"
                ),
            )


def _privilege(level: Level) -> Iterator[Found]:
    code, stack = level.values.segment("cs"), level.values.segment("ss")
    if not level.get("cr0") & _PE or level.get("rflags") & _VM or not stack.present:
        return
    if code.attrib & _CODE == _CODE and not _reachable(code, stack.dpl):
        yield "X-24", "cs", f"CS has DPL {code.dpl}, SS has DPL {stack.dpl}"


def _reachable(code: Segment, cpl: int) -> bool:
    if code.attrib & _CONFORMING == _CONFORMING:
        return code.dpl <= cpl
    return code.dpl == cpl


def _l1_privilege(level: Level) -> Iterator[Found]:
    stack = level.values.segment("ss")
    cpl = level.get("cpl")
    if cpl:
        yield "X-24", "cpl", f"CPL is {cpl}, and VMRUN needs 0"
    elif stack.present and stack.dpl:
        yield "X-24", "ss", f"SS has DPL {stack.dpl}, and VMRUN needs CPL 0"


def _flags(level: Level) -> Iterator[Found]:
    value = level.get("rflags")
    wrong = value & ~(RFLAGS.mask(*(word for _, word in RFLAGS.items())) | 3 << 12)
    if wrong:
        yield "X-25", "rflags", f"RFLAGS {value:#x} has reserved bits set ({wrong:#x})"
    if not value & 2:
        yield "X-25", "rflags", f"RFLAGS {value:#x} has bit 1 clear"
    if value & _VM and (level.long_mode or level.name == "L1"):
        where = "in long mode" if level.long_mode else "in code that executed VMRUN"
        yield "X-25", "rflags", f"RFLAGS {value:#x} has VM set {where}"


def _debug(level: Level) -> Iterator[Found]:
    for name, clear in (("dr6", _DR6_CLEAR), ("dr7", _DR7_CLEAR)):
        value = level.get(name)
        if value & clear:
            wrong = value & clear
            yield "X-26", name, f"{name.upper()} {value:#x} has reserved bits set ({wrong:#x})"


def _pat(level: Level) -> Iterator[Found]:
    for name in ("pat", "g_pat"):
        value = level.get(name)
        if not pat_valid(value):
            yield "X-27", name, f"the PAT {value:#x} has a memory type that does not exist"


_EVERYWHERE: tuple[_Check, ...] = (
    *(_mode, _reserved, _addresses, _privilege, _flags, _debug, _pat),
)
_OF_VCPU: tuple[_Check, ...] = (_more_addresses, _system_segments)
_OF_L1: tuple[_Check, ...] = (_l1_privilege,)

_INT_CTL = bits.INT_CTL.mask(*(word for _, word in bits.INT_CTL.items())) | 0xF_00FF
_V_NMI, _NMI = bits.INT_CTL.mask("V_NMI_ENABLE"), bits.INTERCEPTS.mask("NMI")


_WIDEST = 52
_TOO_WIDE = "has more than 52 bits"
_IOIO, _MSR = (bits.INTERCEPTS.mask(name) for name in ("IOIO_PROT", "MSR_PROT"))
_NP_ENABLE = bits.NESTED_CTL.mask("NP_ENABLE")


def _controls(control: Area, l2: Level) -> Iterator[Found]:
    if not control.get("asid"):
        yield "X-31", "asid", "L2's ASID is 0"
    intercepts = control.get("intercepts")
    for name, used in (
        ("nested_cr3", control.get("nested_ctl") & _NP_ENABLE),
        ("iopm_base_pa", intercepts & _IOIO),
        ("msrpm_base_pa", intercepts & _MSR),
    ):
        value = control.get(name)
        if used and value >> _WIDEST:
            yield "X-21", name, f"{name} {value:#x} {_TOO_WIDE}"
    yield from _int_ctl(control)
    yield from _event(control, l2)


def _int_ctl(control: Area) -> Iterator[Found]:
    value = control.get("int_ctl")
    if value & ~_INT_CTL:
        wrong = value & ~_INT_CTL
        yield "X-28", "int_ctl", f"int_ctl {value:#x} has reserved bits set ({wrong:#x})"
    if value & _V_NMI and not control.get("intercepts") & _NMI:
        yield "X-28", "int_ctl", f"int_ctl {value:#x} has V_NMI_ENABLE, and NMI is not intercepted"


_EXTERNAL, _NMI_TYPE, _EXCEPTION, _SOFTWARE = 0, 2, 3, 4
_EVENT_RESERVED = 0x7FFF_F000
_NO_EXCEPTION = frozenset({2, 15, 20, *range(22, 28), *range(31, 256)})
_BOUND = 5


def _event(control: Area, l2: Level) -> Iterator[Found]:
    event = control.get("event_inj")
    if not event & bits.EVENT_VALID:
        return
    kind, vector = event >> 8 & 7, event & 0xFF
    why = ""
    if kind not in (_EXTERNAL, _NMI_TYPE, _EXCEPTION, _SOFTWARE):
        why = f"type {kind} is reserved"
    elif kind == _EXCEPTION and vector in _NO_EXCEPTION:
        why = f"vector {vector} is no exception"
    elif kind == _EXCEPTION and vector == _BOUND and l2.code64:
        why = "there is no #BR in 64-bit mode"
    elif event & _EVENT_RESERVED:
        why = f"reserved bits are set ({event & _EVENT_RESERVED:#x})"
    if why:
        yield "X-29", "event_inj", f"event_inj {event:#x}: {why}"


class _Tables:
    """PDPTEs: those that the stream has, and those in guest memory."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @cached_property
    def _read(self) -> Callable[[int, int], bytes] | None:
        from qemu_svm.memory.memory import GuestMemory
        from qemu_svm.stream.ram.read import read_ram

        try:
            return GuestMemory(self._machine, read_ram(self._machine.stream)).physical.read
        except SvmStreamError:
            return None  # damage is reported where it is found

    def entries(self, level: Level, table: int, place: str = "") -> Iterator[Found]:
        """Check the four PDPTEs of a level; nothing unless it pages with PAE."""
        if not level.pae:
            return
        whose = f"{level.name}'s " if level.name else ""
        if not place and "pdptr0" in level.values:
            for number in range(4):
                name = f"pdptr{number}"
                if _bad_pdpte(level.get(name)):
                    words = f"{whose}PDPTE {number} {level.get(name):#x} has reserved bits set"
                    yield "X-30", level.place(name), words
            return
        where = table & 0xFFFF_FFE0
        try:
            data = self._read(where, 32) if self._read is not None else b""
        except SvmStreamError:
            return  # no memory, or not read
        for number in range(len(data) // 8):
            entry = int.from_bytes(data[8 * number : 8 * number + 8], "little")
            if _bad_pdpte(entry):
                words = f"{whose}PDPTE {number} at {where + 8 * number:#x} in memory"
                text = f"{words}, {entry:#x}, has reserved bits set"
                yield "X-30", place or level.place("cr3"), text


def _bad_pdpte(entry: int) -> bool:
    return bool(entry & 1 and entry & _PDPTE_RESERVED)
