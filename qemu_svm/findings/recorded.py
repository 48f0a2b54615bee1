"""A recorded put held against what a model, or another kernel, answers to the same bytes.

The first difference counts: what follows may be its consequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qemu_svm.kvm import layouts
from qemu_svm.machine import Vcpu
from qemu_svm.machine.recorded import Given, RecordedPut
from qemu_svm.model.decode import observed
from qemu_svm.model.kernels import derive
from qemu_svm.model.kernels.release import parse_if_any
from qemu_svm.model.observed import Observed, comparable, flat
from qemu_svm.model.plans import WITHOUT_EFFECT, Step
from qemu_svm.model.profile import Profile
from qemu_svm.model.recorded import record_of, unreadable
from qemu_svm.model.saved import from_vcpu
from qemu_svm.model.simulate import Simulation, content_text
from qemu_svm.nested.state import vmcb_fields
from qemu_svm.rules import Finding, Rule, RuleKind, Severity
from qemu_svm.x86.msrs import NUMBERS

_ROWS = (
    ("X-14", Severity.ERROR, "an ioctl of the recorded put failed",
     "the state that it carries is not set", "see why the kernel refuses it (svmstream simulate)",
     "docs/state.md"),
    ("X-15", Severity.WARNING, "KVM's answer in the recording is not the model's",
     "the recording was made on another kernel or host, or the model or the log is wrong",
     "give the kernel that was recorded with --kernel", "docs/state.md"),
    ("X-16", Severity.ERROR, "the recorded put does not carry the saved state",
     "the vCPU continues with other values", "put the values that were saved", "docs/state.md"),
    ("X-17", Severity.WARNING, "the recording lacks calls or their data",
     "the put is judged without them", "record again with a larger buffer", "docs/state.md"),
    ("X-18", Severity.INFO, "a kernel lacks what the recorded put uses",
     "a VMM that asks KVM first puts the state without it; so it is judged there",
     "see what the VMM does on such a kernel: record it there", "docs/state.md"),
)  # fmt: skip
RECORDED: tuple[Rule, ...] = tuple(
    Rule(rule, severity, RuleKind.CONSISTENCY, when, means, do, source)
    for rule, severity, when, means, do, source in _ROWS
)
_RULES = {rule.id: rule for rule in RECORDED}
_GET = {"SREGS2": "SREGS"}
"""Structures that are decoded as another one."""
_NOT_COMPARED = ("nested.size",)
_MOST = 16
_MSRS = frozenset(NUMBERS.values())
"""What the model has."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to one step.

    :param state: afterwards.
    :param every_msr: it is a kernel's answer; a model does not have every MSR.
    """

    errno: str | None
    state: Observed
    every_msr: bool = True


@dataclass(frozen=True, slots=True)
class RecordedDifference:
    """Where a recording and an answer part.

    :param step: number of the step; ``record`` is that of the ioctl in the recording.
    :param ioctl: its name, without ``KVM_``.
    :param name: ``errno``, or a part of the state that the recording reads afterwards.
    :param recorded: what the recording has; ``answer`` what was answered here.
    """

    step: int
    record: int
    ioctl: str
    name: str
    recorded: Any
    answer: Any


def answers_of(simulation: Simulation) -> tuple[Answer, ...]:
    """Return what the model answers."""
    split = simulation.kernel.split
    return tuple(
        Answer(one.errno, flat(one.state, split=split), every_msr=False)
        for one in simulation.results
    )


def first_difference(
    put: RecordedPut, steps: Sequence[Step], answers: Sequence[Answer]
) -> RecordedDifference | None:
    """Return the first difference between a recorded put and the answers to its steps.

    What the recording reads is compared if it was set before, and if the vCPU cannot have run in
    between: in a recording without KVM_RUN that is not known, and only results are compared.

    :param answers: one for each of ``steps``, or for the first of them.
    """
    set_before: set[str] = set()
    calls = {call.record: call for call in put.calls}
    for number, (step, answer) in enumerate(zip(steps, answers, strict=False), 1):
        call = calls.get(record_of(step))
        if call is None:
            continue
        errno, number_of_msr = call.errno, refused_msr(call)
        if number_of_msr is not None:
            errno = "EINVAL"
        # The model knows nothing of what has no effect on nested state.
        unknown = step.name in WITHOUT_EFFECT or (
            number_of_msr is not None and not answer.every_msr and number_of_msr not in _MSRS
        )
        if errno != answer.errno and not (unknown and answer.errno is None):
            return RecordedDifference(number, call.record, call.name, "errno", errno, answer.errno)
        set_before.add(call.name.removeprefix("SET_"))
        if put.ran is not None:
            found = _read_differently(call, answer.state, number, set_before)
            if found is not None:
                return found
    return None


def refused_msr(call: Given) -> int | None:
    """Return the number of the MSR at which SET_MSRS stopped; None if it took all.

    KVM returns how many it has taken; a replay and the model call it EINVAL.
    """
    if call.name != "SET_MSRS" or call.errno is not None:
        return None
    head, size = layouts.MSRS.size, layouts.MSR_ENTRY.size
    at = head + call.taken * size
    asked = int.from_bytes(call.data[:4], "little")
    if not 0 <= call.taken < asked or len(call.data) < at + size:
        return None
    return int.from_bytes(call.data[at : at + 4], "little")


def _read_differently(
    call: Given, state: Observed, number: int, set_before: set[str]
) -> RecordedDifference | None:
    for read in call.read:
        if read.name not in set_before:
            continue
        for name, value in _decoded(_GET.get(read.name, read.name), read.data).items():
            if name not in state or name in _NOT_COMPARED:
                continue
            # A kernel's answer has the bits that KVM makes up, a model's has not.
            wanted, found = comparable(name, value), comparable(name, state[name])
            if found != wanted:
                return RecordedDifference(
                    number, read.record, f"GET_{read.name}", name, wanted, found
                )
    return None


def _decoded(name: str, data: bytes) -> Mapping[str, Any]:
    try:
        return observed({name: data.hex()})
    except ValueError:
        return {}  # cut


def recorded_findings(vcpu: Vcpu, saved: Vcpu | None) -> Iterator[Finding]:
    """Find what is wrong with a recorded put by itself, and by the state that was saved.

    :param saved: the vCPU that the put was to restore; None if it is not known.
    """
    put = vcpu.put
    if put is None:
        return
    name = f"vCPU {vcpu.index}"
    for call in put.failed:
        yield _RULES["X-14"].finding(
            f"{name}: record {call.record}: KVM_{call.name} failed with {call.errno}"
        )
    for call in put.calls:
        stopped = refused_msr(call)
        if stopped is not None:
            yield _RULES["X-14"].finding(
                f"{name}: record {call.record}: KVM_SET_MSRS stopped at MSR {stopped:#x}: "
                f"{call.taken} of {int.from_bytes(call.data[:4], 'little')} are set"
            )
    lacking = unreadable(put)
    if put.lost or lacking:
        words = [f"{put.lost} calls are lost"] if put.lost else []
        words += [
            f"record {call.record}: KVM_{call.name} has not all of its data" for call in lacking[:8]
        ]
        yield _RULES["X-17"].finding(f"{name}: {'; '.join(words)}")
    if saved is not None:
        for one in apart_from_saved(vcpu, saved)[:_MOST]:
            yield _RULES["X-16"].finding(f"{name}: {one}")


def adapted_findings(vcpu: Vcpu, lacking: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Tell which kernels lack what a recorded put uses.

    :param lacking: the kernels by what they lack.
    """
    for what, kernels in lacking.items():
        yield _RULES["X-18"].finding(
            f"vCPU {vcpu.index}: the kernel does not have {what}; judged without it, as a VMM puts "
            "the state that asks",
            kernels=tuple(kernels),
        )


