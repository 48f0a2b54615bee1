"""The nested state: KVM's header and the VMCB inside it."""

from __future__ import annotations

from qemu_svm.nested.state import (
    NestedState,
    build_vmcb,
    from_uapi,
    from_values,
    parse_vmcb,
    vmcb_fields,
)

__all__ = [
    "NestedState",
    "build_vmcb",
    "from_uapi",
    "from_values",
    "parse_vmcb",
    "vmcb_fields",
]
