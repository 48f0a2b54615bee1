"""The verdict on a simulated restore, in words.

A restore is right if L2 runs with L2's registers and L1 gets back its own.  Otherwise
the verdict lists what is wrong, whose value it is, and which step wrote it last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from qemu_svm.findings.impossible import wrong_mode
from qemu_svm.findings.rules import RULES
from qemu_svm.model.area import Area, Content
from qemu_svm.model.kvm.vcpu import RunEnd
from qemu_svm.model.simulate import Result, Simulation, content_text
from qemu_svm.x86.registers import CR0
from qemu_svm.x86.segments import TABLES, Segment


class Verdict(StrEnum):
    """Result of a restore."""

    RIGHT = "right"
    WRONG = "wrong"
    """Accepted, but L2 or L1 continues with wrong registers."""
    REFUSED = "refused"
    BROKEN = "broken"
    """Accepted, but the vCPU cannot run."""
    OPEN = "open"
    """The plan does not run the vCPU."""


@dataclass(frozen=True, slots=True)
class RegisterDifference:
    """One register that has a wrong value.

    :param level: ``L2`` or ``L1``: which one runs with it.
    :param wanted: the correct value.
    :param step: number of the step that wrote it last; 0 for the vCPU's reset.
    :param whose: ``L1`` or ``L2``, if the value is the register of that level.
    """

    level: str
    register: str
    value: Content
    wanted: Content
    step: int
    whose: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reasons.

    :param lines: the reasons in words.
    """

    verdict: Verdict
    lines: tuple[str, ...]
    differences: tuple[RegisterDifference, ...] = ()


_WORDS = {
    "cr3": "page tables: CR3",
    "rip": "instruction pointer: RIP",
    "rsp": "stack: RSP",
    "rax": "RAX",
    "efer": "EFER",
    "cr0": "CR0",
    "cr4": "CR4",
    "cs": "code segment: CS",
    "ss": "stack segment: SS",
    "gdtr": "GDT",
    "idtr": "IDT",
}
_L2 = (
    *("cr3", "rip", "rsp", "cr0", "cr4", "efer", "cs", "ss", "ds", "es", "gdtr", "idtr"),
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rflags"),
    *(f"r{number}" for number in range(8, 16)),
)
_L1 = (
    *("cr3", "rip", "rsp", "rax", "cr0", "cr4", "efer", "rflags"),
    *("cs", "ss", "ds", "es", "gdtr", "idtr"),
)
_ET = CR0.mask("ET")
_RFLAGS_FIXED = 2
_SVME = 1 << 12


def judge_restore(simulation: Simulation) -> Judgement:
    """Judge a simulated restore: compare the registers of L2 and L1 with the saved ones.

    A field of vmcb12 that L2 was given unchecked makes it wrong, however right the rest is.
    """
    found = _judged(simulation)
    unchecked = tuple(text for result in simulation.results for text in result.unchecked)
    if not unchecked:
        return found
    verdict = Verdict.WRONG if found.verdict in (Verdict.RIGHT, Verdict.OPEN) else found.verdict
    lines = [line for line in found.lines if line not in RIGHT]
    return Judgement(verdict, (*lines, *unchecked), found.differences)


def _judged(simulation: Simulation) -> Judgement:
    refused = [result for result in simulation.results if result.failed]
    runs = [result for result in simulation.results if result.outcome is not None]
    lines = list(refusals(simulation))
    if not runs:
        lines.append("The plan does not run the vCPU, so nothing was entered.")
        return Judgement(Verdict.REFUSED if refused else Verdict.OPEN, tuple(lines))
    outcome = runs[0].outcome
    assert outcome is not None
    if outcome.result in _BROKEN:
        lines.append(_broken(runs[0]))
        return Judgement(Verdict.BROKEN, tuple(lines))
    if outcome.result in _NOT_ENTERED:
        lines.append(_NOT_ENTERED[outcome.result])
        return Judgement(Verdict.REFUSED if refused else Verdict.RIGHT, tuple(lines))
    differences = tuple(_differences(simulation, runs[0]))
    lost = simulation.saved.guest_mode and outcome.level == "L1"
    if lost:
        lines.append(_LOST)
    lines += [_in_words(simulation, difference) for difference in differences]
    verdict = Verdict.WRONG if differences or lost else Verdict.RIGHT
    if outcome.result is RunEnd.SHUTDOWN:
        verdict = Verdict.BROKEN
        lines.append("The next #VMEXIT ends in a shutdown.")
    elif outcome.l1 is not None and wrong_mode(outcome.l1):
        verdict = Verdict.BROKEN
        lines.append(f"L1 gets back a state that no processor has: {wrong_mode(outcome.l1)}.")
    elif verdict is Verdict.RIGHT:
        verdict = Verdict.REFUSED if refused else verdict
        lines.append(_UNKNOWN if _never_told(simulation) else _RIGHT[outcome.level])
    return Judgement(verdict, tuple(lines), differences)


