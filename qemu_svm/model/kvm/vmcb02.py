"""The control area of vmcb02: L0's controls merged with L1's.

User space never sees it: KVM_GET_NESTED_STATE returns vmcb12's controls.  It is for
comparison with a VMCB that was recorded on the processor.

Source: Linux ``arch/x86/kvm/svm/nested.c`` (``recalc_intercepts``, in 7.x
``nested_vmcb02_recalc_intercepts``; ``nested_vmcb02_prepare_control``, before 5.13
``nested_prepare_vmcb_control``), 5.10 to 7.2.  That 6.12.117 and 7.2.12 keep VMMCALL
intercepted was recorded on the processor.
"""

from __future__ import annotations

from dataclasses import dataclass

from qemu_svm.model.area import Area
from qemu_svm.model.profile import Profile
from qemu_svm.nested import bits

_ALL = (1 << 64) - 1
_V_INTR_MASKING = bits.INT_CTL.mask("V_INTR_MASKING")
_V_GIF_ENABLE = bits.INT_CTL.mask("V_GIF_ENABLE")
_VGIF = bits.INT_CTL.mask("V_GIF") | _V_GIF_ENABLE
_PENDING = bits.V_TPR_MASK | bits.INT_CTL.mask("V_IRQ", "V_IGN_TPR") | 0xF << bits.V_INTR_PRIO_SHIFT
_FROM_L1 = ("int_vector", "int_state", "event_inj", "event_inj_err")
_FROM_L0 = ("iopm_base_pa", "nested_ctl", "virt_ext")


@dataclass(frozen=True, slots=True)
class Merged:
    """One control field.

    :param value: None if KVM is free to choose.
    :param origin: where the value comes from, in a few words.
    """

    name: str
    value: int | None
    origin: str


def vmcb02_control(kernel: Profile, l0: Area, l1: Area) -> tuple[Merged, ...]:
    """Return the merged fields.

    :param l0: vmcb01's control area, as KVM fills it for L1.
    :param l1: what L1 asked for: the control area of vmcb12, which the blob has.
    """
    fields = [
        Merged("intercepts", _intercepts(kernel, l0, l1), "L0's and L1's"),
        Merged("tsc_offset", l0.get("tsc_offset") + l1.get("tsc_offset") & _ALL, "L0's + L1's"),
        Merged("int_ctl", _int_ctl(l0, l1), "L1's V_TPR and interrupt, else L0's"),
    ]
    fields += [Merged(name, l1.get(name), "L1's") for name in _FROM_L1]
    fields += [Merged(name, l0.get(name), "L0's") for name in _FROM_L0]
    if l1.get("intercepts") & bits.INTERCEPTS.mask("MSR_PROT"):
        fields.append(Merged("msrpm_base_pa", None, "a bitmap that KVM merged"))
    else:
        fields.append(Merged("msrpm_base_pa", l0.get("msrpm_base_pa"), "L0's"))
    fields.append(Merged("asid", None, "KVM's own choice, never 0"))
    if l0.get("nested_ctl") & 1:
        shadow = l1.get("nested_ctl") & 1
        tables = "KVM's shadow of L1's nested tables" if shadow else "L0's tables for L1's memory"
        fields.append(Merged("nested_cr3", None, tables))
    return tuple(fields)


def _int_ctl(l0: Area, l1: Area) -> int:
    # Before 5.10.60 and 5.13.12 all bits of L1's got through (CVE-2021-3653).
    ours, theirs = l0.get("int_ctl"), l1.get("int_ctl")
    kept = _PENDING | (_VGIF if ours & theirs & _V_GIF_ENABLE else 0)
    return theirs & kept | ours & _VGIF & ~kept | _V_INTR_MASKING


def _intercepts(kernel: Profile, l0: Area, l1: Area) -> int:
    dropped = [] if kernel.l2_vmmcall else ["VMMCALL"]
    if l1.get("int_ctl") & _V_INTR_MASKING:
        dropped += ["CR8_WRITE", "VINTR"] if kernel.split else ["CR8_READ", "CR8_WRITE", "VINTR"]
    return l0.get("intercepts") & ~bits.INTERCEPTS.mask(*dropped) | l1.get("intercepts")
