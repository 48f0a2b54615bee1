"""The state of the model's vCPU as JSON: for ``simulate`` and ``replay``."""

from __future__ import annotations

from typing import Any

from qemu_svm.model.area import Area
from qemu_svm.model.simulate import Snapshot
from qemu_svm.render.json.base import hex_text, register


def snapshot(state: Snapshot) -> dict[str, Any]:
    """Return the state after a step; ``nested`` is what KVM_GET_NESTED_STATE would return."""
    return {
        "guest_mode": state.guest_mode,
        "gif": state.gif,
        "smm": state.smm,
        "interrupt_shadow": state.shadow,
        "run_pending": state.run_pending,
        "mmu": state.mmu,
        "mmu_broken": state.mmu_broken or None,
        "requests": list(state.requests),
        "save_cache_valid": state.save_cache_valid,
        "nested": {
            "flags": hex_text(state.nested.flags),
            "format": state.nested.format,
            "size": state.nested.size,
            "vmcb_pa": hex_text(state.nested.vmcb_pa),
        },
        "areas": {name: area(registers) for name, registers in state.areas.items()},
    }


def area(registers: Area) -> dict[str, Any]:
    """Return every register with its value and the step and function that wrote it."""
    return {
        name: {
            "value": register(registers.content(name)),
            "step": registers.writer(name).step,
            "by": registers.writer(name).function,
        }
        for name in registers
    }
