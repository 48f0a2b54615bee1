"""Restore plans: which ioctls, in which order, with whose values.

A plan is a list of steps separated by commas; a step is a name and settings
separated by colons::

    cpuid,sregs,nested,regs,msrs,events,debugregs,run
    cpuid,sregs:l1,nested,regs,run
    cpuid,sregs,nested:flags=0x103:@0x550=0x104000,regs,run
    cpuid,msrs:efer=0x1500,nested,sregs,regs,run

==============  ==============================================================
``cpuid``       KVM_SET_CPUID2; ``nosvm`` or ``no=FEATURE`` removes
                features, ``maxphyaddr=N`` sets the address width
``sregs``       KVM_SET_SREGS with L2's values; ``l1`` with L1's from
                the blob; ``cr3=…``, ``cs.base=…`` change single ones.  ``sregs2``
                is the same with KVM_SET_SREGS2
``nested``      KVM_SET_NESTED_STATE with the blob; ``flags= format= size=
                vmcb_pa= gpat=`` change the header, ``@0x550=VALUE`` writes 8
                bytes into the VMCB, ``@0x5c/1=VALUE`` one byte
``get``         KVM_GET_NESTED_STATE; ``size=`` is the size of the buffer
``regs``        KVM_SET_REGS with L2's values, ``l1`` or single ones
``msrs``        KVM_SET_MSRS with all MSRs of the stream; with ``efer=…`` only
                those that are named
``events``      KVM_SET_VCPU_EVENTS; ``smm= shadow= flags= exc_injected= …``;
                ``caps``: the VM has the capabilities of flags 0x10 and 0x20
``debugregs``   KVM_SET_DEBUGREGS
``mpstate``     KVM_SET_MP_STATE; ``mpstate:2``
``run``         KVM_RUN until L1 has control
``vmrun``       L1 executes VMRUN again on the same vmcb12
``smi``         an SMI arrives; ``rsm`` leaves SMM
==============  ==============================================================

A step may be repeated.  ``lapic``, ``xsave``, ``xcrs``, ``fpu`` and ``tsc_khz`` are
accepted because real programs have them; they do not affect nested state.
"""

from __future__ import annotations

from dataclasses import dataclass

from qemu_svm.errors import PlanError

STEPS = (
    *("cpuid", "sregs", "sregs2", "nested", "regs", "msrs", "events", "debugregs", "mpstate"),
    *("get", "run", "vmrun", "smi", "rsm", "lapic", "xsave", "xcrs", "tsc_khz", "fpu"),
)
WITHOUT_EFFECT = frozenset({"lapic", "xsave", "xcrs", "tsc_khz", "fpu"})
"""Steps that do not affect nested state."""

_TAIL = "regs,xsave,xcrs,msrs,events:flags=0x39:caps,mpstate,debugregs,run"
_OLD_TAIL = _TAIL.replace("0x39", "0x19")  # before 7.2 there is no triple fault
NAMED = {
    "qemu": f"cpuid,lapic,sregs,nested,tsc_khz,{_TAIL}",
    "qemu-5.2": f"cpuid,lapic,sregs,nested,tsc_khz,{_OLD_TAIL}",
    "qemu-7.2": f"cpuid,lapic,sregs,nested,tsc_khz,{_TAIL}",
    "qemu-10.0": f"cpuid,lapic,sregs,nested,tsc_khz,{_TAIL}",
    "qemu-11.1": f"cpuid,lapic,sregs,nested,tsc_khz,{_TAIL}",
    "qemu-5.0": "cpuid,lapic,nested,tsc_khz,regs,xsave,xcrs,sregs,"
    + _OLD_TAIL.partition("xcrs,")[2],
    "cloud-hypervisor": "cpuid,mpstate,regs,sregs,xsave,xcrs,lapic,fpu,nested,tsc_khz,msrs,events,"
    "run",
    "firecracker": "cpuid,mpstate,regs,sregs,xsave,xcrs,debugregs,lapic,msrs,events,run",
    "vmm-reference": "cpuid,mpstate,regs,sregs,xsave,xcrs,debugregs,lapic,msrs,events,run",
    "crosvm": "cpuid,regs,sregs,debugregs,xcrs,msrs,xsave,events,nested,run",
    "libkrun": "cpuid,mpstate,regs,sregs,xsave,xcrs,debugregs,lapic,msrs,events,run",
    "stratovirt": "cpuid,mpstate,sregs,regs,xsave,xcrs,debugregs,lapic,msrs,events,run",
    "dragonball": "cpuid,msrs,sregs,xsave,xcrs,debugregs,lapic,mpstate,regs,events,tsc_khz,run",
    "openvmm": "cpuid,regs,sregs,mpstate,events,xsave,lapic,xcrs,msrs,debugregs,run",
    "selftests": "cpuid,sregs,msrs,xcrs,xsave,events,mpstate,debugregs,regs,nested,run",
}
"""Orders of real programs.  QEMU uses SREGS2 where the kernel has it, which makes no
difference here.  Its events never include the interrupt shadow (flags 0x39 of a full put, 0x38
of one at run time), so L2 keeps that of the blob."""

