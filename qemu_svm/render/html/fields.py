"""Registers and fields of the nested state as rows: value, bits, words, places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qemu_svm.nested import bits, layout
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.html.values import Address, Cell, Msr, Offset, Raw
from qemu_svm.render.words import bit_names, description, meaning, not_migrated
from qemu_svm.stream import Value
from qemu_svm.x86.bits import Bits
from qemu_svm.x86.registers import NAMED
from qemu_svm.x86.segments import TABLES, Segment, attrib_words

if TYPE_CHECKING:
    from qemu_svm.machine import Vcpu
    from qemu_svm.nested import NestedState

PLAIN = frozenset(
    {
        *(
            "rflags",
            "cr0",
            "cr4",
            "cr8",
            "efer",
            "dr6",
            "dr7",
            "xcr0",
            "mxcsr",
            "hflags",
            "hflags2",
        ),
        *("mp_state", "flags", "format", "size", "intercepts", "asid", "tlb_ctl", "erap_ctl"),
        *("pause_filter_thresh", "pause_filter_count", "int_ctl", "int_vector", "int_state"),
        *("exit_code", "exit_info_1", "exit_int_info", "exit_int_info_err", "nested_ctl"),
        *("event_inj", "event_inj_err", "virt_ext", "clean", "insn_len", "bus_lock_counter"),
        *("allowed_sev_features", "guest_sev_features", "vmpl", "cpl", "selector", "attrib"),
        *("limit", "control", "vp_id", "vm_id", "avic_physical_id"),
    }
)
"""Fields with flags or numbers: neither addresses nor MSRs that one may want to leave out."""

MSRS = frozenset(
    {
        *("star", "lstar", "cstar", "sfmask", "kernel_gs_base", "pat", "g_pat", "vm_hsave_pa"),
        *("sysenter_cs", "sysenter_esp", "sysenter_eip", "tsc", "tsc_aux", "tsc_offset", "smbase"),
        *("vm_vmcb", "spec_ctrl", "dbgctl", "br_from", "br_to", "last_excp_from"),
        *("last_excp_to", "s_cet", "u_cet", "xss", "ssp", "isst_addr", "instr_retired_ctr"),
        *("perf_ctr_global_sts", "perf_ctr_global_ctl"),
    }
)
"""Registers that are MSRs, or are loaded from them."""

_COMPARED = (
    *("rip", "rsp", "rax", "rflags", "cr0", "cr3", "cr4", "efer", "dr6", "dr7"),
    *("cs", "ss", "ds", "es", "gdt", "idt"),
)
_TABLE_NAMES = {"gdt": "gdtr", "idt": "idtr"}
_SYSTEM = frozenset({"ldt", "ldtr", "tr"})
_NOT_L1 = frozenset({"dr6", "dr7"})
"""Fields of the save area that are not L1's (``nested/groups.py``)."""


@dataclass(frozen=True, slots=True)
class Bit:
    """One bit with its name."""

    number: int
    name: str
    set: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A value as it is shown.

    :param cells: one after the other.
    :param names: of the bits that are set, or what the value means.
    """

    cells: tuple[Cell, ...]
    names: str = ""


@dataclass(slots=True)
class Row:
    """A register of L2 beside that of L1.

    :param wrong: for each level, what is wrong with it, in words.
    """

    name: str
    l2: Shown | None
    l1: Shown | None
    wrong: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the nested state.

    :param at: offset in the VMCB, or in the header.
    :param offset: in the stream.
    :param idle: reserved or not migrated, and zero.
    """

    at: str
    offset: Offset
    name: str
    shown: Shown
    words: str
    bits: tuple[Bit, ...]
    idle: bool
    wrong: tuple[str, ...]


def number(name: str, value: int) -> Cell:
    """Return a register's or a field's value as what it is: address, MSR, or plain."""
    last = name.rpartition(".")[2]
    if last in PLAIN:
        return f"{value:#x}"
    return Msr(value) if last in MSRS else Address(value)


def content(name: str, value: int | Segment) -> Shown:
    """Return the content of a register."""
    if isinstance(value, Segment):
        if name in TABLES:
            return Shown((Address(value.base), f" limit {value.limit:#x}"))
        return Shown(
            (f"{value.selector:#x} base ", Address(value.base), f" limit {value.limit:#x}"),
            attrib_words(value.attrib, system=name in ("ldt", "ldtr", "tr"))
            if value.attrib
            else "",
        )
    table = NAMED.get(name)
    names = [one for one in table.names(value) if one != "1"] if table is not None else []
    return Shown((number(name, value),), " ".join(names))


