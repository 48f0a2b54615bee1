"""One vCPU out of its ``cpu`` section.

While the vCPU runs L2, these registers are **L2's**; L1's are in the save area
of the nested state.

Source: QEMU ``target/i386/machine.c`` (``vmstate_x86_cpu``), the same field
names from 5.2 to 11.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qemu_svm.errors import StreamError
from qemu_svm.fields import Fields
from qemu_svm.machine import flags
from qemu_svm.nested import NestedState, bits, from_values
from qemu_svm.stream import LayoutOrigin
from qemu_svm.stream.vmstate.values import Value
from qemu_svm.x86.segments import Segment, attrib_from_flags

if TYPE_CHECKING:
    from qemu_svm.machine.recorded import RecordedPut

_GENERAL = (
    ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
    + tuple(f"r{number}" for number in range(8, 16))
)  # fmt: skip
"""QEMU's order of ``env.regs``."""

_PLAIN = {
    "rip": "env.eip",
    "rflags": "env.eflags",
    "cr0": "env.cr[0]",
    "cr2": "env.cr[2]",
    "cr3": "env.cr[3]",
    "cr4": "env.cr[4]",
    "xcr0": "env.xcr0",
    "mxcsr": "env.mxcsr",
    "hflags": "env.hflags",
    "hflags2": "env.hflags2",
    "efer": "env.efer",
    "star": "env.star",
    "lstar": "env.lstar",
    "cstar": "env.cstar",
    "sfmask": "env.fmask",
    "kernel_gs_base": "env.kernelgsbase",
    "sysenter_cs": "env.sysenter_cs",
    "sysenter_esp": "env.sysenter_esp",
    "sysenter_eip": "env.sysenter_eip",
    "pat": "env.pat",
    "smbase": "env.smbase",
    "vm_hsave_pa": "env.vm_hsave",
    "vm_vmcb": "env.vm_vmcb",
    "tsc": "env.tsc",
    "tsc_aux": "env.tsc_aux",
    "mp_state": "env.mp_state",
}
"""Registers that are one field of the section."""

_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_TABLES = {"ldt": "env.ldt", "tr": "env.tr", "gdt": "env.gdt", "idt": "env.idt"}


class Registers(Mapping[str, Value]):
    """Registers by name.

    ``registers["rip"]`` is the :class:`Value` with its offset in the stream,
    ``registers.rip`` the number.

    :raises AttributeError: (attribute access) this vCPU has no register of that name.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __getattr__(self, name: str) -> int:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"no register '{name}'")
        value = self._values[name].value
        return value if isinstance(value, int) else 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"Registers({', '.join(f'{name}={getattr(self, name):#x}' for name in self)})"


@dataclass(frozen=True, slots=True)
class Vcpu:
    """A vCPU as it was saved.

    :param index: QEMU's CPU index (the section's instance id).
    :param registers: by name, as numbers or with their offsets in the stream.
    :param segments: by name, ``ldt``, ``tr``, ``gdt`` and ``idt`` included.
    :param segment_values: the same as values with offsets.
    :param nested: nested state; None if the stream has none for this vCPU.
    :param section: the whole decoded section.
    :param described: origin of the section's layout; ``builtin`` is a guess.
    :param parts: KVM's structures that there are, by the ioctls' names after ``GET_``; None
        in a stream, which has all that QEMU saves.
    :param put: the ioctls that a recording has of this vCPU; None for any other input.
    """

    index: int
    registers: Registers
    segments: Fields
    segment_values: Mapping[str, Value] = field(repr=False)
    nested: NestedState | None
    section: Value = field(repr=False)
    problems: tuple[StreamError, ...] = ()
    described: LayoutOrigin = LayoutOrigin.EMBEDDED
    parts: frozenset[str] | None = None
    put: RecordedPut | None = None

    def get(self, name: str) -> int:
        """Return a register; 0 if this CPU model has none of that name."""
        value = self.registers.get(name)
        return value.value if value is not None and isinstance(value.value, int) else 0

    def has(self, *names: str) -> bool:
        """Whether one of KVM's structures is there; in a stream, all are."""
        return self.parts is None or not self.parts.isdisjoint(names)

    @property
    def guest_mode(self) -> bool:
        """Whether the vCPU was running L2 (QEMU's GUEST flag, else that of the nested state)."""
        if self.parts is not None:
            return self.nested is not None and self.nested.guest_mode
        return bool(self.get("hflags") & flags.GUEST)

    @property
    def gif(self) -> bool:
        """Global interrupt flag; set in a vCPU whose nested state is not there."""
        if self.parts is not None:
            return self.nested is None or bool(self.nested.flags & bits.GIF_SET)
        return bool(self.get("hflags2") & flags.GIF)

    @property
    def smm(self) -> bool:
        """Whether the vCPU was in system management mode."""
        if self.parts is not None:
            events = self.section.child("VCPU_EVENTS")
            return events is not None and bool(events.number("smm"))
        return bool(self.get("hflags") & flags.SMM)

    @property
    def cpl(self) -> int:
        """Privilege level: SS.DPL, as QEMU determines it on load."""
        stack: Segment | None = self.segments.get("ss")
        return stack.dpl if stack is not None else 0


