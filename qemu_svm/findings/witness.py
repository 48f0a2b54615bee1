"""Three things beside each other: stream, model, and what the processor was given.

After a restore into L2 the processor is first given vmcb02, whose save area must be
L2's registers, and after the next nested #VMEXIT vmcb01, whose save area must be L1's
out of the blob.  For each field: what the stream says, what the model of the kernel
predicts, what stood in the VMCB at that VMRUN.

The processor's view of a register differs from the guest's in known ways; those are
*explained*, with the reason, and everything else that differs is *wrong*.

Source of the reasons: Linux ``arch/x86/kvm/svm/svm.c`` (``svm_set_cr0``,
``svm_set_cr4``, ``svm_set_efer``, ``svm_set_segment``, ``svm_vcpu_run``), 5.10 to 7.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from qemu_svm.findings.verdict import refusals
from qemu_svm.model.area import Area, Content
from qemu_svm.model.kvm.vmcb02 import Merged, vmcb02_control
from qemu_svm.model.profile import Profile
from qemu_svm.model.saved import Saved, areas
from qemu_svm.model.simulate import Simulation
from qemu_svm.nested import bits
from qemu_svm.vmruns.log import AttributedRun, Log
from qemu_svm.vmruns.roles import Role, state
from qemu_svm.x86.registers import CR0, CR4, EFER
from qemu_svm.x86.segments import Segment


class Verdict(StrEnum):
    """Of one field: the processor's value against the stream's."""

    RIGHT = "right"
    EXPLAINED = "explained"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a VMCB at its VMRUN.

    :param stream: None if the stream says nothing of it; likewise ``model``.
    :param why: the explanation, or whose value it is instead.
    :param predicted: whether the model foresaw what was given; None without a model.
    """

    name: str
    given: Content
    stream: Content | None
    model: Content | None
    verdict: Verdict
    why: str = ""
    predicted: bool | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One VMCB: ``vmcb02``, ``vmcb01`` or vmcb02's ``control``.

    :param level: whose registers are due in it.
    :param number: of the VMRUN; 0 if it never came.
    """

    name: str
    level: str
    number: int
    address: int
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Witness:
    """The whole testimony.

    :param missing: what failed or could not be seen, in words.
    :param refusals: ioctls that the model lets fail, in words.
    """

    kernel: Profile
    parts: tuple[Part, ...]
    missing: tuple[str, ...]
    refusals: tuple[str, ...] = ()

    @property
    def wrong(self) -> tuple[Field, ...]:
        """Fields with which the guest goes on wrongly."""
        return tuple(one for one in self._fields() if one.verdict is Verdict.WRONG)

    @property
    def refuted(self) -> tuple[Field, ...]:
        """Fields that the model did not foresee."""
        return tuple(one for one in self._fields() if one.predicted is False)

    @property
    def clean(self) -> bool:
        """Whether everything was seen, is right, and was foreseen."""
        return not (self.wrong or self.refuted or self.missing)

    def _fields(self) -> Iterator[Field]:
        return (one for part in self.parts for one in part.fields)


_L2 = (
    *("rip", "rsp", "rax", "rflags", "cr0", "cr2", "cr3", "cr4", "efer", "dr6", "dr7"),
    *("cs", "ss", "ds", "es", "gdtr", "idtr"),
)
_L1 = (
    *("rip", "rsp", "rax", "rflags", "cr0", "cr3", "cr4", "efer", "dr7"),
    *("cs", "ss", "ds", "es", "gdtr", "idtr"),
)
_NOT_RESTORED = frozenset({"dr7"})
"""Of L1: a #VMEXIT does not load them from where L1 was kept."""


