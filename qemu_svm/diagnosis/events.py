"""KVM's tracepoints about nested SVM: what L1 asked for, what KVM refused, how L2 left.

::

    kvm_nested_vmenter: rip: 0x100252 vmcb: 0x108000 nested_rip: 0x1002bf int_ctl: 0x0 event_inj: 0x0 nested_npt=y nested_cr3: 0x105000
    kvm_nested_vmrun: rip: 0x10024f vmcb: 0x108000 nrip: 0x1002bf int_ctl: 0x0 event_inj: 0x0 npt: on
    kvm_nested_intercepts: cr_read: 0000 cr_write: 0000 excp: 00000000 intercepts: 00040000 00000001 00000000
    kvm_nested_vmenter_failed: control->asid == 0
    kvm_nested_vmexit: vcpu 0 reason cpuid rip 0x1002bd info1 0x0 info2 0x0 intr_info 0x0 error_code 0x0

``kvm_nested_vmrun`` became ``kvm_nested_vmenter`` in 6.0.  A reason is a name or, for an entry
that the processor refused, 0xffffffff (or ``invalid_guest_state``).

Source: Linux ``arch/x86/kvm/trace.h`` (5.10, 6.1, 6.12, 7.2), traces of the same kernels,
trace-cmd's KVM plugin.
"""  # noqa: E501 - lines of a log

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from qemu_svm.nested import bits

_FAILED = re.compile(r"\bkvm_nested_vmenter_failed: +(?P<why>\S.{0,400})")
_ENTER = re.compile(r"\bkvm_nested_vm(?:enter|run): +(?P<rest>\S.{0,400})")
_INTERCEPTS = re.compile(r"\bkvm_nested_intercepts: +(?P<rest>\S.{0,300})")
_EXIT = re.compile(
    r"\bkvm_nested_vmexit(?P<inject>_inject)?: +(?:vcpu:? \d{1,5},? )?(?P<rest>\S.{0,400})"
)
_REASON = re.compile(r"\breason:? +(?P<reason>0x[0-9a-f]+|-1|[A-Za-z_]\w*(?: excp)?)")
_HEX = r"\b{}:? +(?:0x)?([0-9a-f]{{1,16}})\b"
_RIP, _VMCB, _NRIP, _INT_CTL, _EVENT, _CR3, _INFO1, _INFO2 = (
    re.compile(_HEX.format(name))
    for name in ("rip", "vmcb", "n(?:ested_)?rip", "int_ctl", "event_inj", "nested_cr3",
                 "(?:info1|ext_inf1)", "(?:info2|ext_inf2)")
)  # fmt: skip
_NPT = re.compile(r"\b(?:nested_)?npt(?:=|: ?)(y|n|on|off)\b")
_WORDS = re.compile(
    r"\bcr_read: +([0-9a-f]+) cr_write: +([0-9a-f]+) excp: +([0-9a-f]+) "
    r"intercepts: +([0-9a-f]+) ([0-9a-f]+)(?: ([0-9a-f]+))?"
)
_VMCS = re.compile(r"\bvmcs:|\bnested_ept")
_INVALID = frozenset({"0xffffffff", "0xffffffffffffffff", "-1", "invalid_guest_state"})

EXPRESSIONS: tuple[tuple[str, str], ...] = (
    ("INTERCEPT_VMRUN", "C-01"),
    (r"\basid\b", "C-02"),
    (r"nested_cr3|guest_cr3", "C-03b"),
    (r"npt_enabled|NP_ENABLE|MISC_ENABLE_NP", "C-03"),
    (r"msrpm|MSRPM", "C-04"),
    (r"iopm|IOPM", "C-05"),
    (r"tlb_ctl", "C-06"),
    (r"V_NMI|INTERCEPT_NMI", "C-07"),
    (r"event_inj|evtinj|EVTINJ", "C-08"),
    (r"EFER_SVME", "S-01"),
    (r"X86_CR0_CD|X86_CR0_NW", "S-02"),
    (r"cr0\s*&\s*~|cr0.*>>\s*32|upper_32_bits\(.*cr0", "S-03"),
    (r"\bdr[67]\b|kvm_dr[67]_valid", "S-04"),
    (r"X86_CR4_PAE", "S-05"),
    (r"X86_CR0_PE", "S-06"),
    (r"SELECTOR_L_MASK|SELECTOR_DB_MASK|cs\.attrib", "S-09"),
    (r"\bcr3\b", "S-07"),
    (r"\bcr4\b", "S-10"),
    (r"\befer\b", "S-11"),
)
"""Words of a check in KVM's source, as ``kvm_nested_vmenter_failed`` prints it, and the rule.

The first that is found counts.
"""

_EXPRESSIONS = tuple((re.compile(words), rule) for words, rule in EXPRESSIONS)


