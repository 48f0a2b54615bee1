"""A machine of the parts of a saved state.

The parts, one after another, are the bytes that offsets refer to; of a file with one raw
structure these are the file's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qemu_svm.errors import Malformed, StreamError
from qemu_svm.fields import Fields
from qemu_svm.kvm import layouts
from qemu_svm.limits import Limits
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.machine.vcpu import Registers
from qemu_svm.nested import NestedState, from_uapi
from qemu_svm.snapshots.forms import RECORDING
from qemu_svm.snapshots.parts import Part, Snapshot
from qemu_svm.source import BytesSource
from qemu_svm.stream import Kind, LayoutOrigin, RamBlock, Record, Stream, Value
from qemu_svm.stream.ram.laid import Laid, Piece
from qemu_svm.stream.sections import Layouts
from qemu_svm.x86.msrs import NUMBERS
from qemu_svm.x86.segments import Segment, flags_from_attrib, from_kvm

_PAGE = 4096
_TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64"}
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
_PLAIN = {
    "REGS": layouts.GENERAL,
    "DEBUGREGS": ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7"),
    "MP_STATE": ("mp_state",),
    "SREGS": _CONTROL,
    "SREGS2": _CONTROL,
}
"""Fields that are registers, by the name of the part."""
_WITHOUT_SEGMENTS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base", "flags", "pdptrs")
_PDPTRS_VALID = 1
_MXCSR = 24


def assemble(found: Snapshot, path: str, limits: Limits) -> Machine:
    """Return the machine that a snapshot was made of, as far as its parts go.

    A structure that cannot be read is among :attr:`~qemu_svm.machine.Machine.problems`.
    """
    source = BytesSource(b"".join(one.data for one in found.parts), path)
    source.container = found.form
    records, groups = [], dict[int, list[tuple[Part, int]]]()
    offset, origins = 0, dict[int, str]()
    for one in found.parts:
        origins[offset] = one.origin
        records.append(_record(one, offset))
        groups.setdefault(one.vcpu, []).append((one, offset))
        offset += len(one.data)
    vcpus = tuple(
        replace(_vcpu(index, parts), put=found.puts.get(index))
        for index, parts in sorted(groups.items())
    )
    blocks = tuple(
        RamBlock(f"ram{at}" if len(found.memory) > 1 else "ram", one.size, 0)
        for at, one in enumerate(found.memory)
    )
    problems = found.problems + tuple(problem for vcpu in vcpus for problem in vcpu.problems)
    stream = Stream(
        source=source, version=0, configuration=None, records=tuple(records), blocks=blocks,
        pages=None, page_size=_PAGE, page_size_from="x86", layouts=Layouts(LayoutOrigin.KVM),
        described={}, problems=found.problems, footers=True, complete=not problems, limits=limits,
        shared_names=frozenset(), laid=_laid(found),
    )  # fmt: skip
    return Machine(
        stream, None, vcpus, blocks, problems[len(found.problems) :], found.form, origins
    )


def _laid(found: Snapshot) -> Laid | None:
    if found.file is None or not found.memory:
        return None
    addresses = tuple(one.address for one in found.memory)
    pieces = tuple(
        (Piece(0, one.size // _PAGE, one.offset),) if one.pieces is None else one.pieces
        for one in found.memory
    )
    kind = "recording" if found.form == RECORDING else "snapshot"
    return Laid(found.file, addresses, pieces, f"the {kind}'s memory ranges")


def _record(one: Part, offset: int) -> Record:
    return Record(
        Kind.STATE, offset, len(one.data), one.name, instance_id=one.vcpu, payload=offset,
        payload_size=len(one.data), described=LayoutOrigin.KVM,
    )  # fmt: skip


def _vcpu(index: int, parts: list[tuple[Part, int]]) -> Vcpu:
    problems: list[StreamError] = []
    trees = {one.name: _tree(one, offset) for one, offset in parts}
    registers = dict(_registers(trees))
    segments = dict(_segments(trees))
    nested: NestedState | None = None
    for one, offset in parts:
        if one.name == "NESTED_STATE":
            try:
                nested = from_uapi(one.data, offset)
            except StreamError as error:
                problems.append(error)
    first = min(tree.offset for tree in trees.values())
    end = max(tree.end for tree in trees.values())
    return Vcpu(
        index=index,
        registers=Registers(registers),
        segments=Fields({name: _segment(value) for name, value in segments.items()}),
        segment_values=segments,
        nested=nested,
        section=Value(f"vcpu{index}", "parts", first, end - first, None, tuple(trees.values())),
        problems=tuple(problems),
        described=LayoutOrigin.KVM,
        parts=frozenset(trees),
    )


def _tree(one: Part, offset: int) -> Value:
    # A part with its fields; those of a list by the names of their entries.
    layout = layouts.ARGUMENTS[one.name]
    if one.name in ("XSAVE", "LAPIC", "FPU"):
        return Value(one.name, layout.name, offset, len(one.data), one.data)
    values = layout.unpack(one.data)
    children = [
        Value(each.name, _TYPES.get(each.format[-1], each.format), offset + each.offset,
              each.size, tuple(values[each.name]) if each.many else values[each.name])
        for each in layout.fields
    ]  # fmt: skip
    if one.name in ("MSRS", "CPUID2"):
        children += _entries(one, offset)
    if one.name == "NESTED_STATE" and len(one.data) > layout.size:
        rest = one.data[layout.size :]
        children.append(Value("data", "buffer", offset + layout.size, len(rest), rest))
    return Value(one.name, layout.name, offset, len(one.data), None, tuple(children))


def _entries(one: Part, offset: int) -> Iterator[Value]:
    names = {number: name for name, number in NUMBERS.items()}
    if one.name == "MSRS":
        size = layouts.MSR_ENTRY.size
        for at, entry in enumerate(
            layouts.unpack_list(layouts.MSRS, "nmsrs", layouts.MSR_ENTRY, one.data)
        ):
            place = offset + layouts.MSRS.size + at * size + 8
            name = names.get(entry["index"], f"{entry['index']:#x}")
            yield Value(name, "u64", place, 8, entry["data"])
        return
    size = layouts.CPUID_ENTRY.size
    for at, entry in enumerate(layouts.unpack_cpuid(one.data)):
        place = offset + layouts.CPUID2.size + at * size
        leaf = f"{entry['function']:#x}.{entry['index']:#x}"
        words = tuple(entry[name] for name in ("eax", "ebx", "ecx", "edx"))
        yield Value(leaf, "u32[4]", place + 12, 16, words)


def _registers(trees: dict[str, Value]) -> Iterator[tuple[str, Value]]:
    for part, names in _PLAIN.items():
        for child in trees[part].children if part in trees else ():
            if child.name in names:
                yield child.name, child
    for child in trees["MSRS"].children if "MSRS" in trees else ():
        if child.name in NUMBERS and not (child.name == "efer" and _has_sregs(trees)):
            yield child.name, child
    second = trees.get("SREGS2")
    if second is not None and second.number("flags") & _PDPTRS_VALID:
        array = second.child("pdptrs")
        assert array is not None
        assert isinstance(array.value, tuple)
        for number, value in enumerate(array.value):
            name = f"pdptr{number}"
            yield name, Value(name, "u64", array.offset + 8 * number, 8, value)
    yield from _extended(trees)


def _extended(trees: dict[str, Value]) -> Iterator[tuple[str, Value]]:
    xcrs = trees.get("XCRS")
    if xcrs is not None:
        array = xcrs.child("xcrs")
        assert array is not None
        assert isinstance(array.value, tuple)
        for at in range(min(xcrs.number("nr_xcrs"), len(array.value) // 2)):
            if array.value[2 * at] & 0xFFFF_FFFF == 0:
                place = array.offset + 16 * at + 8
                yield "xcr0", Value("xcr0", "u64", place, 8, array.value[2 * at + 1])
    xsave = trees.get("XSAVE")
    if xsave is not None and isinstance(xsave.value, bytes):
        number = int.from_bytes(xsave.value[_MXCSR : _MXCSR + 4], "little")
        yield "mxcsr", Value("mxcsr", "u32", xsave.offset + _MXCSR, 4, number)


def _has_sregs(trees: dict[str, Value]) -> bool:
    return "SREGS" in trees or "SREGS2" in trees


def _segments(trees: dict[str, Value]) -> Iterator[tuple[str, Value]]:
    tree = trees.get("SREGS2") or trees.get("SREGS")
    if tree is None:
        return
    fields = {child.name: child for child in tree.children}
    for name in layouts.SEGMENTS:
        parts = {key.partition(".")[2]: value for key, value in fields.items()
                 if key.startswith(f"{name}.")}  # fmt: skip
        base, limit, selector, first = (parts[key] for key in ("base", "limit", "selector", "type"))
        attrib = from_kvm({key: int(value) for key, value in parts.items()}).attrib
        flags = Value("flags", "kvm_segment", first.offset, 8, flags_from_attrib(attrib))
        children = tuple(
            Value(key, value.type, value.offset, value.size, value.value)
            for key, value in (("selector", selector), ("base", base), ("limit", limit))
        )
        yield name, Value(name, "kvm_segment", base.offset, 24, None, (*children, flags))
    for name in layouts.TABLES:
        base, limit = (fields[f"{name}.{key}"] for key in ("base", "limit"))
        children = tuple(
            Value(key, value.type, value.offset, value.size, value.value)
            for key, value in (("base", base), ("limit", limit))
        )
        yield name, Value(name, "kvm_dtable", base.offset, 16, None, children)


def _segment(value: Value) -> Segment:
    from qemu_svm.x86.segments import attrib_from_flags

    return Segment(
        value.number("selector"),
        value.number("base"),
        value.number("limit"),
        attrib_from_flags(value.number("flags")),
    )


def check_aligned(ranges: tuple[tuple[int, int], ...], where: str) -> None:
    """Raise unless all ``(address, size)`` are whole pages without overlap.

    :raises Malformed: they are not.
    """
    end = -1
    for address, size in sorted(ranges):
        if address % _PAGE or size % _PAGE or address < end or not 0 < size < 1 << 44:
            raise Malformed(
                "a list of memory ranges that is none",
                offset=0,
                field=where,
                expected="whole pages, one range after another",
                found=f"{size:#x} bytes at {address:#x}",
            )
        end = address + size