SOURCES = {
    "qemu-5.0": "QEMU's source",
    "qemu-5.2": "recorded (streams/), flags from QEMU's source",
    "qemu-7.2": "recorded (streams/recordings)",
    "qemu-10.0": "recorded (streams/), flags from QEMU's source",
    "qemu-11.1": "recorded (streams/), flags from QEMU's source",
    "cloud-hypervisor": "hypervisor/src/kvm/mod.rs set_state at ae44c2971c83",
    "firecracker": "src/vmm/src/arch/x86_64/vcpu.rs restore_state at b245cb44dd04; no nested state",
    "vmm-reference": "src/vm-vcpu/src/vcpu/mod.rs set_state at ad371898afe7; no nested state",
    "crosvm": "hypervisor/src/x86_64.rs restore, kvm/x86_64.rs set_hypervisor_specific_state at "
    "f1e797a68dad; nested state since 25fd04b43d (August 2025)",
    "libkrun": "src/vmm/src/linux/vstate.rs restore_state at 6ed74facc26d; no nested state",
    "stratovirt": "hypervisor/src/kvm/x86_64/mod.rs at d5b320371f25; no nested state",
    "dragonball": "kata-containers src/dragonball/src/vcpu/x86_64.rs restore_state at "
    "7c6ba40c54ea; no nested state",
    "openvmm": "vmm_core/virt/src/x86/vp.rs, virt_kvm/src/arch/x86_64/vp_state.rs at 1488a37b7cfe; "
    "no nested state",
    "selftests": "recorded (streams/recordings); Linux tools/testing/selftests/kvm/lib/x86 "
    "vcpu_load_state of 6.1 to 7.2; 5.10 puts XSAVE and XCRS first",
}
"""Where each order is from.  kvmtool (b48735e5d562) saves and restores no vCPU, so it has no
plan; bhyve is not a user of KVM."""

_FLAGS = {
    "cpuid": ("nosvm",),
    "sregs": ("l1",),
    "sregs2": ("l1",),
    "regs": ("l1",),
    "events": ("caps",),
}
_CHOICES = {
    "get": ("size",),
    "nested": ("flags", "format", "size", "vmcb_pa", "gpat"),
    "events": (
        *("flags", "smm", "smm_pending", "shadow", "nmi_pending", "nmi_injected", "nmi_masked"),
        *("exc_injected", "exc_nr", "exc_pending", "exc_has_err", "exc_err", "int_injected"),
        *("int_nr", "int_soft", "sipi", "smm_inside_nmi", "latched_init", "triple_fault"),
        *("exc_has_payload", "exc_payload"),
    ),
    "debugregs": ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "flags"),
    "cpuid": ("maxphyaddr", "no", "with"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step.  ``settings`` are ``(name, number or word)`` in the order given.

    :param data: the bytes that KVM was given, in a recorded step; ``text`` has its record.
    :param carried: it is from before a recorded put, and gives the vCPU what it had then.
    """

    name: str
    flags: tuple[str, ...] = ()
    settings: tuple[tuple[str, int | str], ...] = ()
    text: str = ""
    data: bytes | None = None
    carried: bool = False


def parse(text: str) -> tuple[Step, ...]:
    """Parse a plan, or the name of one of :data:`NAMED`.

    :raises PlanError: an unknown step or setting.
    """
    parts = [part.strip() for part in NAMED.get(text.strip(), text).split(",")]
    if not any(parts):
        raise PlanError("the plan is empty", near=tuple(NAMED))
    return tuple(_step(part) for part in parts if part)


def _step(text: str) -> Step:
    name, *rest = text.split(":")
    if name not in STEPS:
        from difflib import get_close_matches

        near = get_close_matches(name, [*STEPS, *NAMED], cutoff=0.4)
        raise PlanError(f"unknown step '{name}'", near=tuple(near or STEPS))
    flags: list[str] = []
    settings: list[tuple[str, int | str]] = []
    for item in rest:
        key, equals, value = item.partition("=")
        if equals:
            settings.append((key, _value(name, key, value)))
        elif name == "mpstate":
            settings.append(("state", _number(item)))
        elif key in _FLAGS.get(name, ()):
            flags.append(key)
        else:
            raise PlanError(f"'{name}' has no setting '{item}'", near=_FLAGS.get(name, ()))
    return Step(name, tuple(flags), tuple(settings), text)


def _value(step: str, key: str, value: str) -> int | str:
    if step == "cpuid" and key in ("no", "with"):
        return value
    choices = _CHOICES.get(step)
    if choices is not None and key not in choices and not (step == "nested" and key[:1] == "@"):
        from difflib import get_close_matches

        near = get_close_matches(key, choices, cutoff=0.3) or choices
        raise PlanError(f"'{step}' has no setting '{key}'", near=tuple(near))
    return _number(value)


def _number(value: str) -> int:
    try:
        number = int(value, 0)
    except ValueError:
        raise PlanError(f"'{value}' is not a number such as 0x1500") from None
    if not 0 <= number < 1 << 64:
        raise PlanError(f"'{value}' does not fit in 64 bits")
    return number