def recorded_kernel(vcpu: Vcpu, named: Sequence[Profile]) -> tuple[Profile, ...]:
    """Return the profile of the kernel that was recorded; none if it is not known.

    :param named: kernels that the reader has named: of one it is assumed.
    """
    release = "" if vcpu.put is None else vcpu.put.release
    found = parse_if_any(release) if release else None
    profile = None if found is None else derive.profile_of(found)
    if profile is not None:
        return (profile,)
    return tuple(named) if len(named) == 1 and vcpu.put is not None else ()


def differs_from_model(
    vcpu: Vcpu, steps: Sequence[Step], simulation: Simulation
) -> Iterator[Finding]:
    """Find the first difference between KVM's answers in a recording and the model's."""
    if vcpu.put is None:
        return
    found = first_difference(vcpu.put, steps, answers_of(simulation))
    if found is not None:
        yield _RULES["X-15"].finding(
            f"vCPU {vcpu.index}: {difference_words(found, simulation.kernel.name)}",
            kernels=(simulation.kernel.name,),
        )


def difference_words(found: RecordedDifference, kernel: str) -> str:
    """Return a difference as a sentence.

    :param kernel: whose answer it is.
    """
    where = f"record {found.record}: KVM_{found.ioctl}"
    if found.name == "errno":
        said = [
            f"fails with {one}" if one else "succeeds" for one in (found.recorded, found.answer)
        ]
        return f"{where} {said[0]} in the recording and {said[1]} in {kernel}"
    return (
        f"{where} returned {found.name} {_text(found.recorded)}, {kernel} has {_text(found.answer)}"
    )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(f"{one:#x}" for one in value) + "]"
    return f"{value:#x}" if isinstance(value, int) else str(value)


_OF = {
    "sregs": ("SET_SREGS", "SET_SREGS2"),
    "nested": ("SET_NESTED_STATE",),
    "regs": ("SET_REGS",),
    "msrs": ("SET_MSRS",),
    "debugregs": ("SET_DEBUGREGS",),
    "mp_state": ("SET_MP_STATE",),
}
_STRUCTURES = {"sregs": "SREGS", "regs": "REGS", "msrs": "MSRS"}
"""What a VMM has to put, whatever the values are."""
_PAT = 0x0007040600070406


