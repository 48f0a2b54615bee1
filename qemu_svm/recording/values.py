"""The payload of an ioctl as values by name, and which of them do not count.

Names are those of the kernel's structures; the VMCB of nested state is ``control.*`` (what L1
asked for L2) and ``l1_save.*`` (L1's own state).  MSRs go by their name or number.

Source: Linux ``arch/x86/include/uapi/asm/kvm.h``; which event fields a flag makes valid:
``arch/x86/kvm/x86.c`` kvm_vcpu_ioctl_x86_set_vcpu_events; PDPTRs: ``__set_sregs2``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

from qemu_svm.fields import Fields
from qemu_svm.kvm import layouts
from qemu_svm.nested import layout, vmcb_fields
from qemu_svm.x86.msrs import NUMBERS

Values = Mapping[str, int | str]

_MSR_NAMES = {number: name for name, number in NUMBERS.items()}
_EVENT_FLAGS = {
    "nmi_pending": 1,
    "sipi": 2,
    "shadow": 4,
    "smm": 8,
    "smm_pending": 8,
    "smm_inside_nmi": 8,
    "latched_init": 8,
    "exc_pending": 0x10,
    "exc_has_payload": 0x10,
    "exc_payload": 0x10,
    "triple_fault": 0x20,
}
"""Fields of ``kvm_vcpu_events`` that KVM takes only with this flag."""
_EVENT_OF = {
    "exc_nr": "exc_injected",
    "exc_has_err": "exc_injected",
    "exc_err": "exc_has_err",
    "int_nr": "int_injected",
    "int_soft": "int_injected",
}
"""Fields that say something about an event, if there is that event."""
_SOFTWARE = frozenset(f"@{at:#x}" for at in range(464, 512, 8))
"""Bytes of the FXSAVE area that are software's (AMD64 APM volume 2, 11.5)."""
_LAPIC_READ_ONLY = frozenset({"@0x30", "@0x390"})
"""Version and current count, which KVM makes itself."""
_PDPTRS_VALID = 1
_XSAVE = (("fcw", 0, 2), ("fsw", 2, 2), ("ftw", 4, 1), ("mxcsr", 24, 4), ("xstate_bv", 512, 8))
_XSAVE_NAMED = frozenset({0, 24, 512})


def decode(name: str, data: bytes) -> Values:
    """Return the values of an argument, in the order of the structure.

    What has no layout here is in words of 8 bytes by their offset, ``@0x10``, those that are
    zero left out.  Of a structure that is cut, what is there.

    :param name: of the ioctl, with ``KVM_``.
    """
    short = name.removeprefix("KVM_").partition("_")[2]
    special = _SPECIAL.get(short)
    if special is not None:
        return special(data)
    known = layouts.ARGUMENTS.get(short)
    if known is None or short in ("ENABLE_CAP", "LAPIC", "FPU"):
        return dict(_words(data))
    if len(data) < known.size:
        return dict(_words(data))
    values = known.unpack(data)
    return {key: value for key, value in values.items() if not isinstance(value, list)} | {
        f"{key}[{at}]": one
        for key, value in values.items()
        if isinstance(value, list)
        for at, one in enumerate(value)
    }


def ignored(name: str, values: Values) -> frozenset[str]:
    """Return the names of the values that say nothing: KVM does not take them.

    QEMU leaves bytes of its stack in the PDPTRs of SREGS2, for example, whose flag it does not
    set.
    """
    short = name.removeprefix("KVM_").partition("_")[2]
    if short == "SREGS2" and not _number(values, "flags") & _PDPTRS_VALID:
        return frozenset(key for key in values if key.startswith("pdptrs"))
    if short in ("XSAVE", "XSAVE2"):
        return _SOFTWARE
    if short == "LAPIC":
        return _LAPIC_READ_ONLY
    if short == "VCPU_EVENTS":
        flags = _number(values, "flags")
        unset = {key for key, flag in _EVENT_FLAGS.items() if not flags & flag}
        pending = _number(values, "exc_pending") if "exc_pending" not in unset else 0
        for key, event in _EVENT_OF.items():
            exists = _number(values, event) or (key.startswith("exc_") and pending)
            if not exists:
                unset.add(key)
        return frozenset(unset)
    return frozenset()


