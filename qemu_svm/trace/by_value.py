"""What the data of a put says, for the rules that depend on it.

Only recordings have the data of a put; where it is missing, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qemu_svm.fields import Fields
from qemu_svm.kvm import layouts
from qemu_svm.nested import bits, vmcb_fields
from qemu_svm.trace.phases import EVENTS, MSRS, NESTED, SREGS, Step
from qemu_svm.trace.verdict import RuleOutcome, RuleResult, Whose, result
from qemu_svm.x86.msrs import NUMBERS
from qemu_svm.x86.registers import uses_pae

if TYPE_CHECKING:
    from qemu_svm.model.profile import Profile

EFER_SVME = 1 << 12
SHADOW_VALID, SMM_VALID = 4, 8
"""Flags of ``kvm_vcpu_events``: KVM takes the interrupt shadow, and SMM."""

_NP_ENABLE = 1
_PDPTRS_VALID = 1
_ONE_TO_ONE = 1 << 32
_EFER, _HSAVE, _TSC_RATIO = NUMBERS["efer"], NUMBERS["vm_hsave_pa"], NUMBERS["tsc_ratio"]
_STAR = NUMBERS["star"]
_L1_PLAIN = ("cr0", "cr3", "cr4", "efer")
_L1_TABLES = {"gdt": "gdtr", "idt": "idtr"}
_L1_REGS = ("rip", "rsp", "rax")
_SHADOW_STACKS = ("s_cet", "ssp", "isst_addr", "dbgctl", "br_from", "br_to")
_SOFT = (3, 4)
_SOFT_INTERRUPT, _EXCEPTION = 4, 3


def nested_header(step: Step) -> dict[str, Any] | None:
    """Return the header of a nested state that was put or read; None without data."""
    if step.data is None or len(step.data) < layouts.NESTED_STATE.size:
        return None
    return layouts.NESTED_STATE.unpack(step.data)


def guest_mode(step: Step) -> bool | None:
    """Return whether a nested state is in guest mode; None without data."""
    header = nested_header(step)
    return None if header is None else bool(header["flags"] & bits.GUEST_MODE)


def vmcb_of(step: Step) -> tuple[Fields, Fields] | None:
    """Return control area and save area of a nested state; None if it has none."""
    if step.data is None or len(step.data) < layouts.NESTED_STATE_SIZE:
        return None
    page = step.data[layouts.NESTED_STATE.size : layouts.NESTED_STATE_SIZE]
    return vmcb_fields(page)


def msrs_of(step: Step) -> dict[int, int] | None:
    """Return the MSRs of a call by number; None without data."""
    if step.data is None or len(step.data) < layouts.MSRS.size:
        return None
    try:
        return layouts.unpack_msrs(step.data)
    except ValueError:
        return None


def efer_of(step: Step) -> int | None:
    """Return EFER as a call of SREGS or MSRS sets it; None if it does not, or without data."""
    if step.name in SREGS:
        return step.efer
    values = msrs_of(step) if step.name in MSRS else None
    return None if values is None else values.get(_EFER)


def unpacked(layout_: layouts.Layout, step: Step | None) -> dict[str, Any] | None:
    """Return the values of a call; None without data."""
    if step is None or step.data is None or len(step.data) < layout_.size:
        return None
    return layout_.unpack(step.data)


def events_of(step: Step | None) -> dict[str, Any] | None:
    """Return the values of VCPU_EVENTS; None without data."""
    return unpacked(layouts.VCPU_EVENTS, step)


def whose_sregs(step: Step, nested: Step) -> Whose | None:
    """Return whose SREGS these are: L1's have the values of the nested state's save area.

    None without data, outside guest mode, or if nothing tells: a hypervisor and its guest may
    have equal values.
    """
    values, areas = unpacked(layouts.SREGS, step), vmcb_of(nested)
    if values is None or areas is None or not guest_mode(nested):
        return None
    save = areas[1]
    pairs = [(values[name], save[name]) for name in _L1_PLAIN]
    pairs += [
        (values[f"{name}.{part}"], save[table][part])
        for name, table in _L1_TABLES.items()
        for part in ("base", "limit")
    ]
    pairs += [
        (values[f"{name}.{part}"], save[name][part])
        for name in ("cs", "ss", "ds", "es")
        for part in ("selector", "base")
    ]
    return _whose(pairs, telling=(pairs[1],))


def whose_regs(step: Step, nested: Step) -> Whose | None:
    """Return whose REGS these are; None as for :func:`whose_sregs`."""
    values, areas = unpacked(layouts.REGS, step), vmcb_of(nested)
    if values is None or areas is None or not guest_mode(nested):
        return None
    pairs = [(values[name], areas[1][name]) for name in _L1_REGS]
    return _whose(pairs, telling=pairs)


def _whose(pairs: Sequence[tuple[int, int]], *, telling: Sequence[tuple[int, int]]) -> Whose:
    # Some values are often equal, such as those of flat segments; an equal zero tells nothing.
    if all(ours == theirs for ours, theirs in pairs):
        return Whose.L1
    same = any(ours == theirs for ours, theirs in telling if ours)
    return Whose.MIXED if same else Whose.L2


@dataclass(frozen=True)
class ByValue:
    """The data of one put.

    :param nested: its last NESTED_STATE that KVM took.
    :param before: what was put before the first one.
    :param after: what was put with it and after it.
    :param kernel: what the recording's host has; None if it is not known.
    """

    nested: Step
    before: Sequence[Step]
    after: Sequence[Step]
    kernel: Profile | None

    @cached_property
    def header(self) -> dict[str, Any]:
        """The header of the nested state; empty without data."""
        return nested_header(self.nested) or {}

    @property
    def known(self) -> bool:
        """Whether there is data."""
        return bool(self.header)

    @property
    def flags(self) -> int:
        """Flags of the nested state."""
        return int(self.header.get("flags", 0))

    @property
    def guest(self) -> bool:
        """Whether it puts a vCPU in guest mode."""
        return bool(self.flags & bits.GUEST_MODE)

    @cached_property
    def areas(self) -> tuple[Fields, Fields] | None:
        """Control area and save area of the nested state."""
        return vmcb_of(self.nested)

    def results(self) -> Iterator[RuleResult]:
        """Yield the rules that depend on data alone."""
        if not self.known:
            return
        yield from self._vmcb()
        yield from self._smm()
        yield from self._kernels()
        yield self._ratio()
        yield self._pdptrs()

    def on_kernel(self, rule_id: str, applies: Callable[[Profile], bool], note: str) -> RuleResult:
        """Return the outcome of a rule whose condition the data meets, on some kernels."""
        if self.kernel is None:
            return result(rule_id, RuleOutcome.DEPENDS, self.nested.line, f"{note}; on the kernel")
        outcome = RuleOutcome.VIOLATED if applies(self.kernel) else RuleOutcome.OK
        return result(rule_id, outcome, self.nested.line, f"{note}, Linux {self.kernel.name}")

    def _ok(self, rule_id: str) -> RuleResult:
        return result(rule_id, RuleOutcome.OK, self.nested.line)

    def _kernels(self) -> Iterator[RuleResult]:
        rows: tuple[tuple[str, bool, Callable[[Profile], bool], str], ...] = (
            ("O-10", self._soft_event(), _keeps_next_rip, "a soft event is pending"),
            ("O-19", self.guest and not self.flags & bits.GIF_SET, _ignores_gif, "GIF is clear"),
            (
                "O-20",
                self.flags == 0 and not self._svme(),
                lambda kernel: "SV-03" in kernel.set_nested_state,
                "flags is 0 and EFER.SVME is clear",
            ),
            (
                "O-21",
                self.guest and bool(self.flags & bits.RUN_PENDING),
                _ignores_run_pending,
                "RUN_PENDING is set",
            ),
            (
                "O-30",
                self.guest and self.areas is not None
                and any(self.areas[1][name] for name in _SHADOW_STACKS),
                lambda kernel: "erap_ctl" not in kernel.control_fields,
                "the save area has shadow stack or LBR state of L1",
            ),
        )  # fmt: skip
        for rule_id, meets, applies, note in rows:
            if not meets:
                yield self._ok(rule_id)
            elif rule_id == "O-20" and self.nested.value == 0:
                yield result(rule_id, RuleOutcome.OK, self.nested.line, "KVM accepted it")
            else:
                yield self.on_kernel(rule_id, applies, note)

    def _svme(self) -> bool:
        values = [efer_of(step) for step in self.before]
        known = [value for value in values if value is not None]
        return bool(known and known[-1] & EFER_SVME)

    def _soft_event(self) -> bool:
        if self.areas is None or not self.guest or not self.flags & bits.RUN_PENDING:
            return False
        event = self.areas[0].event_inj
        kind, vector = event >> 8 & 7, event & 0xFF
        soft = kind == _SOFT_INTERRUPT or (kind == _EXCEPTION and vector in _SOFT)
        return bool(event & bits.EVENT_VALID and soft)

    def _vmcb(self) -> Iterator[RuleResult]:
        line = self.nested.line
        whole = int(self.header["size"]) >= layouts.NESTED_STATE_SIZE
        if self.areas is not None and whole and not self.guest and _has_run(self.areas[0]):
            note = "it has a VMCB with intercepts and an ASID, and is not in guest mode"
            yield result("O-32", RuleOutcome.VIOLATED, line, note)
        else:
            yield self._ok("O-32")
        if self.header["gpat"] and self.guest:
            yield result("O-24", RuleOutcome.VIOLATED, line, f"gpat is {self.header['gpat']:#x}")
        else:
            yield self._ok("O-24")
        if self.areas is None:
            return
        hyperv = self.areas[0].hv_enlightenments
        if self.guest and (hyperv.control or hyperv.partition_assist_page):
            yield result("O-29", RuleOutcome.VIOLATED, line)
        else:
            yield self._ok("O-29")

    def _smm(self) -> Iterator[RuleResult]:
        events = [step for step in (*self.before, *self.after) if step.name in EVENTS]
        last = events_of(events[-1]) if events else None
        if last is None:
            return
        in_smm = bool(last["flags"] & SMM_VALID and last["smm"])
        outcome = RuleOutcome.VIOLATED if in_smm and self.guest else RuleOutcome.OK
        note = "smm is 1 and the nested state is in guest mode"
        yield result("O-18", outcome, events[-1].line, note if in_smm and self.guest else "")

    def _ratio(self) -> RuleResult:
        for step in self.after:
            value = (msrs_of(step) or {}).get(_TSC_RATIO) if step.name in MSRS else None
            if value and value != _ONE_TO_ONE and self.guest:
                note = f"the ratio is {value:#x}"
                return result("O-14", RuleOutcome.VIOLATED, step.line, note)
        return self._ok("O-14")

    def _pdptrs(self) -> RuleResult:
        sregs = next(
            (step for step in reversed((*self.before, *self.after)) if step.name in SREGS), None
        )
        values = unpacked(layouts.SREGS, sregs)
        if sregs is None or values is None or not self.guest:
            return self._ok("O-23")
        pae = uses_pae(values["cr0"], values["cr4"], values["efer"])
        more = unpacked(layouts.SREGS2, sregs) if sregs.name.endswith("2") else None
        given = more is not None and bool(more["flags"] & _PDPTRS_VALID)
        outcome = RuleOutcome.VIOLATED if pae and not given else RuleOutcome.OK
        return result("O-23", outcome, sregs.line)

    # --- answers to the rules about order ---

    def nested_paging(self) -> bool | None:
        """Whether L1 uses nested paging for L2; None without data or outside guest mode."""
        if self.areas is None or not self.guest:
            return None
        return bool(self.areas[0].nested_ctl & _NP_ENABLE)

    def whole_msrs(self) -> bool:
        """Whether the put has the MSRs of a whole vCPU, and not some only."""
        return _STAR in _all_msrs((*self.before, *self.after))

    def hsave(self) -> int | None:
        """Return VM_HSAVE_PA as the put sets it; -1 if its MSRs lack it, None without data."""
        found = None
        for step in (*self.before, *self.after):
            values = msrs_of(step) if step.name in MSRS else None
            if values is not None:
                found = values.get(_HSAVE, -1 if found is None else found)
        return found


def _all_msrs(steps: Sequence[Step]) -> set[int]:
    return {number for step in steps if step.name in MSRS for number in msrs_of(step) or {}}


def _has_run(control: Fields) -> bool:
    return bool(control.asid and any(control.intercepts))


def _keeps_next_rip(kernel: Profile) -> bool:
    from qemu_svm.model.kernels.release import Release
    from qemu_svm.model.kernels.table import BY_ID

    fixed = BY_ID["next-rip-at-run"].is_in(Release(*kernel.numbers))
    return "next_rip" in kernel.control_fields and not fixed


def _ignores_gif(kernel: Profile) -> bool:
    return kernel.ignores_gif


def _ignores_run_pending(kernel: Profile) -> bool:
    from qemu_svm.model.profile import RunPending

    return kernel.run_pending is RunPending.IGNORED


def last_nested(steps: Sequence[Step]) -> Step:
    """Return the last NESTED_STATE that did not fail, or the last one."""
    every = [step for step in steps if step.name == NESTED]
    taken = [step for step in every if step.error is None]
    return (taken or every)[-1]
