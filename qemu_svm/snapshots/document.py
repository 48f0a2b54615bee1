"""The JSON document of ``svmstream inspect --json`` as the state of its vCPUs.

What the document has is put back into KVM's structures: general and special registers, MSRs
that have a name in it, debug registers, the nested state with its reserved bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from construct import ConstructError

from qemu_svm.errors import SourceError
from qemu_svm.kvm import layouts
from qemu_svm.nested import layout
from qemu_svm.nested.image import Image
from qemu_svm.snapshots.parts import Part, part
from qemu_svm.x86.msrs import NUMBERS
from qemu_svm.x86.segments import Segment

_MASK = (1 << 64) - 1
_FORMATS = {"svm": layout.FORMAT_SVM, "vmx": layout.FORMAT_VMX}
_SREGS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
_DEBUG = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
_SMM_VALID = 8
_NEEDED = {"REGS": ("rip", "rflags"), "SREGS": ("cr0", "cr3", "cr4", "efer")}

Json = Mapping[str, Any]


def is_document(found: object) -> bool:
    """Whether parsed JSON is a document of ``inspect``."""
    return isinstance(found, dict) and "schema_version" in found and "vcpus" in found


def document_parts(found: Json, path: str) -> Iterator[Part]:
    """Return the parts of the vCPUs of a document.

    :raises SourceError: a member is not what ``inspect`` writes there.
    """
    vcpus = found["vcpus"]
    if not isinstance(vcpus, list):
        raise SourceError(f"'{path}': vcpus is not a list", hint="see docs/json.md")
    for at, one in enumerate(vcpus):
        where = f"vcpus[{at}]"
        try:
            yield from _vcpu(one, where)
        except (KeyError, TypeError, ValueError, OverflowError, ConstructError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)[:200]
            raise SourceError(
                f"'{path}': {where} is not as inspect --json writes it: {what}",
                hint="see docs/json.md",
            ) from error


def _vcpu(one: Json, where: str) -> Iterator[Part]:
    index = _number(one["index"])
    if not 0 <= index < 1 << 16:
        raise ValueError("an index that no vCPU has")
    registers = {name: _number(value) & _MASK for name, value in one["registers"].items()}

    def made(name: str, data: bytes) -> Part:
        return part(name, index, data, f"{where} of the document")

    if all(name in registers for name in _NEEDED["REGS"]):
        values = {name: registers[name] for name in layouts.GENERAL if name in registers}
        yield made("REGS", layouts.REGS.pack(values))
    if all(name in registers for name in _NEEDED["SREGS"]) and one["segments"]:
        sregs: dict[str, int] = {name: registers[name] for name in _SREGS if name in registers}
        sregs |= _segments(one["segments"])
        if "pdptr0" in registers:
            pdptrs = [registers.get(f"pdptr{number}", 0) for number in range(4)]
            yield made("SREGS2", layouts.SREGS2.pack({**sregs, "flags": 1, "pdptrs": pdptrs}))
        else:
            yield made("SREGS", layouts.SREGS.pack(sregs))
    pairs = [(number, registers[name]) for name, number in NUMBERS.items()
             if name in registers and name != "efer"]  # fmt: skip
    if pairs:
        yield made("MSRS", layouts.pack_msrs(pairs))
    if any(name in registers for name in _DEBUG):
        values = {name: registers[name] for name in _DEBUG if name in registers}
        yield made("DEBUGREGS", layouts.DEBUGREGS.pack(values))
    if "mp_state" in registers:
        state = layouts.MP_STATE.pack({"mp_state": registers["mp_state"] & 0xFFFF_FFFF})
        yield made("MP_STATE", state)
    if "smm" in one:
        events = {"smm": int(bool(one["smm"])), "flags": _SMM_VALID}
        yield made("VCPU_EVENTS", layouts.VCPU_EVENTS.pack(events))
    if one.get("nested") is not None:
        yield made("NESTED_STATE", _nested(one["nested"]))


def _segments(found: Json) -> dict[str, int]:
    values: dict[str, int] = {}
    for name in layouts.SEGMENTS:
        for key, value in _segment(found[name]).kvm().items():
            values[f"{name}.{key}"] = value
    for name in layouts.TABLES:
        table = _segment(found[name])
        values |= {f"{name}.base": table.base, f"{name}.limit": table.limit & 0xFFFF}
    return values


def _segment(found: Json) -> Segment:
    names = ("selector", "base", "limit", "attrib")
    return Segment(*(_number(found[name]) for name in names))


def _nested(found: Json) -> bytes:
    flags = _number(found["flags"]["value"])
    kind = str(found["format"])
    form = _FORMATS[kind] if kind in _FORMATS else int(kind.removeprefix("format "), 0)
    header = {"flags": flags & 0xFFFF, "format": form, "size": _number(found["size"])}
    if found.get("control") is None:
        return layouts.NESTED_STATE.pack(header)
    header["vmcb_pa"] = _number(found["vmcb_pa"])
    control = dict(found["control"])
    control["intercepts"] = control["intercept_words"]
    page = _image(layout.CONTROL, control, layout.CONTROL_OFFSET)
    page += _image(layout.SAVE, found["l1_save"], layout.SAVE_OFFSET)
    return layouts.NESTED_STATE.pack(header) + page


def _image(image: Image, found: Json, base: int) -> bytes:
    values = {}
    reserved = found.get("reserved", {})
    for member in image.members:
        if member.reserved:
            data = bytes.fromhex(reserved.get(f"{base + member.offset:#x}", ""))
            values[member.name] = data.ljust(member.size, b"\0")
        else:
            values[member.name] = _plain(found[member.name], member.size)
    return image.layout.build(values)


def _plain(value: Any, size: int) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item, len(item) // 2 if isinstance(item, str) else 8)
                for name, item in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, str) and not value.startswith(("0x", "-0x")):
        data = bytes.fromhex(value)
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes where {size} belong")
        return data
    return _number(value)


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError("not a number")
    return value if isinstance(value, int) else int(value, 16)
