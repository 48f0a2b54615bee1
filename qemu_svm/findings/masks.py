"""Masks: fields that are known to differ between two good streams of one guest.

A difference is expected for one of two reasons: a kernel or QEMU does not keep the
field (it writes zero, an old value, or clears bits), or the field is a clock.  A mask
has the field and the reason; masked differences are still counted.

A pattern is a path of :mod:`qemu_svm.machine.paths`, in which ``*`` matches any
characters.  It covers everything below it.  Brackets at its end select elements:
``[3]``, ``[0..9]``, ``[*]``.

Source: Linux ``arch/x86/kvm/svm/nested.c`` and ``svm.c`` (5.10, 6.1, 6.12,
7.2): which fields KVM_GET_NESTED_STATE fills, and from what; QEMU
``target/i386/kvm/kvm.c``, ``hw/rtc/mc146818rtc.c``, ``hw/timer/i8254_common.c``,
``migration/global_state.c``.  The behaviour of KVM was measured on real kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from qemu_svm.machine import flags
from qemu_svm.nested import groups, layout
from qemu_svm.nested.image import Image
from qemu_svm.stream import Value

_ELEMENTS = re.compile(r"\[(\*|\d{1,18})(?:\.\.(\d{1,18}))?\]$")
_NESTED = "vcpu*.nested."
_UNARMED = -1


@dataclass(frozen=True, slots=True)
class Mask:
    """A reason why a difference does not count.

    :param ignore: bits that do not count; None for the whole field.
    :param type: only for fields of that vmstate type.
    """

    id: str
    pattern: str
    reason: str
    source: str
    ignore: int | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of one comparison."""

    masks: tuple[Mask, ...] = field(default_factory=tuple)
    _any: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Most differences are covered by none.
        every = "|".join(_expression(mask.pattern) for mask in self.masks)
        object.__setattr__(self, "_any", re.compile(every or "(?!)", re.DOTALL))

    def find(self, path: str, a: Value | None, b: Value | None) -> Mask | None:
        """Return the mask that covers a difference at ``path``; None if it counts."""
        if not self._any.fullmatch(path):
            return None
        for mask in self.masks:
            if _whole(mask.pattern).fullmatch(path) and _applies(mask, a, b):
                return mask
        return None

    def of_elements(self, path: str) -> list[Mask]:
        """Return the masks that select elements of the array at ``path``."""
        found = []
        for mask in self.masks:
            end = _ELEMENTS.search(mask.pattern)
            if end and _whole(mask.pattern[: end.start()]).fullmatch(path):
                found.append(mask)
        return found


def selects(mask: Mask, index: int) -> bool:
    """Whether a mask that ends in brackets selects element ``index``."""
    end = _ELEMENTS.search(mask.pattern)
    if end is None:
        return False
    if end[1] == "*":
        return True
    first = int(end[1])
    return first <= index <= (int(end[2]) if end[2] else first)


def user_masks(patterns: Sequence[str]) -> tuple[Mask, ...]:
    """Make masks of patterns given by the user."""
    return tuple(
        Mask(f"user-{number}", pattern, "requested with --mask", "the command line")
        for number, pattern in enumerate(patterns, 1)
    )


@cache
def _whole(pattern: str) -> re.Pattern[str]:
    return re.compile(_expression(pattern), re.DOTALL)


def _expression(pattern: str) -> str:
    # Runs of stars are one star, so that no pattern can be slow.
    parts = [re.escape(part) for part in re.split(r"\*+", pattern)]
    return f"(?:{'.*'.join(parts)})(?:[.\\[].*)?"


def _applies(mask: Mask, a: Value | None, b: Value | None) -> bool:
    if mask.ignore is None and mask.type is None:
        return True
    if a is None or b is None:
        return False
    if mask.type is not None:
        # A timer that is armed on one side only is a real difference.
        armed = [value.value != _UNARMED for value in (a, b)]
        return a.type == b.type == mask.type and armed[0] == armed[1]
    if not isinstance(a.value, int) or not isinstance(b.value, int):
        return False
    return not (a.value ^ b.value) & ~(mask.ignore or 0)


def _rows(
    name: str, patterns: Iterable[str], reason: str, source: str, *, ignore: int | None = None
) -> tuple[Mask, ...]:
    return tuple(Mask(name, pattern, reason, source, ignore) for pattern in patterns)


def _named(image: Image, wanted: frozenset[str]) -> list[str]:
    # In the order of the layout.
    return [member.name for member in image.members if member.name in wanted]


_SHARED = frozenset(groups.VMLOAD_GROUP)
_OF_L1 = groups.L1_STATE | groups.L1_STATE_SINCE_7
_NOT_CACHED = [*_named(layout.CONTROL, groups.NOT_MIGRATED), "reserved_*"]
_VMLOAD = _named(layout.SAVE, _SHARED)
_LEFT_OVER = [
    *(
        member.name
        for member in layout.SAVE.members
        if not member.reserved and member.name not in _OF_L1 | _SHARED
    ),
    "reserved_*",
]

_CLOCK = "QEMU: the field holds a time of the virtual or the host's clock"

