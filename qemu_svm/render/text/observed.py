"""What KVM reports of a vCPU's state in words: for ``replay`` and ``lab conform``."""

from __future__ import annotations

from typing import Any

from qemu_svm.nested import bits
from qemu_svm.render.escape import printable
from qemu_svm.x86.segments import attrib_words


def observed(name: str, value: Any) -> str:
    """Return a part of the state in words."""
    if isinstance(value, list) and len(value) == 4:
        selector, base, limit, attrib = value
        system = name.endswith(("tr", "ldtr"))
        return (
            f"{selector:#x} base {base:#x} limit {limit:#x} {attrib_words(attrib, system=system)}"
        )
    if isinstance(value, list):
        return f"base {value[0]:#x} limit {value[1]:#x}"
    if name == "nested.flags":
        return f"{value:#x} {' '.join(bits.FLAGS.names(value))}".rstrip()
    return f"{value:#x}" if isinstance(value, int) else printable(str(value))
