"""Words that text and JSON of ``vmruns`` share."""

from __future__ import annotations

from typing import Literal

from qemu_svm.nested import bits
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.words import bit_names, meaning
from qemu_svm.stream import Value
from qemu_svm.vmruns.fields import Change, Field
from qemu_svm.vmruns.roles import Certainty, Role, Vmcb

RoleName = Literal["vmcb01", "vmcb02", "unknown"]
_NAMES: dict[Role, RoleName] = {Role.L1: "vmcb01", Role.L2: "vmcb02", Role.UNKNOWN: "unknown"}
CERTAINTY: dict[Certainty, Literal["proved", "inferred", "unknown"]] = {
    Certainty.PROVED: "proved",
    Certainty.INFERRED: "inferred",
    Certainty.NONE: "unknown",
}


def role_name(role: Role) -> RoleName:
    """Return ``vmcb01``, ``vmcb02`` or ``unknown``."""
    return _NAMES[role]


def vmcb_name(vmcb: Vmcb) -> str:
    """Return the role of the VMCB at an address, or both roles if it had them in turn."""
    return "vmcb01 and vmcb02" if vmcb.shared else role_name(vmcb.role)


def exit_words(code: int | None) -> str:
    """Return the name of an exit, or its number if it has no name."""
    if code is None:
        return "not known"
    name = exit_name(code)
    return f"{code:#x}" if name == "unknown" else name


def as_value(field: Field, content: int | bytes) -> Value:
    """Return a field of a page as a value of a stream, to which the same words apply."""
    leaf: int | bytes | tuple[int, ...] = content
    if field.path == "control.intercepts" and isinstance(content, int):
        leaf = tuple(content >> 32 * word & 0xFFFF_FFFF for word in range(6))
    return Value(field.path.rpartition(".")[2], "", field.offset, field.size, leaf)


def content_words(field: Field, content: int | bytes) -> str:
    """Return a value and its meaning."""
    if isinstance(content, bytes):
        return "zero" if not any(content) else content.hex()
    value = as_value(field, content)
    said = meaning(field.path, value)
    names = bit_names(field.path, value)
    text = f"{content:#x}"
    if names:
        text += f" [{' '.join(names)}]"
    return f"{text} {said}" if said else text


def change_words(change: Change) -> str:
    """Return ``old -> new``; of intercepts only those that differ."""
    old, new = change.old, change.new
    if change.field.path == "control.intercepts":
        assert isinstance(old, int)
        assert isinstance(new, int)
        gone = [f"-{name}" for name in bits.INTERCEPTS.names(old & ~new)]
        return " ".join([f"+{name}" for name in bits.INTERCEPTS.names(new & ~old)] + gone)
    return f"{content_words(change.field, old)} -> {content_words(change.field, new)}"
