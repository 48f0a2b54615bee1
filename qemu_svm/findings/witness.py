"""Compares a restore with the VMCBs that the processor got: stream, model, processor.

After a restore into L2, KVM first enters vmcb02, whose save area must have L2's
registers, and after the next nested #VMEXIT vmcb01, whose save area must have L1's of
the blob.  Each field has three values: the stream's, the prediction of the kernel's
model, and the one in the VMCB at that VMRUN.

The processor's value of a register differs from the guest's in known ways; those are
*explained*, with the reason, and every other difference is *wrong*.

Source of the reasons: Linux ``arch/x86/kvm/svm/svm.c`` (``svm_set_cr0``,
``svm_set_cr4``, ``svm_set_efer``, ``svm_set_segment``, ``svm_vcpu_run``), 5.10 to 7.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from qemu_svm.findings.verdict import refusals
from qemu_svm.model.area import Area, Content
from qemu_svm.model.kvm.vmcb02 import Merged, vmcb02_control
from qemu_svm.model.profile import Profile
from qemu_svm.model.saved import Saved, areas
from qemu_svm.model.simulate import Simulation
from qemu_svm.nested import bits
from qemu_svm.vmruns.log import AttributedRun, Log
from qemu_svm.vmruns.roles import EntryState, Role, state
from qemu_svm.x86.registers import CR0, CR4, EFER
from qemu_svm.x86.segments import TABLES, Segment


class FieldVerdict(StrEnum):
    """Result for one field: the processor's value compared with the stream's."""

    RIGHT = "right"
    EXPLAINED = "explained"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class FieldComparison:
    """One field of a VMCB at its VMRUN.

    :param given: the processor's value.
    :param stream: None if the stream does not have it; likewise ``model``.
    :param why: the explanation, or whose value it is instead.
    :param predicted: whether the model predicted the processor's value; None without a
        prediction.
    """

    name: str
    given: Content
    stream: Content | None
    model: Content | None
    verdict: FieldVerdict
    why: str = ""
    predicted: bool | None = None


@dataclass(frozen=True, slots=True)
class VmcbComparison:
    """One VMCB: ``vmcb02``, ``vmcb01`` or vmcb02's ``control``.

    :param level: the level whose registers it must have.
    :param number: record number of the VMRUN.
    :param late: L1 had control first, because an event was pending for it.
    """

    name: str
    level: str
    number: int
    address: int
    fields: tuple[FieldComparison, ...]
    late: bool = False


@dataclass(frozen=True, slots=True)
class Witness:
    """The result of the comparison.

    :param missing: what failed or could not be observed, in words.
    :param refusals: ioctls that fail in the model, in words.
    """

    kernel: Profile
    parts: tuple[VmcbComparison, ...]
    missing: tuple[str, ...]
    refusals: tuple[str, ...] = ()

    @property
    def wrong(self) -> tuple[FieldComparison, ...]:
        """Fields with a wrong value."""
        return tuple(one for one in self._fields() if one.verdict is FieldVerdict.WRONG)

    @property
    def refuted(self) -> tuple[FieldComparison, ...]:
        """Fields whose value the model predicted wrongly."""
        return tuple(one for one in self._fields() if one.predicted is False)

    @property
    def clean(self) -> bool:
        """Whether everything was observed, is right, and was predicted."""
        return not (self.wrong or self.refuted or self.missing)

    def _fields(self) -> Iterator[FieldComparison]:
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
"""Registers of L1 that a #VMEXIT does not load from vmcb01."""


def witness(
    log: Log,
    saved: Saved,
    simulation: Simulation,
    *,
    npt: bool,
    failed: Sequence[str] = (),
    alone: bool = True,
) -> Witness:
    """Compare the log of a restore with the stream and the simulation of that restore.

    :param log: of an emulator in which only this restore ran a guest.
    :param saved: the vCPU.
    :param npt: whether L0's KVM uses nested paging.
    :param failed: ioctls that failed in this restore, in words.
    :param alone: only this vCPU was restored; otherwise its VMCBs are those that were entered
        with its RIP, RSP and RAX, or with those of its L1.
    """
    entries = _Entries(log, saved, alone=alone)
    outcome = next((r.outcome for r in simulation.results if r.outcome is not None), None)
    parts: list[VmcbComparison] = []
    missing = list(failed)
    if entries.first is None and entries.l1 is not None:
        missing.append(
            "L2 was not entered before the end of the log: an event for L1, such as a pending "
            "interrupt, made KVM leave L2 first"
        )
    elif entries.first is None:
        what = "the VMCB could not be read" if log.vmcbs else "there was none"
        what = what if alone else f"{what}, or this vCPU did not run (halted, not started)"
        missing.append(f"no first entry: {what}")
    else:
        level = "L2" if saved.guest_mode else "L1"
        entered = outcome.level if outcome is not None and outcome.level else level
        model = outcome.entry if outcome is not None else None
        whose = "L1" if saved.guest_mode else ""
        expected = _Expected(_stream_l2(saved), model, saved.l1(), whose, npt, entries.late)
        fields = _compare(_L2, _save(entries.first), expected)
        name = "vmcb02" if entered == "L2" else "vmcb01"
        parts.append(replace(_part(name, level, entries.first, fields), late=entries.late))
    if saved.guest_mode and entries.l1 is None:
        missing.append("L1 did not get control back before the end of the log")
    elif saved.guest_mode and entries.l1 is not None:
        model = outcome.l1 if outcome is not None else None
        l1 = saved.l1()
        values = {name: l1.content(name) for name in _L1 if name not in _NOT_RESTORED}
        expected = _Expected(values, model, saved.sregs, "L2", npt)
        fields = _compare(_L1, _save(entries.l1), expected)
        parts.append(_part("vmcb01", "L1", entries.l1, fields))
        if entries.first is not None and entries.last is not None and not entries.late:
            merged = _control(simulation.kernel, entries, saved)
            parts.append(_part("control", "L2", entries.first, merged))
    return Witness(simulation.kernel, tuple(parts), tuple(missing), refusals(simulation))


