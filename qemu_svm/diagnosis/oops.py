"""WARN, BUG and oops of a kernel's log, by the functions that they name.

::

    WARNING: CPU: 1 PID: 1234 at arch/x86/kvm/svm/nested.c:1780 svm_set_nested_state+0x2d5/0x310 [kvm_amd]
    WARNING: arch/x86/kvm/svm/nested.c:1780 at svm_set_nested_state+0x2d5/0x310 [kvm_amd], CPU#1: qemu/1234
    BUG: kernel NULL pointer dereference, address: 0000000000000000
    RIP: 0010:0x0
    Call Trace:
     kvm_mmu_page_fault+0x1a2/0x5d0 [kvm]

Source: Linux ``kernel/panic.c`` ``__warn``, ``arch/x86/kernel/dumpstack.c`` and
``arch/x86/mm/fault.c`` (5.10 to 7.2).
"""  # noqa: E501 - lines of a log

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_KINDS = (
    ("WARN", re.compile(r"\bWARNING: (?:CPU: \d|\S+:\d+ at )")),
    ("NULL pointer", re.compile(r"\bBUG: (?:unable to handle )?(?:kernel )?NULL pointer deref")),
    ("page fault", re.compile(r"\bBUG: unable to handle (?:page fault|kernel paging)")),
    ("BUG", re.compile(r"\bkernel BUG at |\bBUG: (?!workqueue)")),
    ("general protection fault", re.compile(r"\bgeneral protection fault")),
    ("lockup", re.compile(r"\b(?:soft lockup|hard LOCKUP|detected stall|blocked for more than)")),
    ("panic", re.compile(r"\bKernel panic - not syncing")),
)  # fmt: skip
_WORDS = re.compile(r"BUG|WARN|fault|lockup|LOCKUP|stall|panic|blocked|Linux version|ainted")
_PLACE = re.compile(
    r"\bat (?P<file>[\w./-]+\.[ch]):(?P<line>\d+)|WARNING: (?P<file2>[\w./-]+\.[ch]):(?P<line2>\d+)"
)
_FUNCTION = re.compile(
    r"(?<![\w.])(?P<name>[a-zA-Z_][\w.]{2,80})\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[(?P<module>\w+)\])?"
)
_RIP = re.compile(r"\bRIP: [0-9a-f]{4}:(?:(?P<zero>0x0)\b|(?P<name>[a-zA-Z_][\w.]*)\+0x)")
_NO_RIP = re.compile(r"Unable to access opcode bytes at (?:RIP )?0xffffffffffffffd6|Bad RIP value")
_END = re.compile(r"---\[ end (?:trace|Kernel panic)")
_LONGEST = 120
_KERNEL = re.compile(
    r"(?:Linux version |Not tainted |Tainted: [ ()\[\]=,\w-]{0,80}? )"
    r"(?P<release>\d+\.\d+[\w.+~-]*)"
)
_OURS = re.compile(r"svm|nested|kvm|avic|vmcb|x86_emul|paging(?:32|64)|npt", re.IGNORECASE)


@dataclass(slots=True)
class Oops:
    """One WARN, BUG or oops.

    :param place: file and line in the kernel's source, if it is printed.
    :param functions: RIP's first, then those of the call trace.
    :param null_call: the kernel called a function at address 0.
    """

    line: int
    kind: str
    text: str
    place: str = ""
    functions: tuple[str, ...] = ()
    null_call: bool = False

    @property
    def concerns_kvm(self) -> bool:
        """Whether it names KVM."""
        return any(_OURS.search(one) for one in (self.place, *self.functions[:_DEEP]))


_DEEP = 24