def witness(
    log: Log, saved: Saved, simulation: Simulation, *, npt: bool, failed: Sequence[str] = ()
) -> Witness:
    """Hold a log of a restore against the stream and the simulation of that restore.

    :param log: of an emulator in which nothing but this restore ran a guest.
    :param saved: the vCPU; it must be the stream's only one.
    :param npt: whether L0's KVM uses nested paging.
    :param failed: ioctls that failed in this restore, in words.
    """
    seen = _Seen(log, saved)
    outcome = next((r.outcome for r in simulation.results if r.outcome is not None), None)
    parts: list[Part] = []
    missing = list(failed)
    if seen.first is None and seen.l1 is not None:
        missing.append(
            "L2 was not entered: an event for L1, such as a pending interrupt, made KVM leave "
            "L2 before; vmcb02 was never given to the processor"
        )
    elif seen.first is None:
        what = "could not be read" if log.vmcbs else "did not come"
        missing.append(f"the VMCB of a first entry {what}")
    else:
        level = "L2" if saved.guest_mode else "L1"
        entered = outcome.level if outcome is not None and outcome.level else level
        model = outcome.entry if outcome is not None else None
        whose = "L1" if saved.guest_mode else ""
        told = _Told(_stream_l2(saved), model, saved.l1(), whose, npt)
        fields = _compare(_L2, _save(seen.first), told)
        name = "vmcb02" if entered == "L2" else "vmcb01"
        parts.append(_part(name, level, seen.first, fields))
    if saved.guest_mode and seen.l1 is None:
        missing.append("L1 did not get control again while the log was written")
    elif saved.guest_mode and seen.l1 is not None:
        model = outcome.l1 if outcome is not None else None
        l1 = saved.l1()
        values = {name: l1.content(name) for name in _L1 if name not in _NOT_RESTORED}
        told = _Told(values, model, saved.sregs, "L2", npt)
        fields = _compare(_L1, _save(seen.l1), told)
        parts.append(_part("vmcb01", "L1", seen.l1, fields))
        if seen.first is not None and seen.last is not None:
            merged = _control(simulation.kernel, seen, saved)
            parts.append(_part("control", "L2", seen.first, merged))
    return Witness(simulation.kernel, tuple(parts), tuple(missing), refusals(simulation))


class _Seen:
    # The first entry of all, the first into L1 after it, and the last one before that.
    def __init__(self, log: Log, saved: Saved) -> None:
        l1 = saved.l1()
        back = (l1.get("rip"), l1.get("rsp"), l1.get("rax"))
        self.first: AttributedRun | None = None
        self.last: AttributedRun | None = None
        self.l1: AttributedRun | None = None
        pair: int | None = None
        for known in log.runs():
            if known.run.entry.page is None:
                continue
            if pair is None and saved.guest_mode and known.role is Role.L1:
                # KVM had an event for L1 and left L2 before it ever entered it.
                self.l1 = known
                return
            if self.first is None:
                self.first = self.last = known
                pair = _pair(log, known)
            elif _pair(log, known) != pair:
                continue
            elif known.role is Role.L1 or (
                known.role is Role.UNKNOWN and state(known.run.entry.page) == back
            ):
                self.l1 = known
                return
            self.last = known


def _pair(log: Log, known: AttributedRun) -> int:
    return log.roles.vmcbs[known.run.address].pair


def _page(known: AttributedRun) -> bytes:
    page = known.run.entry.page
    assert page is not None
    return page


def _save(known: AttributedRun) -> Area:
    return areas(_page(known))[1]


def _part(name: str, level: str, known: AttributedRun, fields: Iterator[Field]) -> Part:
    return Part(name, level, known.run.number, known.run.address, tuple(fields))


def _stream_l2(saved: Saved) -> dict[str, Content]:
    found: dict[str, Content] = dict(saved.regs)
    found |= {name: saved.sregs.content(name) for name in saved.sregs}
    found |= saved.debugregs
    return {name: found[name] for name in _L2 if name in found}


@dataclass(frozen=True, slots=True)
class _Told:
    # What is known beforehand of one VMCB: by the stream, by the model; and the
    # registers of the other level, which are the likeliest mistake.
    stream: Mapping[str, Content]
    model: Area | None
    other: Area
    whose: str
    npt: bool


def _compare(names: tuple[str, ...], given: Area, told: _Told) -> Iterator[Field]:
    for name in names:
        value, said = given.content(name), told.stream.get(name)
        model = told.model
        foreseen = model.content(name) if model is not None and name in model else None
        wanted = said if said is not None else foreseen
        if wanted is None:
            continue
        predicted = None
        if foreseen is not None:
            predicted = explain(name, foreseen, value, npt=told.npt) is not None
        why = explain(name, wanted, value, npt=told.npt)
        if why is None:
            verdict, text = Verdict.WRONG, ""
            if told.whose and name in told.other:
                mixed = explain(name, told.other.content(name), value, npt=told.npt)
                text = f"{told.whose}'s value" if mixed is not None else ""
        else:
            verdict, text = Verdict.EXPLAINED if why else Verdict.RIGHT, why
        yield Field(name, value, said, foreseen, verdict, text, predicted)