def apart_from_saved(vcpu: Vcpu, saved: Vcpu) -> tuple[str, ...]:
    """Tell what of a saved vCPU a recorded put does not restore, in the order of the records.

    Values by name; the nested state field by field.  What came before the put counts, as far as
    the recording shows it.
    """
    put = vcpu.put
    if put is None:
        return ()
    calls = (*put.before, *put.calls)
    found: list[tuple[int, str]] = []
    lost = _nested_lost(put, saved)
    if lost:
        found.append((0, lost))
    ours, theirs = from_vcpu(vcpu), from_vcpu(saved)
    for kind, names in _OF.items():
        mine = [call for call in calls if call.name in names]
        taken = [call for call in mine if call.data and call.errno is None]
        if taken:
            for name, words in _apart(kind, vcpu, saved):
                call = _setter(calls if name == "efer" else taken, kind, name)
                found.append((call.record, f"record {call.record}: KVM_{call.name} {words}"))
        elif not mine and _STRUCTURES.get(kind, kind.upper()) not in put.unread:
            if kind in _STRUCTURES:
                found.append((0, f"no record sets its {_STRUCTURES[kind]}"))
            elif kind == "debugregs" and theirs.debugregs != ours.debugregs:
                found += [(0, f"no record sets its {name} {value:#x}")
                          for name, value in theirs.debugregs.items()
                          if value != _RESET_DEBUG.get(name, 0)]  # fmt: skip
    return tuple(words for _, words in sorted(found, key=lambda one: one[0]))


_RESET_DEBUG = {"dr6": 0xFFFF_0FF0, "dr7": 0x400}


def _nested_lost(put: RecordedPut, saved: Vcpu) -> str:
    if not saved.guest_mode or "NESTED_STATE" in put.lacking:
        return ""
    given = [call for call in (*put.before, *put.calls) if call.name == "SET_NESTED_STATE"]
    if given:
        return ""
    return (
        "the saved vCPU was in L2, and no record sets its nested state: L2's code continues as L1"
    )


def _setter(taken: Sequence[Given], kind: str, name: str) -> Given:
    # The call that sets a value: of several lists of MSRs the last one that has it.
    # EFER is set by SREGS too.
    of_sregs = kind == "sregs" and name == "efer"
    if kind == "msrs" or of_sregs:
        for call in reversed(taken):
            if not call.data or call.errno is not None:
                continue
            msrs = layouts.unpack_whole_msrs(call.data) if call.name == "SET_MSRS" else {}
            if NUMBERS.get(name) in msrs:
                return call
            if of_sregs and call.name.startswith("SET_SREGS"):
                return call
        return max(taken, key=lambda call: len(call.data))
    return taken[-1]


def _apart(kind: str, vcpu: Vcpu, saved: Vcpu) -> Iterator[tuple[str, str]]:
    # Names of values, and in words what is set instead.
    ours, theirs = from_vcpu(vcpu), from_vcpu(saved)
    if kind == "nested":
        if vcpu.nested is not None and saved.nested is not None:
            yield from (("", f"sets {words}") for words in _nested_apart(vcpu, saved))
        return
    if kind == "mp_state":
        if ours.mp_state != theirs.mp_state:
            yield "", f"sets mp_state {ours.mp_state} instead of {theirs.mp_state}"
        return
    mine, right = (_values(getattr(one, kind)) for one in (ours, theirs))
    for register, value in right.items():
        if register not in mine:
            if kind == "msrs" and value != (_PAT if register == "pat" else 0):
                yield register, f"does not set {register}, {content_text(value, register)}"
        elif mine[register] != value:
            said = (content_text(one, register) for one in (mine[register], value))
            yield register, f"sets {register} {' instead of '.join(said)}"


def _values(found: Any) -> dict[str, Any]:
    # Without what KVM makes of a register anyway: RFLAGS bit 1.
    values = dict(found.items())
    if "rflags" in values:
        values["rflags"] |= 2
    return values


def _nested_apart(vcpu: Vcpu, saved: Vcpu) -> Iterator[str]:
    ours, theirs = from_vcpu(vcpu).nested, from_vcpu(saved).nested
    for name in ("flags", "format", "vmcb_pa", "gpat"):
        if getattr(ours, name) != getattr(theirs, name):
            yield f"{name} {getattr(ours, name):#x} instead of {getattr(theirs, name):#x}"
    if not ours.guest_mode or not theirs.guest_mode:
        return
    for area, mine, right in zip(
        ("control", "l1_save"), vmcb_fields(ours.vmcb), vmcb_fields(theirs.vmcb), strict=True
    ):
        for name, value in mine.items():
            if value != right[name]:
                yield f"{area}.{name} {_field(value)} instead of {_field(right[name])}"


def _field(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:#x}"
    if isinstance(value, bytes):
        return value.hex()[:40]
    if isinstance(value, tuple):
        return " ".join(f"{one:#x}" for one in value)
    return " ".join(f"{name} {one:#x}" for name, one in value.items() if isinstance(one, int))
