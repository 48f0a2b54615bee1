"""The report of ``inspect``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from qemu_svm.findings.inspection import Inspection
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.nested import NestedState, bits
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.escape import printable
from qemu_svm.render.listing import counted, listed
from qemu_svm.render.sizes import size_words
from qemu_svm.render.text.base import (
    FAINT,
    HEADING,
    columns,
    entry,
    finding_lines,
    named_bits,
    page_size_words,
)
from qemu_svm.render.text.container import container_lines, libvirt_lines
from qemu_svm.snapshots.forms import WORDS
from qemu_svm.stream import Kind, LayoutOrigin, Record
from qemu_svm.stream.constants import TARGET_PAGE_SIZE, VERSION
from qemu_svm.stream.ram.page_size import GIVEN
from qemu_svm.x86.registers import NAMED
from qemu_svm.x86.segments import Segment, attrib_words

_COMPARED = ("rip", "rsp", "rax", "rflags", "cr0", "cr3", "cr4", "efer")
_PDPTRS = tuple(f"pdptr{number}" for number in range(4))
_MORE = (("cr2", "dr6", "dr7"), ("pat", "vm_hsave_pa"), _PDPTRS)
_L1_SEGMENTS = (("cs", "cs"), ("ss", "ss"), ("ds", "ds"), ("es", "es"))
_L1_TABLES = (("gdt", "gdtr"), ("idt", "idtr"))
_DESCRIPTION = {
    LayoutOrigin.EMBEDDED: "embedded",
    LayoutOrigin.BORROWED: "borrowed from another stream",
    LayoutOrigin.DUMP: "guessed from a dump",
    LayoutOrigin.KVM: "KVM's structures",
    LayoutOrigin.NONE: "none",
}
_GUESSED = {LayoutOrigin.BUILTIN: " (built-in layout)", LayoutOrigin.DUMP: " (fits the dump)"}
_IN_FULL = 4
_NOT_THERE = "not in the input"
_MOST_SECTIONS = 1 << 14


def render(result: Inspection, *, verbose: bool) -> Iterable[Text]:
    """Return the report, most important first.

    :param verbose: every vCPU in full.
    """
    machine, found = result.machine, result.problems
    yield from _head(machine)
    yield Text()
    if found:
        yield Text("Problems", HEADING)
        yield from finding_lines(found)
    else:
        yield Text("No problems found.")
    for vcpu in machine.vcpus:
        full = verbose or vcpu.guest_mode or vcpu.nested is not None or vcpu.index < _IN_FULL
        yield Text()
        yield from _vcpu(vcpu, full=full)
    if result.ram:
        yield Text()
        yield from _ram(machine)
    yield Text()
    yield from _sections(machine)
    yield from libvirt_lines(machine.stream.source)


def _head(machine: Machine) -> Iterable[Text]:
    stream = machine.stream
    state = "complete" if stream.complete else "NOT COMPLETE"
    kind = "QEMU migration stream" if machine.form is None else WORDS[machine.form]
    yield Text(f"{printable(stream.source.path)}: {kind}, {state}", HEADING)
    size = f"{stream.source.size()} bytes"
    if stream.source.compression != "none":
        size += f" (decompressed from {stream.source.compression})"
    yield entry("size", size)
    yield from container_lines(stream.source)
    if machine.form is None:
        if stream.version != VERSION:
            yield entry("version", str(stream.version))
        yield entry("machine", machine.name or "not in the stream")
    configuration = stream.configuration
    if configuration is not None and configuration.capabilities:
        yield entry("capabilities", " ".join(configuration.capabilities))
    if configuration is not None and configuration.uuid:
        yield entry("uuid", configuration.uuid.hex())
    if machine.blocks:
        total = sum(block.used_length for block in machine.blocks)
        first = machine.blocks[0]
        rest = len(machine.blocks) - 1
        text = f"{first.name} {size_words(first.used_length)}"
        if rest:
            text += f" and {rest} more blocks, {size_words(total)} in total"
        yield entry("RAM", text)
        if stream.page_size != TARGET_PAGE_SIZE or stream.page_size_from == GIVEN:
            yield entry("page size", page_size_words(stream))
    if machine.form is None:
        devices = sum(1 for _ in stream.sections())
        described = _DESCRIPTION[stream.description_source]
        yield entry("devices", f"{devices} sections, description {described}")
    nested = [vcpu.index for vcpu in machine.vcpus if vcpu.guest_mode]
    if machine.vcpus:
        yield entry("vCPUs", f"{len(machine.vcpus)}, {_in_l2(nested)}")


def _in_l2(nested: Sequence[int]) -> str:
    if not nested:
        return "none in guest mode"
    numbers = ", ".join(map(str, nested))
    return f"vCPU {numbers} in L2 (guest mode)" if len(nested) == 1 else f"vCPUs {numbers} in L2"


def _vcpu(vcpu: Vcpu, *, full: bool) -> Iterable[Text]:
    mode = "in L2 (guest mode)" if vcpu.guest_mode else "not in guest mode"
    smm = ", in SMM" if vcpu.smm else ""
    guessed = " (decoded by a built-in layout)" if vcpu.described is LayoutOrigin.BUILTIN else ""
    yield Text(f"vCPU {vcpu.index}: {mode}, GIF {int(vcpu.gif)}{smm}{guessed}", HEADING)
    if not full:
        yield entry("rip, cr3", f"{vcpu.get('rip'):#x}, {vcpu.get('cr3'):#x}")
        return
    if vcpu.put is not None:
        ran = {True: ", then it ran", False: ", it did not run", None: ""}[vcpu.put.ran]
        yield entry("recorded", f"{vcpu.put.label}{ran}")
    nested = vcpu.nested
    if nested is not None:
        where = f" at {nested.offset:#x}"
        yield entry(
            "nested state",
            named_bits(
                f"{nested.format_name}{where}, {nested.size} bytes, flags {nested.flags:#x}",
                bits.FLAGS.names(nested.flags),
            ),
        )
    if nested is not None and nested.vmcb:
        yield from _both(vcpu, nested)
        yield from _control(nested)
        return
    if nested is not None and not nested.is_svm:
        yield entry("", f"{nested.format_name} nested state is recognised, not decoded")
    yield Text("  L2's registers" if vcpu.guest_mode else "  registers", HEADING)
    for name in (*_COMPARED, *(name for names in _MORE for name in names)):
        if name in vcpu.registers:
            yield entry(name, _register(name, vcpu.get(name)))
    for name, segment in vcpu.segments.items():
        yield entry(name, _segment(name, segment))


def _both(vcpu: Vcpu, nested: NestedState) -> Iterable[Text]:
    save = nested.l1_save
    rows: list[list[str | Text]] = [
        [
            name,
            _register(name, vcpu.get(name)) if name in vcpu.registers else _NOT_THERE,
            _register(name, save[name]),
        ]
        for name in _COMPARED
    ]
    for ours, theirs in _L1_SEGMENTS + _L1_TABLES:
        raw = save[theirs]
        l1 = Segment(raw.selector, raw.base, raw.limit, raw.attrib)
        l2 = vcpu.segments.get(ours)
        rows.append([ours, _NOT_THERE if l2 is None else _segment(ours, l2), _segment(ours, l1)])
    yield from columns(
        [[Text(str(row[0]), "cyan"), *row[1:]] for row in rows],
        ("", "L2 (vCPU registers)", "L1 (save area of the nested state)"),
    )
    for names in _MORE:
        more = ", ".join(f"{n} {vcpu.get(n):#x}" for n in names if n in vcpu.registers)
        if more:
            yield entry("vCPU also", more)


def _control(nested: NestedState) -> Iterable[Text]:
    control = nested.control
    yield Text("  What L1 requests for L2 (control area)", HEADING)
    names = bits.INTERCEPTS.names(bits.intercept_words(list(control.intercepts)))
    yield entry("vmcb12 at", f"{nested.vmcb_pa:#x} (L1 physical)")
    yield entry("intercepts", " ".join(names) or "none")
    yield entry("asid", str(control.asid))
    paging = named_bits(f"{control.nested_ctl:#x}", bits.NESTED_CTL.names(control.nested_ctl))
    yield entry("nested_ctl", paging)
    if control.nested_ctl & 1:
        yield entry("nested_cr3", f"{control.nested_cr3:#x}")
    for name in ("int_ctl", "int_state", "virt_ext"):
        if control[name]:
            yield entry(
                name, named_bits(f"{control[name]:#x}", bits.NAMED[name].names(control[name]))
            )
    if control.event_inj & bits.EVENT_VALID:
        words = bits.event_words(control.event_inj, control.event_inj_err)
        yield entry("event_inj", f"{control.event_inj:#x} {words}")
    if control.tsc_offset:
        yield entry("tsc_offset", f"{control.tsc_offset:#x}")
    code = Text(f"{control.exit_code:#x} {exit_name(control.exit_code)}")
    yield entry("exit_code", code.append(" (stale: the exit before this VMRUN)", FAINT))


def _register(name: str, value: int) -> Text:
    table = NAMED.get(name)
    names = table.names(value) if table is not None else None
    return named_bits(f"{value:#x}", [n for n in names if n != "1"] if names else None)


def _segment(name: str, segment: Segment) -> Text:
    if name in ("gdt", "idt"):
        return Text(f"{segment.base:#x} limit {segment.limit:#x}")
    text = Text(f"{segment.selector:#x} ")
    if segment.base:
        text.append(f"base {segment.base:#x} ")
    return text.append(attrib_words(segment.attrib, system=name in ("ldt", "tr")), FAINT)


def _ram(machine: Machine) -> Iterable[Text]:
    yield Text("RAM", HEADING)
    yield from columns(
        [[block.name, size_words(block.used_length)] for block in machine.blocks],
        ("block", "size"),
    )
    pages = machine.stream.pages
    if pages is not None:
        counts = {"normal": pages.normal, "zero": pages.zero, "XBZRLE": pages.xbzrle}
        counts["compressed"] = pages.compressed
        words = [f"{count} {name}" for name, count in counts.items() if count or name == "normal"]
        yield entry("page records", ", ".join(words))


def _parts(machine: Machine) -> Iterable[Text]:
    yield Text("Structures", HEADING)
    rows: list[list[str | Text]] = [
        [
            f"{record.offset:#x}",
            str(record.size),
            f"vcpu{record.instance_id}",
            record.name or "",
            Text(printable(machine.origins.get(record.offset, "")), FAINT),
        ]
        for record in machine.stream.records
    ]
    yield from columns(rows, ("offset", "bytes", "vCPU", "of KVM_GET_", "where"))


def _sections(machine: Machine) -> Iterable[Text]:
    if machine.form is not None:
        yield from _parts(machine)
        return
    yield Text("Sections", HEADING)
    rows: list[list[str | Text]] = []
    for one in listed(machine.stream.records, _MOST_SECTIONS):
        if isinstance(one, Record):
            rows.append(_section(one))
        else:
            rows.append([f"{one.offset:#x}", str(one.size), "…", "", one.words])
    yield from columns(rows, ("offset", "bytes", "type", "version", "name"))


def _section(record: Record) -> list[str | Text]:
    name = record.name or ""
    if record.instance_id:
        name += f" instance {record.instance_id}"
    if record.kind is Kind.SKIPPED and record.count:
        name += f" ({counted(record)})"
    elif record.kind is Kind.SKIPPED:
        name += " (--ram reads it)"
    elif record.kind is Kind.LOST:
        name = "(no record: damage)"
    elif record.described in _GUESSED:
        name += _GUESSED[record.described]
    elif record.opaque:
        name += " (not described)"
    version = "" if record.version_id is None else str(record.version_id)
    return [f"{record.offset:#x}", str(record.size), record.kind.value, version, name]
