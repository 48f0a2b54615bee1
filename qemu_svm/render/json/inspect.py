"""The JSON document of ``inspect``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.fields import Fields
from qemu_svm.findings.inspection import Inspection
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.nested import NestedState, bits, groups, layout
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.nested.image import Image
from qemu_svm.render.json.base import (
    SCHEMA_VERSION,
    Digits,
    digits,
    finding,
    hex_text,
    segment,
    source,
)
from qemu_svm.render.json.recorded import recorded_put
from qemu_svm.stream import Record

_COUNTS = frozenset(
    {"asid", "pause_filter_thresh", "pause_filter_count", "tlb_ctl", "insn_len"}
    | {"bus_lock_counter", "cpl", "vmpl"}
)
"""Fields of the VMCB that are numbers, not masks or addresses."""


def render(result: Inspection) -> dict[str, Any]:
    """Return the document."""
    machine = result.machine
    stream = machine.stream
    configuration = stream.configuration
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source(stream.source),
        "stream": {
            "version": stream.version,
            "complete": stream.complete,
            "machine": machine.name,
            "page_size": stream.page_size,
            "page_size_from": stream.page_size_from,
            "capabilities": list(configuration.capabilities) if configuration else [],
            "uuid": digits(configuration.uuid) if configuration and configuration.uuid else None,
            "description": stream.description_source,
        },
        "form": machine.form,
        "sections": [
            _record(record)
            if machine.form is None
            else _record(record) | {"origin": machine.origins.get(record.offset)}
            for record in stream.records
        ],
        "ram": _ram(machine) if result.ram else None,
        "vcpus": [_vcpu(vcpu) for vcpu in machine.vcpus],
        "problems": [finding(one) for one in result.problems],
    }


def _record(record: Record) -> dict[str, Any]:
    return {
        "offset": record.offset,
        "size": record.size,
        "type": record.kind.value,
        "section_id": record.section_id,
        "name": record.name,
        "instance_id": record.instance_id,
        "version_id": record.version_id,
        "opaque": record.opaque,
        "described": record.described,
        "count": record.count,
    }


def _ram(machine: Machine) -> dict[str, Any]:
    pages = machine.stream.pages
    return {
        "blocks": [{"name": b.name, "size": b.used_length} for b in machine.blocks],
        "pages": None
        if pages is None
        else {
            "normal": pages.normal,
            "zero": pages.zero,
            "xbzrle": pages.xbzrle,
            "compressed": pages.compressed,
        },
    }


def _vcpu(vcpu: Vcpu) -> dict[str, Any]:
    registers = {
        name: hex_text(value.value)
        for name, value in vcpu.registers.items()
        if isinstance(value.value, int)
    }
    return {
        "index": vcpu.index,
        "described": vcpu.described,
        "parts": None if vcpu.parts is None else sorted(vcpu.parts),
        "put": None if vcpu.put is None else recorded_put(vcpu.put),
        "registers": registers,
        "segments": {name: segment(value) for name, value in vcpu.segments.items()},
        "cpl": vcpu.cpl,
        "guest_mode": vcpu.guest_mode,
        "gif": vcpu.gif,
        "smm": vcpu.smm,
        "nested": None if vcpu.nested is None else _nested(vcpu.nested),
    }


def _nested(nested: NestedState) -> dict[str, Any]:
    return {
        "format": nested.format_name,
        "flags": {"value": hex_text(nested.flags), "names": bits.FLAGS.names(nested.flags)},
        "size": nested.size,
        "offset": nested.offset,
        "vmcb_pa": hex_text(nested.vmcb_pa) if nested.vmcb else None,
        "control": _control(nested) if nested.vmcb else None,
        "l1_save": _l1_save(nested) if nested.vmcb else None,
    }


def _l1_save(nested: NestedState) -> dict[str, Any]:
    return _area(layout.SAVE, nested.l1_save, layout.SAVE_OFFSET) | {
        "not_l1_state": _not_l1_state()
    }


def _not_l1_state() -> list[str]:
    """Fields of the save area that are not L1's on every kernel."""
    own = groups.L1_STATE | groups.L1_STATE_SINCE_7
    return [m.name for m in layout.SAVE.members if not m.reserved and m.name not in own]


def _control(nested: NestedState) -> dict[str, Any]:
    control = nested.control
    words = list(control.intercepts)
    return {
        **_area(layout.CONTROL, control, layout.CONTROL_OFFSET),
        "intercepts": bits.INTERCEPTS.names(bits.intercept_words(words)),
        "intercept_words": [hex_text(word) for word in words],
        "exit_code_name": exit_name(control.exit_code),
        **{f"{name}_names": table.names(control[name]) for name, table in bits.NAMED.items()},
    }


def _area(image: Image, values: Fields, base: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    reserved: dict[str, Digits] = {}
    for member in image.members:
        value = values[member.name]
        if not member.reserved:
            result[member.name] = _plain(member.name, value)
        elif any(value):
            reserved[hex_text(base + member.offset)] = digits(value)
    result["reserved"] = reserved
    return result


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Fields):
        return {key: _plain(key, item) for key, item in value.items()}
    if isinstance(value, bytes):
        return digits(value)
    if isinstance(value, tuple):
        return [hex_text(item) for item in value]
    return value if name in _COUNTS else hex_text(value)