def read_vcpu(index: int, section: Value, described: LayoutOrigin = LayoutOrigin.EMBEDDED) -> Vcpu:
    """Return the vCPU that a decoded ``cpu`` section describes."""
    problems: list[StreamError] = []
    nested = None
    subsection = section.child("cpu/nested_state")
    if subsection is not None:
        try:
            nested = from_values(subsection)
        except StreamError as error:
            problems.append(error)
    values = dict(_segment_values(section))
    return Vcpu(
        index=index,
        registers=Registers(dict(_registers(section))),
        segments=Fields({name: _segment(value) for name, value in values.items()}),
        segment_values=values,
        nested=nested,
        section=section,
        problems=tuple(problems),
        described=described,
    )


def _registers(section: Value) -> Iterator[tuple[str, Value]]:
    yield from _elements(section.child("env.regs"), _GENERAL)
    yield from _elements(section.child("env.dr"), [f"dr{number}" for number in range(8)])
    for name, path in _PLAIN.items():
        value = section.child(path)
        if value is not None:
            yield name, value
    # PAE paging; from KVM_GET_SREGS2, so QEMU 6.2 and Linux 5.14 or later.
    pdptrs = section.child("cpu/pdptrs")
    if pdptrs is not None:
        names = [f"pdptr{number}" for number in range(4)]
        yield from _elements(pdptrs.child("env.pdptrs"), names)
    efer32 = section.child("cpu/efer32")
    if efer32 is not None and efer32.children:
        yield "efer", efer32.children[0]


def _elements(
    array: Value | None, names: tuple[str, ...] | list[str]
) -> Iterator[tuple[str, Value]]:
    if array is None or not isinstance(array.value, tuple) or not array.value:
        return
    width = array.size // len(array.value)
    for index, (name, number) in enumerate(zip(names, array.value, strict=False)):
        if name not in ("dr4", "dr5"):  # KVM mirrors DR6 and DR7 there
            yield name, Value(name, f"uint{8 * width}", array.offset + index * width, width, number)


def _segment_values(section: Value) -> Iterator[tuple[str, Value]]:
    array = section.child("env.segs")
    if array is not None:
        yield from zip(_SEGMENTS, array.children, strict=False)
    for name, path in _TABLES.items():
        value = section.child(path)
        if value is not None:
            yield name, value


def _segment(value: Value) -> Segment:
    return Segment(
        selector=value.number("selector"),
        base=value.number("base"),
        limit=value.number("limit"),
        attrib=attrib_from_flags(value.number("flags")),
    )
