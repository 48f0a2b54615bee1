"""Members that the kernel or the processor leaves behind, and when that makes them incomparable.

Each rule names members, when it applies, and why.  Everything else that the model has must be
in the kernel's memory after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from qemu_svm.inside.layout import REGISTERS
from qemu_svm.inside.view import Inside
from qemu_svm.nested import bits
from qemu_svm.x86.registers import RFLAGS

_INVALID = (1 << 64) - 1  # exit code of a VMRUN that the processor refused
_INVALID_32 = (1 << 32) - 1  # the same, where KVM keeps 32 bits of it


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What happened to a vCPU before a look.

    :param ran: KVM_RUN entered a guest in this or an earlier step.
    :param code: a guest executed code of its own.
    :param changed: the members that it may have changed: :func:`places`.
    """

    ran: bool = False
    code: bool = False
    changed: frozenset[str] = frozenset()


FRESH = Circumstances()
"""Nothing was run."""


@dataclass(frozen=True, slots=True)
class Lazy:
    """One rule.

    :param names: patterns of members.
    :param applies: whether they may differ, from the kernel's memory.
    :param admits: which differences, from the member's name, the model's value and the kernel's,
        and the kernel's memory.
    """

    id: str
    names: tuple[str, ...]
    applies: Callable[[Inside, Circumstances], bool]
    reason: str
    admits: Callable[[str, Any, Any, Inside], bool] = lambda *_values: True

    def covers(self, name: str) -> bool:
        """Whether a member is one of the rule's."""
        return any(fnmatchcase(name, pattern) for pattern in self.names)


def _refused(seen: Inside, _circumstances: Circumstances) -> bool:
    code = seen.get("vmcb02.control.exit_code", seen.get("vmcb01.control.exit_code"))
    return code in (_INVALID, _INVALID_32)


def _register(number: int, name: str) -> Lazy:
    return Lazy(
        "L-01",
        (f"arch.{name}",),
        lambda seen, _circumstances: not seen.get("arch.regs_avail", 0) >> number & 1,
        "the VMCB has it until something asks for it: its bit in regs_avail is clear",
    )


_PLACES = {
    "regs": ("arch.{0}", "vmcb01.save.{0}", "vmcb02.save.{0}"),
    "sregs": ("arch.{0}", "vmcb01.save.{0}", "vmcb02.save.{0}"),
    "msr": ("arch.{0}", "nested.{0}", "vmcb01.save.{0}", "vmcb02.save.{0}"),
    "shared": ("vmcb01.save.{0}",),
    "ctl": ("nested.ctl.{0}", "vmcb02.control.{0}"),
}
_AT_ENTRY = frozenset({"rax", "rsp", "rip", "cr2", "dr6"})
_BACK = bits.INT_CTL.mask("V_IRQ", "V_GIF") | bits.V_TPR_MASK
_CACHED = ("nested.ctl.", "vmcb02.control.")
_ATTRIBUTES = 0xFFF
_RF = RFLAGS.mask("RF")
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "tr", "ldtr")
_SHADOW = ("vmcb01.control.int_state", "vmcb02.control.int_state")


def places(changed: Iterable[str]) -> frozenset[str]:
    """Return the members that have what a guest may have changed.

    :param changed: names of :mod:`qemu_svm.model.observed`.
    """
    found: set[str] = set()
    for name in changed:
        kind, _, register = name.partition(".")
        found.update(one.format(register) for one in _PLACES.get(kind, ()))
        if name == "shadow":
            found.update(_SHADOW)
    return frozenset(found)


def left_in_vmcbs(written: Iterable[str]) -> frozenset[str]:
    """Return the members that keep what a guest left, though an ioctl wrote the register.

    An ioctl writes some registers to ``vcpu->arch`` only; the VMCB gets them at the next entry
    (``svm_vcpu_run``).

    :param written: names of :mod:`qemu_svm.model.observed`.
    """
    registers = {name.partition(".")[2] for name in written} & _AT_ENTRY
    return frozenset(f"{vmcb}.save.{name}" for vmcb in ("vmcb01", "vmcb02") for name in registers)


RULES = (
    *(_register(number, name) for number, name in enumerate(REGISTERS)),
    Lazy(
        "L-02",
        ("vmcb02.save.*",),
        _refused,
        "the processor refused VMRUN: what it writes to the save area then is its own affair",
    ),
    Lazy(
        "L-03",
        ("vmcb02.save.*", "vmcb02.control.*"),
        lambda _seen, circumstances: circumstances.code,
        "a guest executed code of its own, which may have changed it",
    ),
    Lazy(
        "L-04",
        ("vmcb01.save.sysenter_cs",),
        lambda _seen, circumstances: circumstances.ran,
        "the processor keeps 32 bits of it",
    ),
    Lazy(
        "L-05",
        ("nested.ctl.int_ctl",),
        lambda _seen, circumstances: circumstances.ran,
        "KVM takes V_TPR, V_IRQ and V_GIF back from vmcb02, where the processor changes them",
        lambda _name, model, kernel, _seen: not (model ^ kernel) & ~_BACK,
    ),
    Lazy(
        "L-06",
        ("nested.ctl.int_state", "nested.ctl.next_rip"),
        lambda _seen, circumstances: circumstances.ran,
        "some updates take it back from vmcb02: then it is what vmcb02 has",
        lambda name, _model, kernel, seen: kernel == seen.get(name.replace(*_CACHED)),
    ),
    Lazy(
        "L-07",
        tuple(f"vmcb01.save.{name}" for name in _SEGMENTS),
        lambda _seen, circumstances: circumstances.ran,
        "of a segment's attributes the processor keeps 12 bits",
        lambda _name, model, kernel, _seen: [*model[:3], model[3] & _ATTRIBUTES] == kernel,
    ),
    Lazy(
        "L-08",
        ("nested.ctl.event_inj_err", "vmcb02.control.event_inj_err"),
        lambda _seen, circumstances: circumstances.ran,
        "if a fault of the host's ends the delivery of an exception, KVM injects it again, one "
        "without an error code with 0 (svm_complete_interrupts)",
        lambda _name, _model, kernel, _seen: kernel == 0,
    ),
    Lazy(
        "L-09",
        ("vmcb01.save.rflags",),
        lambda _seen, circumstances: circumstances.code,
        "RF is cleared when an instruction is done, and when KVM skips one",
        lambda _name, model, kernel, _seen: kernel == model & ~_RF,
    ),
)
"""All rules.  Not compared at all: addresses of the host, the TSC, and controls that only the
processor writes; the controls of vmcb02 that KVM merges, while L1 runs."""


def covering(name: str, model: Any, seen: Inside, circumstances: Circumstances) -> Lazy | None:
    """Return the rule by which a member may differ now, or None.

    :param model: what the model expects in it.
    """
    if name in circumstances.changed:
        return next(rule for rule in RULES if rule.id == "L-03")
    for rule in RULES:
        if (
            rule.covers(name)
            and rule.applies(seen, circumstances)
            and rule.admits(name, model, seen[name], seen)
        ):
            return rule
    return None