def rule_of(expression: str) -> str | None:
    """Return the rule of a check by its words in KVM's source; None if it is not known."""
    return next((rule for words, rule in _EXPRESSIONS if words.search(expression)), None)


@dataclass(frozen=True, slots=True)
class Enter:
    """An entry into L2, by VMRUN or by KVM_SET_NESTED_STATE."""

    line: int
    rip: int | None
    vmcb: int | None
    nested_rip: int | None
    int_ctl: int | None
    event_inj: int | None
    npt: bool | None
    nested_cr3: int | None


@dataclass(slots=True)
class Events:
    """The tracepoints of a log.

    :param failed: expression to line of the first and number.
    :param enters: the first and the last entry.
    :param exits: reasons and how often.
    :param invalid: line of the first entry that the processor refused, and L2's RIP.
    :param odd: entries with an event to inject or AVIC bits.
    :param shutdown: line of the first shutdown of L2.
    :param no_vmrun: line of the first entry whose VMRUN intercept is clear.
    :param same: the longest run of equal exits: number, reason, RIP, line.
    :param intel: an entry with a VMCS.
    """

    count: int = 0
    failed: dict[str, tuple[int, int]] = field(default_factory=dict)
    first: Enter | None = None
    last: Enter | None = None
    odd: list[Enter] = field(default_factory=list)
    exits: Counter[str] = field(default_factory=Counter)
    invalid: tuple[int, int | None] | None = None
    shutdown: int | None = None
    no_vmrun: int | None = None
    same: tuple[int, str, int, int] = (0, "", 0, 0)
    intel: int | None = None
    _run: tuple[int, str, int, int, str] = (0, "", 0, 0, "")

    def read(self, line: int, text: str) -> bool:
        """Read a line; return whether it is one of these events."""
        if "kvm_nested_" not in text:
            return False
        found = (
            self._failed(line, text)
            or self._enter(line, text)
            or self._intercepts(line, text)
            or self._exit(line, text)
        )
        self.count += found
        return found

    def _failed(self, line: int, text: str) -> bool:
        found = _FAILED.search(text)
        if found is None:
            return False
        words = found["why"].strip()
        first, times = self.failed.get(words, (line, 0))
        if words in self.failed or len(self.failed) < _MANY:
            self.failed[words] = (first, times + 1)
        return True

    def _enter(self, line: int, text: str) -> bool:
        found = _ENTER.search(text)
        if found is None:
            return False
        rest = found["rest"]
        if _VMCS.search(rest):
            self.intel = self.intel or line
            return True
        npt = _NPT.search(rest)
        rip, vmcb, nrip, int_ctl, event, cr3 = (
            _number(pattern, rest) for pattern in (_RIP, _VMCB, _NRIP, _INT_CTL, _EVENT, _CR3)
        )
        enter = Enter(line, rip, vmcb, nrip, int_ctl, event,
                      None if npt is None else npt[1] in ("y", "on"), cr3)  # fmt: skip
        self.first = self.first or enter
        self.last = enter
        odd = (int_ctl or 0) & _AVIC or (event or 0) >> 31
        if odd and len(self.odd) < _MANY:
            self.odd.append(enter)
        return True

    def _intercepts(self, line: int, text: str) -> bool:
        found = _INTERCEPTS.search(text)
        words = _WORDS.search(text) if found is not None else None
        if words is None:
            return found is not None
        read, write, exceptions, word3, word4 = (int(words[at], 16) for at in range(1, 6))
        value = read | write << 16 | exceptions << 64 | word3 << 96 | word4 << 128
        if not value & bits.INTERCEPTS.mask("VMRUN"):
            self.no_vmrun = self.no_vmrun or line
        return True

    def _exit(self, line: int, text: str) -> bool:
        found = _EXIT.search(text)
        if found is None:
            return False
        reason = _REASON.search(found["rest"])
        name = reason["reason"] if reason is not None else "?"
        if not found["inject"]:
            if name in self.exits or len(self.exits) < _MANY:
                self.exits[name] += 1
            self._repeated(line, name, found["rest"])
        rip = _number(_RIP, found["rest"])
        if name in _INVALID and self.invalid is None:
            self.invalid = (line, rip)
        if name.lower() in ("shutdown", "0x7f", "triple_fault") and self.shutdown is None:
            self.shutdown = line
        return True

    def _repeated(self, line: int, name: str, rest: str) -> None:
        rip = _number(_RIP, rest) or 0
        key = f"{name} {rip} {_number(_INFO1, rest)} {_number(_INFO2, rest)}"
        number, _, _, start, before = self._run
        self._run = (
            (number + 1, name, rip, start, key) if key == before else (1, name, rip, line, key)
        )
        if self._run[0] > self.same[0]:
            self.same = self._run[:4]


_MANY = 64
_AVIC = 0xC000_0000


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return None if found is None else int(found[1], 16)
