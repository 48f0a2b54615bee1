"""The model's state by the names of a kernel's memory, and where the two differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qemu_svm.inside.lazy import FRESH, Circumstances, covering
from qemu_svm.inside.view import Inside, plain
from qemu_svm.model.area import RESET, Area
from qemu_svm.model.kvm.vcpu import PAGES, Mmu
from qemu_svm.model.kvm.vmcb02 import vmcb02_control
from qemu_svm.model.profile import Profile, SysenterCut
from qemu_svm.model.simulate import Snapshot

_MMUS = {Mmu.ROOT: "root_mmu", Mmu.GUEST: "guest_mmu"}
_L0 = "vmcb01.control."
_MERGED = frozenset({"intercepts", "tsc_offset"})
_SAVE_CACHE = "nested.save."  # what nobody wrote is zero
_UPPER_HALVES = ("vmcb01.save.sysenter_esp", "vmcb01.save.sysenter_eip")
_LOW = 0xFFFF_FFFF
_IN_NESTED = ("vm_hsave_pa", "vm_cr")


def expected(state: Snapshot, kernel: Profile) -> Inside:
    """Return what the model expects in the kernel's memory."""
    found: Inside = {
        "gif": int(state.gif),
        "guest_mode": int(state.guest_mode),
        "smm": int(state.smm),
        "mmu": _MMUS[state.mmu],
        "pages_requested": int(PAGES in state.requests),
        "nested.run_pending": state.run_pending,
        "nested.initialized": int(state.initialized),
        "nested.vmcb12_gpa": state.vmcb12_gpa,
        "nested.last_vmcb12_gpa": state.last_vmcb12_gpa,
    }
    if kernel.split:
        found["current"] = "vmcb02" if state.guest_mode else "vmcb01"
    arch = state.areas["arch"]
    for name in arch:
        prefix = "nested" if name in _IN_NESTED else "arch"
        found[f"{prefix}.{name}"] = arch.get(name)
    for cache, area in (("ctl", "ctl_cache"), ("save", "save_cache")):
        if area in state.areas:
            values = state.areas[area]
            found |= {
                f"nested.{cache}.{name}": plain(name, values.content(name)) for name in values
            }
    for vmcb in ("vmcb01", "vmcb02", "hsave"):
        if vmcb in state.areas:
            save = state.areas[vmcb]
            found |= {f"{vmcb}.save.{name}": plain(name, save.content(name)) for name in save}
        if vmcb in state.controls:
            control = state.controls[vmcb]
            own = (name for name in control if name not in _MERGED)
            found |= {f"{vmcb}.control.{name}": control.get(name) for name in own}
    if kernel.sysenter is not SysenterCut.NEVER:
        # What an MSR has beyond 32 bits is in sysenter_esp_hi, sysenter_eip_hi (svm_set_msr).
        found |= {name: found[name] & _LOW for name in _UPPER_HALVES}
    return found


def merged(state: Snapshot, kernel: Profile, seen: Inside) -> Inside:
    """Return the controls of L2 that KVM merges: L0's are those that were seen in vmcb01."""
    if not (kernel.split and state.guest_mode):
        return {}
    l0 = Area("vmcb01 control")
    for name, value in seen.items():
        if name.startswith(_L0) and isinstance(value, int):
            l0.set(name.removeprefix(_L0), value, RESET)
    fields = vmcb02_control(kernel, l0, state.areas["ctl_cache"])
    return {f"vmcb02.control.{one.name}": one.value for one in fields if one.value is not None}


def differences(
    state: Snapshot, kernel: Profile, seen: Inside, circumstances: Circumstances = FRESH
) -> Iterator[tuple[str, Any, Any]]:
    """Return name, the model's value and the kernel's, wherever they differ.

    :param state: the model's.
    :param seen: the kernel's.
    :param circumstances: what happened before; see :mod:`qemu_svm.inside.lazy`.
    """
    model = merged(state, kernel, seen) | expected(state, kernel)
    for name, value in seen.items():
        if name.startswith(_SAVE_CACHE):
            model.setdefault(name, [0] * len(value) if isinstance(value, list) else 0)
        if (
            name in model
            and model[name] != value
            and not covering(name, model[name], seen, circumstances)
        ):
            yield name, model[name], value