def masked(name: str, data: bytes) -> bytes:
    """Return the bytes of an argument with those zero that :func:`ignored` names."""
    short = name.removeprefix("KVM_").partition("_")[2]
    known = layouts.ARGUMENTS.get(short)
    if known is None or len(data) < known.size or short not in ("SREGS2", "VCPU_EVENTS"):
        return data
    made = bytearray(data)
    names = {one.partition("[")[0] for one in ignored(name, decode(name, data))}
    for field in known.fields:
        if field.name in names:
            made[field.offset : field.offset + field.size] = bytes(field.size)
    return bytes(made)


def _number(values: Values, name: str) -> int:
    value = values.get(name, 0)
    return value if isinstance(value, int) else 0


def msr_name(number: int) -> str:
    """Return the name of an MSR, or its number as text."""
    return _MSR_NAMES.get(number, f"{number:#x}")


def _words(data: bytes, start: int = 0) -> Iterator[tuple[str, int]]:
    for at in range(start, len(data), 8):
        value = int.from_bytes(data[at : at + 8], "little")
        if value:
            yield f"@{at:#x}", value


def _msrs(data: bytes) -> Values:
    count = int.from_bytes(data[:4], "little")
    whole = data[8 : 8 + 16 * min(count, max(len(data) - 8, 0) // 16)]
    found: dict[str, int | str] = {"nmsrs": count}
    for index, _, value in struct.iter_unpack("<IIQ", whole):
        found[msr_name(index)] = value
    return found


def _cpuid(data: bytes) -> Values:
    count = int.from_bytes(data[:4], "little")
    whole = data[8 : 8 + 40 * min(count, max(len(data) - 8, 0) // 40)]
    found: dict[str, int | str] = {"nent": count}
    for function, index, _, *registers in struct.iter_unpack("<7I12x", whole):
        for name, value in zip(("eax", "ebx", "ecx", "edx"), registers, strict=True):
            found[f"{function:#x}.{index:#x}.{name}"] = value
    return found


def _xcrs(data: bytes) -> Values:
    count = int.from_bytes(data[:4], "little")
    found: dict[str, int | str] = {"nr_xcrs": count}
    for at in range(min(count, 16)):
        start = 8 + 16 * at
        if start + 16 <= len(data):
            number, _, value = struct.unpack_from("<IIQ", data, start)
            found[f"xcr{number}"] = value
    return found


def _xsave(data: bytes) -> Values:
    named = {name: int.from_bytes(data[at : at + size], "little") for name, at, size in _XSAVE}
    rest = {name: value for name, value in _words(data) if int(name[1:], 16) not in _XSAVE_NAMED}
    return named | rest


def _nested(data: bytes) -> Values:
    if len(data) < layouts.NESTED_STATE.size:
        return dict(_words(data))
    found: dict[str, int | str] = dict(layouts.NESTED_STATE.unpack(data))
    page = data[layouts.NESTED_STATE.size : layouts.NESTED_STATE_SIZE]
    if found["format"] != layout.FORMAT_SVM or len(page) < layout.VMCB_SIZE:
        return found | dict(_words(data, layouts.NESTED_STATE.size))
    control, save = vmcb_fields(page)
    return found | dict(_flat("control", control)) | dict(_flat("l1_save", save))


def _flat(name: str, value: object) -> Iterable[tuple[str, int | str]]:
    if isinstance(value, Fields):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif isinstance(value, tuple):
        for at, inner in enumerate(value):
            yield from _flat(f"{name}[{at}]", inner)
    elif isinstance(value, bytes):
        yield name, value.hex()
    elif isinstance(value, int):
        yield name, value


_SPECIAL = {
    "MSRS": _msrs,
    "CPUID2": _cpuid,
    "XCRS": _xcrs,
    "XSAVE": _xsave,
    "XSAVE2": _xsave,
    "NESTED_STATE": _nested,
}