def explain(name: str, wanted: Content, given: Content, *, npt: bool) -> str | None:
    """Why the processor's value stands for the guest's.

    :returns: empty if they are the same, the reason if they differ in a known way, or
        None if they really differ.
    """
    if wanted == given:
        return ""
    if isinstance(wanted, Segment) and isinstance(given, Segment):
        return None if name in _TABLES else _explain_segment(wanted, given)
    if isinstance(wanted, int) and isinstance(given, int):
        hardware = _HARDWARE[name](wanted, npt) if name in _HARDWARE else {}
        if given in hardware:
            return hardware[given]
        if name == "cr3" and not npt:
            return "without nested paging the processor walks KVM's own tables"
    return None


def _cr0(value: int, npt: bool) -> dict[int, str]:  # noqa: FBT001  (a table calls it)
    hardware = value & ~CR0.mask("CD", "NW")
    if npt:
        return {hardware: "CD and NW never reach the processor"}
    return {hardware | CR0.mask("PG", "WP"): "without nested paging KVM sets PG and WP"}


def _cr4(value: int, npt: bool) -> dict[int, str]:  # noqa: FBT001
    value |= 0 if npt else CR4.mask("PAE")
    return {
        value | CR4.mask("MCE"): "KVM adds the host's MCE",
        value: "without nested paging KVM sets PAE",
    }


def _efer(value: int, npt: bool) -> dict[int, str]:  # noqa: FBT001
    value |= EFER.mask("SVME") | (0 if npt else EFER.mask("NX"))
    return {value: "VMRUN demands SVME" if npt else "without nested paging KVM sets NX"}


_HARDWARE: dict[str, Callable[[int, bool], dict[int, str]]] = {
    "cr0": _cr0,
    "cr4": _cr4,
    "efer": _efer,
    "rflags": lambda value, _npt: {value | 2: "bit 1 is always set"},
    "dr6": lambda _value, _npt: {0xFFFF0FF0: "KVM keeps DR6 clear to see what a #DB is about"},
    "dr7": lambda value, _npt: {value | 0x400: "bit 10 is always set"},
}
"""What KVM gives the processor for a guest's value, and why."""

_ACCESSED = 1
_TABLES = frozenset({"gdtr", "idtr"})


def _explain_segment(wanted: Segment, given: Segment) -> str | None:
    same = (wanted.selector, wanted.base, wanted.limit) == (
        given.selector,
        given.base,
        given.limit,
    )
    if same and wanted.attrib | _ACCESSED == given.attrib | _ACCESSED:
        return "KVM sets the accessed bit"
    if not wanted.present and not given.present and wanted.selector == given.selector:
        return "it is not present either way"
    return None


# --- control fields of vmcb02 ---


def _control(kernel: Profile, seen: _Seen, saved: Saved) -> Iterator[Field]:
    assert seen.first is not None
    assert seen.last is not None
    assert seen.l1 is not None
    given, last, l0 = (areas(_page(one))[0] for one in (seen.first, seen.last, seen.l1))
    asked = saved.control()
    for merged in vmcb02_control(kernel, l0, asked):
        yield _merged(merged, given, last, asked)


def _merged(merged: Merged, given: Area, last: Area, asked: Area) -> Field:
    name, value, stream = merged.name, given.get(merged.name), asked.get(merged.name)
    if merged.value is None:
        # KVM's own choice, but it must be something.
        verdict = Verdict.EXPLAINED if value else Verdict.WRONG
        return Field(name, value, stream, None, verdict, merged.whence)
    why = _explain_control(name, given, merged.value, last)
    if why is None:
        return Field(
            name, value, stream, merged.value, Verdict.WRONG, merged.whence, predicted=False
        )
    verdict = Verdict.RIGHT if value == stream and not why else Verdict.EXPLAINED
    said = why or (merged.whence if value != stream else "")
    return Field(name, value, stream, merged.value, verdict, said, predicted=True)


def _explain_control(name: str, given: Area, wanted: int, last: Area) -> str | None:
    value = given.get(name)
    if value == wanted:
        return ""
    # svm_set_vintr: KVM asks for a stop as soon as an interrupt can be delivered.
    bit = _WINDOW.get(name, 0)
    if given.get("int_ctl") & _WINDOW_CTL == _WINDOW_CTL and bit and value == wanted | bit:
        return "KVM waits for a moment to deliver an interrupt"
    if name == "tsc_offset" and last.get(name) == wanted:
        # kvm_arch_vcpu_load, where the host's TSCs do not agree.
        return "L0's + L1's; KVM moved it between the first entry and L1's"
    return None


_WINDOW_CTL = bits.INT_CTL.mask("V_IRQ") | 0xF << bits.V_INTR_PRIO_SHIFT
_WINDOW = {"intercepts": bits.INTERCEPTS.mask("VINTR"), "int_ctl": _WINDOW_CTL}