class OopsReader:
    """Collects them; each ends with its end mark, with the next or after some lines.

    :param limit: how many are kept.
    """

    def __init__(self, limit: int) -> None:
        self.found: list[Oops] = []
        self.release: tuple[int, str] | None = None
        self._limit = limit
        self._left = 0

    def read(self, line: int, text: str) -> bool:
        """Read a line; return whether it is part of one."""
        if not self._left and not _WORDS.search(text):
            return False
        kernel = _KERNEL.search(text)
        if kernel is not None and self.release is None:
            self.release = (line, kernel["release"])
        kind = next((name for name, pattern in _KINDS if pattern.search(text)), None)
        if kind is not None and not (kind == "panic" and self._left):
            if len(self.found) >= self._limit:
                self._left = 0
                return True
            self.found.append(Oops(line, kind, text.strip()[:200]))
            self._left = _LONGEST
            self._learn(text)
            return True
        if not self._left:
            return False
        self._left -= 1
        if _END.search(text):
            self._left = 0
            return True
        return self._learn(text)

    def _learn(self, text: str) -> bool:
        one = self.found[-1]
        place = _PLACE.search(text)
        if place is not None and not one.place:
            one.place = f"{place['file'] or place['file2']}:{place['line'] or place['line2']}"
        rip = _RIP.search(text)
        if (rip is not None and rip["zero"]) or _NO_RIP.search(text):
            one.null_call = True
        # "?" marks what was on the stack and perhaps not called.
        names = tuple(found["name"] for found in _FUNCTION.finditer(text) if " ? " not in text)
        if len(one.functions) < _LONGEST:
            # A WARN names its function twice.
            one.functions += tuple(name for name in names if name not in one.functions[-1:])
        return bool(names) or rip is not None or place is not None


_FUNCTIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("svm_set_nested_state", "nested_svm_load_cr3"), "K-23"),
    (("svm_write_tsc_multiplier", "nested_svm_vmexit", "nested_vmcb02_prepare_control"), "K-24"),
    (("svm_free_nested", "svm_leave_nested", "svm_vcpu_free", "kvm_vcpu_reset"), "K-15"),
    (("nested_svm_get_tdp_pdptr",), "K-05"),
    (("svm_copy_lbrs", "svm_update_lbrv", "svm_enable_lbrv"), "K-03"),
    (("avic_inhibit", "avic_vcpu", "avic_set", "avic_refresh", "avic_activate"), "K-16"),
    (("svm_set_x2apic_msr_interception", "x2avic"), "K-17"),
    (("reset_guest_paging_metadata", "kvm_calc_cpu_role", "init_kvm_softmmu", "paging_tmpl",
      "kvm_init_shadow_npt_mmu", "nested_svm_init_mmu_context"), "SV-18"),
)  # fmt: skip
_EMULATES = ("x86_emulate", "emulator_", "kvm_mmu_page_fault", "translate_nested_gpa", "em_",
             "kvm_read_guest_virt", "kvm_fetch_guest_virt", "init_emulate", "handle_",
             "vcpu_enter_guest", "svm_handle_exit", "svm_vcpu_enter", "svm_invoke_exit",
             "kvm_arch_vcpu_ioctl_run", "npf_interception")  # fmt: skip


_WALKS = ("load_pdptrs", "nested_svm_load_cr3", "svm_set_nested_state", "kvm_translate_gpa",
          "translate_nested_gpa", "svm_get_nested_state_pages", "mmu_translate")  # fmt: skip


def rules_of(one: Oops) -> Iterator[str]:
    """Ids of the rules about bugs that show like this, by the functions that are named."""
    names = one.functions
    null = one.null_call or (one.kind == "NULL pointer" and not names)
    walks = one.kind == "NULL pointer" and any(name.startswith(_WALKS) for name in names[:6])
    emulates = not names or any(name.startswith(_EMULATES) for name in names)
    if walks or (null and emulates):
        yield "O-28"
    for words, rule in _FUNCTIONS:
        # Of a WARN the first function is where it is; a deeper one only called it.
        depth = names[:2] if one.kind == "WARN" else names[:6]
        if any(name.startswith(words) for name in depth):
            yield rule
