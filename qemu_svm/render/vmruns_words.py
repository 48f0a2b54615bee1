"""What text and JSON of ``vmruns`` say in the same words."""

from __future__ import annotations

from qemu_svm.nested import bits
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.words import bit_names, meaning
from qemu_svm.stream import Value
from qemu_svm.vmruns.fields import Change, Field
from qemu_svm.vmruns.roles import Certainty, Role, Vmcb

_NAMES = {Role.L1: "vmcb01", Role.L2: "vmcb02", Role.UNKNOWN: "unknown"}
CERTAINTY = {
    Certainty.PROVED: "proved",
    Certainty.INFERRED: "inferred",
    Certainty.NONE: "unknown",
}


def role_name(role: Role) -> str:
    """``vmcb01``, ``vmcb02`` or ``unknown``."""
    return _NAMES[role]


def vmcb_name(vmcb: Vmcb) -> str:
    """What an address holds: one of them, or both in turn."""
    return "vmcb01 and vmcb02" if vmcb.shared else role_name(vmcb.role)


def exit_words(code: int | None) -> str:
    """Name of an exit, with its number where it has no name."""
    if code is None:
        return "not known"
    name = exit_name(code)
    return f"{code:#x}" if name == "unknown" else name


def as_value(field: Field, content: int | bytes) -> Value:
    """A field of a page as the words of a stream's values take it."""
    leaf: int | bytes | tuple[int, ...] = content
    if field.path == "control.intercepts" and isinstance(content, int):
        leaf = tuple(content >> 32 * word & 0xFFFF_FFFF for word in range(6))
    return Value(field.path.rpartition(".")[2], "", field.offset, field.size, leaf)


def content_words(field: Field, content: int | bytes) -> str:
    """A value, with what it means."""
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
    """``old -> new``; of intercepts only what came and went."""
    old, new = change.old, change.new
    if change.field.path == "control.intercepts":
        assert isinstance(old, int)
        assert isinstance(new, int)
        gone = [f"-{name}" for name in bits.INTERCEPTS.names(old & ~new)]
        return " ".join([f"+{name}" for name in bits.INTERCEPTS.names(new & ~old)] + gone)
    return f"{content_words(change.field, old)} -> {content_words(change.field, new)}"