_RIGHT = {
    "L2": "L2 runs with its own registers, and L1 gets back those of the blob.",
    "L1": "The vCPU runs with its own registers; it was not in guest mode.",
}
RIGHT = frozenset(_RIGHT.values())
"""What is said of a restore that is right."""
_UNKNOWN = (
    "The vCPU runs with its own registers; SVME is set and no NESTED_STATE is put, so if it was in "
    "L2, L2's code continues in L1's context."
)
_NOT_ENTERED = {
    RunEnd.WAITS: "KVM_RUN waits for INIT or SIPI: nothing was entered.",
    RunEnd.SMI: "An SMI is pending: KVM_RUN enters SMM before L2.",
}
_LOST = (
    "L2's code would run in L1's context: the vCPU is not in guest mode, and nothing that L1 "
    "intercepts is intercepted."
)
_BROKEN = {
    RunEnd.INTERNAL_ERROR: "KVM_RUN ends with an internal error (emulation): L1's MSR bitmap "
    "is not in guest memory.",
    RunEnd.EFAULT: "KVM_RUN fails with EFAULT: the MMU for nested paging was destroyed.",
    RunEnd.EINVAL: "KVM_RUN fails with EINVAL: the vCPU waits for SIPI, and that is blocked.",
    RunEnd.RESET: "INIT is pending: KVM_RUN resets the vCPU, and L2 is gone.",
    RunEnd.EIO: "KVM_RUN fails with EIO: the MMU for nested paging was destroyed.",
    RunEnd.HANG: "KVM_RUN never returns: the MMU for nested paging was destroyed.",
    RunEnd.L2: "L2's next #VMEXIT becomes #GP in L2, since vmcb12 is not in guest memory: L1 does "
    "not get control back.",
}
_KILLED = "KVM kills the VM (EIO): EFER.LMA is set and CR4.PAE clear, which no processor can run."
_STUCK = "KVM_RUN never returns: vmcb12 is not in guest memory, so L2 cannot exit to L1."


def _broken(run: Result) -> str:
    assert run.outcome is not None
    if run.state.dead:
        return _KILLED
    stuck = run.outcome.result is RunEnd.HANG and run.outcome.level == "L2"
    return _STUCK if stuck else _BROKEN[run.outcome.result]


def _never_told(simulation: Simulation) -> bool:
    # Whether the vCPU was in guest mode, nothing of what is put says.
    saved = simulation.saved
    told = any(result.step.name == "nested" for result in simulation.results)
    return not told and not saved.guest_mode and bool(saved.sregs.get("efer") & _SVME)


def refusals(simulation: Simulation) -> tuple[str, ...]:
    """Describe every ioctl that fails: which step, how and why."""
    return tuple(_refusal(result) for result in simulation.results if result.failed)


def _refusal(result: Result) -> str:
    rule = RULES.get(result.failed or "")
    why = f": {rule.fails_when}" if rule else ""
    step = f"Step {result.number} ({result.step.text})"
    return f"{step} fails with {result.errno}{why} [{result.failed}]"


def _differences(simulation: Simulation, run: Result) -> Iterator[RegisterDifference]:
    outcome, saved = run.outcome, simulation.saved
    assert outcome is not None
    l1 = saved.l1()
    if outcome.entry is not None:
        level = "L2" if saved.guest_mode else "L1"
        for name in _L2:
            wanted = _wanted(saved.sregs, saved.regs, name)
            if wanted is not None:
                yield from _compare(level, name, outcome.entry, wanted, l1)
    if outcome.l1 is not None:
        for name in _L1:
            yield from _compare("L1", name, outcome.l1, _l1_wanted(l1, name), saved.sregs)


def _wanted(sregs: Area, regs: object, name: str) -> Content | None:
    if name in sregs:
        return sregs.content(name)
    assert isinstance(regs, dict)
    value = regs.get(name)
    return value | _RFLAGS_FIXED if name == "rflags" and isinstance(value, int) else value


def _l1_wanted(l1: Area, name: str) -> Content:
    value = l1.content(name)
    if isinstance(value, int):
        fixed = {"rflags": _RFLAGS_FIXED, "efer": _SVME, "cr0": 1}
        return value | fixed.get(name, 0)
    return value


def _compare(
    level: str, name: str, found: Area, wanted: Content, other: Area
) -> Iterator[RegisterDifference]:
    value = found.content(name) if name in found else 0
    if name == "rflags" and isinstance(value, int):
        value |= _RFLAGS_FIXED
    if _same(name, value, wanted):
        return
    belongs = name in other and _same(name, value, other.content(name))
    whose = ("L1" if level == "L2" else "L2") if belongs else ""
    yield RegisterDifference(level, name, value, wanted, found.writer(name).step, whose)


def _same(name: str, one: Content, two: Content) -> bool:
    if isinstance(one, Segment) and isinstance(two, Segment):
        if name in TABLES:
            return (one.base, one.limit) == (two.base, two.limit)
        mask = 0xFFE  # KVM sets the accessed bit
        return (one.selector, one.base, one.limit, one.attrib & mask) == (
            two.selector,
            two.base,
            two.limit,
            two.attrib & mask,
        )
    if name == "cr0" and isinstance(one, int) and isinstance(two, int):
        return one | _ET == two | _ET  # hard-wired to 1
    return one == two


def _in_words(simulation: Simulation, difference: RegisterDifference) -> str:
    words = _WORDS.get(difference.register, difference.register.upper())
    whose = f"{difference.whose}'s" if difference.whose else "a wrong"
    by = "left from the vCPU's reset"
    if difference.step:
        step = simulation.results[difference.step - 1].step
        by = f"written by step {difference.step} ({step.text})"
    kind, colon, register = words.partition(": ")
    name = register if colon else ""
    of = difference.register
    value = f"{content_text(difference.value, of)} instead of {content_text(difference.wanted, of)}"
    middle = f"{kind}: {name} {value}" if colon else f"{words}: {value}"
    return f"{difference.level} would run with {whose} {middle}, {by}"