class _Entries:
    # The first entry, the first into L1 after it, and the last entry before that.  Where L1
    # was entered first, the first entry is L2's next one, which is late.
    def __init__(self, log: Log, saved: Saved, *, alone: bool) -> None:
        l1 = saved.l1()
        mine = None if alone else _addresses(log, saved)
        self.late = False
        back = (l1.get("rip"), l1.get("rsp"), l1.get("rax"))
        self.first: AttributedRun | None = None
        self.last: AttributedRun | None = None
        self.l1: AttributedRun | None = None
        pair: int | None = None
        for entry in log.runs():
            if entry.run.entry.page is None:
                continue
            if mine is not None and entry.run.address not in mine:
                continue
            if self.late:
                if entry.role is Role.L2 and _pair(log, entry) == pair:
                    self.first = self.last = entry
                    return
                continue
            if pair is None and saved.guest_mode and entry.role is Role.L1:
                # KVM had an event for L1 and left L2 without ever entering it.
                self.l1, self.late = entry, True
                pair = _pair(log, entry)
                continue
            if self.first is None:
                self.first = self.last = entry
                pair = _pair(log, entry)
            elif _pair(log, entry) != pair:
                continue
            elif entry.role is Role.L1 or (
                entry.role is Role.UNKNOWN and state(entry.run.entry.page) == back
            ):
                self.l1 = entry
                return
            self.last = entry


def _addresses(log: Log, saved: Saved) -> frozenset[int]:
    # Of one vCPU's VMCBs: the pair that is entered with its registers first.
    wanted = states(saved)
    for entry in log.runs():
        page = entry.run.entry.page
        if page is None or state(page) not in wanted:
            continue
        pair = _pair(log, entry)
        if pair < 0:
            return frozenset({entry.run.address})
        return frozenset(address for address, vmcb in log.roles.vmcbs.items() if vmcb.pair == pair)
    return frozenset()


def states(saved: Saved) -> frozenset[EntryState]:
    """Return RIP, RSP and RAX with which a vCPU is entered first: its own, or those of its L1."""
    own = saved.regs["rip"], saved.regs["rsp"], saved.regs["rax"]
    return frozenset({own, l1_state(saved)}) if saved.guest_mode else frozenset({own})


def l1_state(saved: Saved) -> EntryState:
    """Return RIP, RSP and RAX of L1 after the next #VMEXIT."""
    l1 = saved.l1()
    return l1.get("rip"), l1.get("rsp"), l1.get("rax")


def _pair(log: Log, entry: AttributedRun) -> int:
    return log.roles.vmcbs[entry.run.address].pair


def _page(entry: AttributedRun) -> bytes:
    page = entry.run.entry.page
    assert page is not None
    return page


def _save(entry: AttributedRun) -> Area:
    return areas(_page(entry))[1]


def _part(
    name: str, level: str, entry: AttributedRun, fields: Iterator[FieldComparison]
) -> VmcbComparison:
    return VmcbComparison(name, level, entry.run.number, entry.run.address, tuple(fields))


def _stream_l2(saved: Saved) -> dict[str, Content]:
    found: dict[str, Content] = dict(saved.regs)
    found |= {name: saved.sregs.content(name) for name in saved.sregs}
    found |= saved.debugregs
    return {name: found[name] for name in _L2 if name in found}


@dataclass(frozen=True, slots=True)
class _Expected:
    # The expected values of one VMCB, by the stream and by the model, and the registers of
    # the other level, which are the likeliest mistake.
    stream: Mapping[str, Content]
    model: Area | None
    other: Area
    whose: str
    npt: bool
    late: bool = False


