"""The meaning of values in words: bit names, exit names, segment attributes."""

from __future__ import annotations

from collections.abc import Callable

from qemu_svm.machine import flags as hflags
from qemu_svm.machine import pci
from qemu_svm.machine.virtio.decode import FEATURES_HIGH_TYPE, FEATURES_TYPE, STATUS_TYPE
from qemu_svm.machine.virtio.features import STATUS, feature_bits
from qemu_svm.nested import bits, descriptions
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.nested.groups import NOT_MIGRATED
from qemu_svm.stream import Value
from qemu_svm.x86 import registers
from qemu_svm.x86.bits import Bits
from qemu_svm.x86.segments import attrib_from_flags, attrib_words

_TABLES: dict[str, Bits] = {
    **registers.NAMED,
    **bits.NAMED,
    "hflags": hflags.HFLAGS,
    "hflags2": hflags.HFLAGS2,
    "env.hflags": hflags.HFLAGS,
    "env.hflags2": hflags.HFLAGS2,
    "env.eflags": registers.RFLAGS,
    "env.efer": registers.EFER,
    "env.cr[0]": registers.CR0,
    "env.cr[4]": registers.CR4,
    "nested.flags": bits.FLAGS,
    "hv_enlightenments.control": bits.HV_CONTROL,
}


_BY_TYPE: dict[str, Bits] = {
    STATUS_TYPE: feature_bits(STATUS),
    pci.COMMAND_TYPE: pci.COMMAND,
    pci.STATUS_TYPE: pci.STATUS,
}

_MEANINGS: dict[str, Callable[[int], str]] = {
    "exit_code": exit_name,
    "tlb_ctl": lambda number: bits.TLB_CTL.get(number, "reserved"),
    "format": lambda number: bits.FORMATS.get(number, "unknown"),
    "event_inj": lambda number: bits.event_words(number, 0),
    "exit_int_info": lambda number: bits.event_words(number, 0),
    "attrib": attrib_words,
}


def bit_names(path: str, value: Value) -> list[str] | None:
    """Return the names of the bits that are set in a value; None if its bits have no names."""
    if value.name == "intercepts" and isinstance(value.value, tuple):
        return bits.INTERCEPTS.names(bits.intercept_words(list(value.value)))
    if not isinstance(value.value, int):
        return None
    if value.type.startswith(FEATURES_HIGH_TYPE):
        device = value.type.removeprefix(FEATURES_HIGH_TYPE)
        return feature_bits(device).names(value.value << 64)
    if value.type.startswith(FEATURES_TYPE):
        return feature_bits(value.type.removeprefix(FEATURES_TYPE)).names(value.value)
    table = (
        _BY_TYPE.get(value.type)
        or _TABLES.get(".".join(path.split(".")[-2:]))
        or _TABLES.get(value.name)
    )
    return None if table is None else table.names(value.value)


def meaning(path: str, value: Value) -> str:
    """Return what a value means; empty if that is obvious or unknown."""
    number, name = value.value, value.name
    if not isinstance(number, int):
        return ""
    if name == "flags" and ".segments." in path:
        return attrib_words(attrib_from_flags(number))
    say = _MEANINGS.get(name)
    return say(number) if say is not None else ""


def description(path: str) -> str:
    """Say what a field of the nested state is for; empty for others."""
    parts = path.split(".")
    if len(parts) < 3 or parts[1] != "nested":
        return ""
    if parts[2] in ("control", "l1_save") and len(parts) == 3:
        return descriptions.AREAS["save" if parts[2] == "l1_save" else "control"]
    if parts[2] in ("control", "l1_save"):
        return descriptions.words("save" if parts[2] == "l1_save" else "control", parts[3])
    return descriptions.words("header", parts[2])


def not_migrated(path: str) -> bool:
    """Whether a field of the nested state never carries anything."""
    parts = path.split(".")
    return parts[1:3] == ["nested", "control"] and len(parts) > 3 and parts[3] in NOT_MIGRATED