def columns(vcpu: Vcpu, wrong: dict[tuple[str, str], list[str]]) -> list[Row]:
    """Return the registers of L2 and of L1, side by side.

    :param wrong: what is wrong, by level and register.
    """
    nested = vcpu.nested if vcpu.nested is not None and vcpu.nested.vmcb else None
    level = "L2" if vcpu.guest_mode else "L1"
    rows = []
    for name in _COMPARED:
        theirs = _TABLE_NAMES.get(name, name)
        own = _of_vcpu(vcpu, name)
        l1 = None
        if nested is not None and name not in _NOT_L1:
            raw = nested.l1_save[theirs]
            if not isinstance(raw, int):
                raw = Segment(raw.selector, raw.base, raw.limit, raw.attrib)
            l1 = content(name, raw)
        row = Row(name, own, l1) if level == "L2" else Row(name, None, own)
        for one in ("L2", "L1"):
            found = wrong.get((one, name), []) + (
                wrong.get((one, theirs), []) if theirs != name else []
            )
            if found:
                row.wrong[one] = found
        rows.append(row)
    return rows


def _of_vcpu(vcpu: Vcpu, name: str) -> Shown | None:
    if name in vcpu.segments:
        return content(name, vcpu.segments[name])
    return content(name, vcpu.get(name)) if name in vcpu.registers else None


def registers(vcpu: Vcpu) -> Iterator[tuple[str, Shown, int]]:
    """Yield every register of a vCPU: name, value, offset in the stream."""
    for name, value in vcpu.registers.items():
        if isinstance(value.value, int):
            yield name, content(name, value.value), value.offset
    for name, segment in vcpu.segments.items():
        yield name, content(name, segment), vcpu.segment_values[name].offset


def fields(vcpu: Vcpu, nested: NestedState, wrong: dict[str, list[str]]) -> Iterator[
    tuple[str, list[Field]]
]:  # fmt: skip
    """Yield the parts of the nested state with all their fields.

    :param wrong: what is wrong, by path.
    """
    tree = nested.tree()
    prefix = f"vcpu{vcpu.index}.nested"
    header = [one for one in tree.children if not one.children]
    start = tree.offset
    yield "header", [_field(prefix, one, one.offset - start, wrong) for one in header]
    for area, base in (("control", 0), ("l1_save", layout.SAVE_OFFSET)):
        part = tree.child(area)
        if part is None:
            continue
        yield (
            area,
            [
                _field(f"{prefix}.{area}", one, base + one.offset - part.offset, wrong)
                for one in part.children
            ],
        )


def _field(prefix: str, value: Value, at: int, wrong: dict[str, list[str]]) -> Field:
    path = f"{prefix}.{value.name}"
    found = [text for key, texts in wrong.items() for text in texts
             if key == path or key.startswith(path + ".")]  # fmt: skip
    reserved = value.name.startswith("reserved") or not_migrated(path)
    return Field(
        f"{at:#05x}", Offset(value.offset), value.name, _shown(path, value), description(path),
        _bits(value), reserved and not _anything(value), tuple(found),
    )  # fmt: skip


def _anything(value: Value) -> bool:
    if value.children:
        return any(_anything(child) for child in value.children)
    return any(value.value) if isinstance(value.value, bytes) else bool(value.value)


def _shown(path: str, value: Value) -> Shown:
    if value.children:
        cells: list[Cell] = []
        words = ""
        for child in value.children:
            cells.append(f"{' ' if cells else ''}{child.name} ")
            cells.append(_leaf(child))
            if child.name == "attrib" and value.name not in TABLES:
                assert isinstance(child.value, int)
                words = attrib_words(child.value, system=value.name in ("ldtr", "tr"))
        return Shown(tuple(cells), words)
    names = bit_names(path, value)
    words = meaning(path, value) or " ".join(names or ())
    if value.name == "exit_code" and isinstance(value.value, int):
        words = exit_name(value.value)
    return Shown((_leaf(value),), words)


def _leaf(value: Value) -> Cell:
    found = value.value
    if isinstance(found, bytes):
        if not any(found):
            return f"{len(found)} zero bytes"
        return Raw(found.hex(" "), len(found))
    if isinstance(found, tuple):
        return " ".join(f"{one:#x}" for one in found)
    if isinstance(found, int):
        return number(value.name, found)
    return "" if found is None else str(found)


_TABLES: dict[str, Bits] = {
    **bits.NAMED,
    "flags": bits.FLAGS,
    **{name: NAMED[name] for name in ("cr0", "cr4", "efer", "rflags") if name in NAMED},
}


def _bits(value: Value) -> tuple[Bit, ...]:
    if value.name == "intercepts" and isinstance(value.value, tuple):
        return tuple(_all_bits(bits.INTERCEPTS, bits.intercept_words(list(value.value))))
    table = _TABLES.get(value.name)
    if table is None or not isinstance(value.value, int):
        return ()
    return tuple(_all_bits(table, value.value))


def _all_bits(table: Bits, value: int) -> Iterable[Bit]:
    known = dict(table.items())
    for one in known.items():
        yield Bit(*one, bool(value >> one[0] & 1))
    named = set(table.names(value))
    for number_ in range(value.bit_length()):
        if value >> number_ & 1 and number_ not in known and f"bit {number_}" in named:
            yield Bit(number_, "no name", set=True)