DEFAULT: tuple[Mask, ...] = (
    *_rows("control-not-kept", (f"{_NESTED}control.{name}" for name in _NOT_CACHED),
           "KVM never caches it: after a restore it is saved as zero",
           "Linux nested.c, nested_copy_vmcb_control_to_cache"),
    *_rows("next-rip", [f"{_NESTED}control.next_rip"],
           "not cached before 5.19; since 2026 it follows L2's execution",
           "Linux nested.c, nested_copy_vmcb_cache_to_control"),
    *_rows("permission-maps",
           [f"{_NESTED}control.{name}" for name in ("iopm_base_pa", "msrpm_base_pa")],
           "KVM clears bits 11:0", "Linux nested.c, nested_copy_vmcb_control_to_cache",
           ignore=0xFFF),
    *_rows("event-inj-reserved", [f"{_NESTED}control.event_inj"],
           "7.2 clears the reserved bits 30:12", "Linux nested.c, 7.2", ignore=0x7FFFF000),
    *_rows("int-vector-reserved", [f"{_NESTED}control.int_vector"],
           "7.2 keeps bits 7:0 only", "Linux nested.c, 7.2", ignore=0xFFFFFF00),
    *_rows("int-state-reserved", [f"{_NESTED}control.int_state"],
           "7.2 keeps bit 0 only", "Linux nested.c, 7.2", ignore=0xFFFFFFFE),
    *_rows("tlb-ctl-reserved", [f"{_NESTED}control.tlb_ctl"],
           "7.2 keeps bits 2:0 only", "Linux nested.c, 7.2", ignore=0xF8),
    *_rows("erap-ctl", [f"{_NESTED}control.erap_ctl"],
           "kept by 7.2 only", "Linux nested.c, 7.2"),
    *_rows("vmload-group", (f"{_NESTED}l1_save.{name}" for name in _VMLOAD),
           "not L1's: 5.13 and later return the value in vmcb01 while L2 runs, "
           "5.12 and earlier zero or the value restored",
           "Linux nested.c, svm_get_nested_state (vmcb01.save against hsave)"),
    *_rows("l1-save-leftovers", (f"{_NESTED}l1_save.{name}" for name in _LEFT_OVER),
           "KVM does not load it: an old value of vmcb01, zero in 5.12 and earlier",
           "Linux nested.c, svm_get_nested_state (vmcb01.save against hsave)"),
    *_rows("hflags", ["vcpu*.registers.hflags"],
           "QEMU recomputes all but GUEST and SMM on load", "QEMU target/i386/machine.c",
           ignore=~(flags.GUEST | flags.SMM)),
    *_rows("hflags2", ["vcpu*.registers.hflags2"],
           "newer QEMU sets VGIF also with KVM; only GIF and the NMI bits matter there",
           "QEMU target/i386/cpu.h", ignore=flags.HFLAGS2.mask("VGIF")),
    *_rows("tsc", ["vcpu*.registers.tsc"], "time passes", "QEMU target/i386/kvm/kvm.c"),
    *_rows("tsc-khz", ["section:cpu*.env.tsc_khz"],
           "the host's TSC frequency as its kernel measured it", "QEMU target/i386/kvm/kvm.c"),
    *_rows("clocks",
           ["section:timer.cpu_ticks_offset", "section:timer.cpu_clock_offset",
            "section:kvmclock.clock", "section:apic*.initial_count_load_time",
            "section:apic*.next_time", "section:*channels[*].count_load_time",
            "section:*channels[*].next_transition_time", "section:hpet*.hpet_counter",
            "section:hpet*.hpet_offset"],
           "time passes", _CLOCK),
    *_rows("rtc",
           ["section:mc146818rtc.cmos_data[0..9]", "section:mc146818rtc.cmos_data[50]",
            "section:mc146818rtc.base_rtc", "section:mc146818rtc.last_update",
            "section:mc146818rtc.offset", "section:mc146818rtc.next_alarm_time",
            "section:mc146818rtc.next_periodic_time"],
           "date and time of the guest's clock", "QEMU hw/rtc/mc146818rtc.c"),
    Mask("armed-timer", "section:*", "expiry of a timer, on a clock that keeps running",
         "QEMU migration/vmstate-types.c, type timer", type="timer"),
    *_rows("globalstate-tail",
           ["section:globalstate.runstate[90..99]", "section:globalstate.has_vm_was_suspended",
            "section:globalstate.vm_was_suspended", "section:globalstate.unused"],
           "QEMU 9.0 and later give the unused end of the run state's buffer names of its own",
           "QEMU migration/global_state.c"),
)  # fmt: skip
"""Masks that apply unless ``--no-masks``."""

ROUND_TRIP: tuple[Mask, ...] = (
    *_rows("stopped-copy", ["section:globalstate"],
           "the run state: the copy never ran", "QEMU migration/global_state.c"),
    *_rows("rtc-flags", ["section:mc146818rtc.cmos_data[12]"],
           "what the clock has reported: the host's keeps running while the guest is stopped",
           "QEMU hw/rtc/mc146818rtc.c, register C"),
    *_rows("ide-retry", [f"section:*bmdma*.migration_retry_{name}"
                         for name in ("unit", "sector_num", "nsector")],
           "where to retry a failed disk command; ignored on load if none failed",
           "QEMU hw/ide/pci.c, ide_bmdma_post_load"),
)  # fmt: skip
"""Further masks for a guest that was restored and saved at once."""