def _compare(names: tuple[str, ...], given: Area, expected: _Expected) -> Iterator[FieldComparison]:
    for name in names:
        value, said = given.content(name), expected.stream.get(name)
        model = expected.model
        foreseen = model.content(name) if model is not None and name in model else None
        wanted = said if said is not None else foreseen
        if wanted is None:
            continue
        predicted = None
        if foreseen is not None:
            predicted = explain_value(name, foreseen, value, npt=expected.npt) is not None
        why = explain_value(name, wanted, value, npt=expected.npt)
        if why is None:
            verdict, text = FieldVerdict.WRONG, ""
            if expected.whose and name in expected.other:
                mixed = explain_value(name, expected.other.content(name), value, npt=expected.npt)
                text = f"{expected.whose}'s value" if mixed is not None else ""
            if expected.late and not text:
                verdict, text, predicted = FieldVerdict.EXPLAINED, _CHANGED, None
        else:
            verdict, text = FieldVerdict.EXPLAINED if why else FieldVerdict.RIGHT, why
        yield FieldComparison(name, value, said, foreseen, verdict, text, predicted)


_CHANGED = "L1 had control first, and may have changed it"


def explain_value(name: str, wanted: Content, given: Content, *, npt: bool) -> str | None:
    """Explain how the processor's value of a register represents the guest's.

    :returns: an empty string if they are equal, the reason if they differ in a known way,
        or None if the value is wrong.
    """
    if wanted == given:
        return ""
    if isinstance(wanted, Segment) and isinstance(given, Segment):
        if name in TABLES:
            return "" if (wanted.base, wanted.limit) == (given.base, given.limit) else None
        return _explain_segment(wanted, given)
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
    return {value: "VMRUN requires SVME" if npt else "without nested paging KVM sets NX"}


_HARDWARE: dict[str, Callable[[int, bool], dict[int, str]]] = {
    "cr0": _cr0,
    "cr4": _cr4,
    "efer": _efer,
    "rflags": lambda value, _npt: {value | 2: "bit 1 is always set"},
    "dr6": lambda _value, _npt: {0xFFFF0FF0: "KVM keeps DR6 clear to find the cause of a #DB"},
    "dr7": lambda value, _npt: {value | 0x400: "bit 10 is always set"},
}
"""The processor's values for a guest's value of each register, and why."""

_ACCESSED = 1


def _explain_segment(wanted: Segment, given: Segment) -> str | None:
    same = (wanted.selector, wanted.base, wanted.limit) == (
        given.selector,
        given.base,
        given.limit,
    )
    if same and wanted.attrib | _ACCESSED == given.attrib | _ACCESSED:
        return "KVM sets the accessed bit"
    if not wanted.present and not given.present and wanted.selector == given.selector:
        return "the segment is not present in either"
    return None


# --- control fields of vmcb02 ---


def _control(kernel: Profile, entries: _Entries, saved: Saved) -> Iterator[FieldComparison]:
    assert entries.first is not None
    assert entries.last is not None
    assert entries.l1 is not None
    given, last, l0 = (areas(_page(one))[0] for one in (entries.first, entries.last, entries.l1))
    asked = saved.control()
    for merged in vmcb02_control(kernel, l0, asked):
        yield _merged(merged, given, last, asked)


def _merged(merged: Merged, given: Area, last: Area, asked: Area) -> FieldComparison:
    name, value, stream = merged.name, given.get(merged.name), asked.get(merged.name)
    if merged.value is None:
        # KVM chooses the value, but it must not be 0.
        verdict = FieldVerdict.EXPLAINED if value else FieldVerdict.WRONG
        return FieldComparison(name, value, stream, None, verdict, merged.origin)
    why = _explain_control(name, given, merged.value, last)
    if why is None:
        return FieldComparison(
            name, value, stream, merged.value, FieldVerdict.WRONG, merged.origin, predicted=False
        )
    verdict = FieldVerdict.RIGHT if value == stream and not why else FieldVerdict.EXPLAINED
    said = why or (merged.origin if value != stream else "")
    return FieldComparison(name, value, stream, merged.value, verdict, said, predicted=True)


def _explain_control(name: str, given: Area, wanted: int, last: Area) -> str | None:
    value = given.get(name)
    if value == wanted:
        return ""
    # svm_set_vintr: KVM requests an exit as soon as an interrupt can be delivered.
    bit = _WINDOW.get(name, 0)
    if given.get("int_ctl") & _WINDOW_CTL == _WINDOW_CTL and bit and value == wanted | bit:
        return "KVM waits for the interrupt window"
    if name == "tsc_offset" and last.get(name) == wanted:
        # kvm_arch_vcpu_load, where the host's TSCs do not agree.
        return "L0's + L1's; KVM moved it between the first entry and L1's"
    return None


_WINDOW_CTL = bits.INT_CTL.mask("V_IRQ") | 0xF << bits.V_INTR_PRIO_SHIFT
_WINDOW = {"intercepts": bits.INTERCEPTS.mask("VINTR"), "int_ctl": _WINDOW_CTL}
