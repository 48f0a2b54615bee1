"""Parts of one stream that must agree, whatever kernel restores it.

Source: QEMU ``target/i386/machine.c`` (``cpu_post_load``,
``nested_state_post_load``), ``target/i386/kvm/kvm.c``
(``kvm_put_nested_state``), 5.2 to 10.0; Linux ``arch/x86/kvm/svm/nested.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

from qemu_svm.errors import StreamError
from qemu_svm.findings.impossible import impossible
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.model.partial import OPTIONS, can_run, missing, no_vmcb
from qemu_svm.nested import NestedState, bits, layout
from qemu_svm.rules import BAD_VALUE, Finding, Rule, RuleKind, Severity

_Exists = Callable[[int, int], bool]

_TCG_SVME = 1 << 20  # HF_SVME: set by TCG only
_SVME = 1 << 12


# Id, severity, when it fails, what follows, what to do, source.
_ROWS: tuple[tuple[str, Severity, str, str, str, str], ...] = (
    ("X-01", Severity.ERROR, "hflags and the nested flags disagree about guest mode",
     "QEMU refuses the stream, or restores it without guest mode", BAD_VALUE,
     "QEMU target/i386/machine.c cpu_post_load"),
    ("X-02", Severity.WARNING, "hflags2 and the nested flags disagree about GIF",
     "QEMU uses hflags2", BAD_VALUE, "QEMU target/i386/kvm/kvm.c kvm_put_nested_state"),
    ("X-03", Severity.ERROR, "the vCPU is in guest mode and the stream has no nested state for it",
     "L1's state is lost; the restore fails (C-01)", "save with QEMU 5.1 or later",
     "QEMU target/i386/machine.c"),
    ("X-04", Severity.ERROR, "the nested state's size or format is invalid",
     "QEMU or KVM refuses it", BAD_VALUE, "QEMU target/i386/machine.c nested_state_post_load"),
    ("X-05", Severity.ERROR, "the vCPU is in guest mode with EFER.SVME clear",
     "KVM_SET_NESTED_STATE fails with EINVAL (SV-03)", BAD_VALUE,
     "nested.c svm_set_nested_state"),
    ("X-06", Severity.WARNING, "vmcb12 is outside the guest's RAM",
     "L1 does not get control back: #VMEXIT becomes #GP in L2 (before 7.0.4) or a shutdown",
     BAD_VALUE, "measured; nested.c nested_svm_vmexit"),
    ("X-07", Severity.WARNING, "L1's MSR bitmap is outside the guest's RAM",
     "KVM_RUN ends with an internal error", BAD_VALUE, "measured"),
    ("X-08", Severity.WARNING, "VM_HSAVE_PA is 0 in guest mode",
     "L1's next VMRUN gets #GP (5.14 and later)", BAD_VALUE, "nested.c nested_svm_vmrun"),
    ("X-09", Severity.WARNING, "L1's RAX is not vmcb12's address",
     "VMRUN takes the address from RAX, so this L1 did not execute it", BAD_VALUE,
     "AMD APM volume 2, 15.5.1"),
    ("X-10", Severity.ERROR, "the vCPU is in SMM and in guest mode",
     "KVM_SET_NESTED_STATE fails with EINVAL (SV-04)", BAD_VALUE,
     "nested.c svm_set_nested_state"),
    ("X-11", Severity.ERROR, "the run state in globalstate is unknown to QEMU",
     "QEMU refuses the stream (section globalstate)", BAD_VALUE,
     "QEMU migration/global_state.c global_state_post_load"),
    ("X-12", Severity.WARNING, "EFER.SVME is set and there is no nested state",
     "if the vCPU was in L2, L1's state is lost and L2's code continues as L1",
     "save and restore the nested state too (KVM_GET_NESTED_STATE)",
     "measured; svm.c svm_set_efer, nested.c svm_set_nested_state"),
    ("X-13", Severity.INFO, "the input lacks a part of the vCPU's state",
     "what depends on it is not judged", "give the parts in files of their own (docs/state.md)",
     "docs/state.md"),
)  # fmt: skip

_RUN_STATES = frozenset(
    ("debug", "inmigrate", "internal-error", "io-error", "paused", "postmigrate", "prelaunch")
    + ("finish-migrate", "restore-vm", "running", "save-vm", "shutdown", "suspended", "watchdog")
    + ("guest-panicked", "colo", "preconfig")
)
"""QEMU's names (``qapi/run-state.json``); ``preconfig`` up to 5.2 only."""

CONSISTENCY: tuple[Rule, ...] = tuple(
    Rule(rule, severity, RuleKind.CONSISTENCY, when, means, do, source)
    for rule, severity, when, means, do, source in _ROWS
)
_RULES = {rule.id: rule for rule in CONSISTENCY}


def consistency(machine: Machine) -> Iterator[Finding]:
    """Find the contradictions in a stream, above all in its vCPUs."""
    yield from _run_state(machine)
    yield from impossible(machine)
    exists = _is_memory(machine)
    for vcpu in machine.vcpus:
        if vcpu.parts is not None:
            yield from _partial(vcpu)
        if vcpu.nested is None:
            yield from _without_nested_state(vcpu)
        else:
            yield from _with_nested_state(vcpu, vcpu.nested, exists)


def _is_memory(machine: Machine) -> _Exists:
    # Worked out once for all vCPUs, and only if one of them asks.
    @cache
    def backed() -> _Exists:
        from qemu_svm.memory.layout import backing

        return backing(machine)

    def exists(address: int, size: int) -> bool:
        return backed()(address, size)

    return exists


def _run_state(machine: Machine) -> Iterator[Finding]:
    for record in machine.stream.sections():
        if record.name != "globalstate":
            continue
        try:
            section = machine.stream.values(record)
        except StreamError:
            return  # damage is reported where it is found
        state = None if section is None else section.child("runstate")
        if state is None or not isinstance(state.value, bytes):
            return
        # QEMU ends a name that fills the field; the last byte does not count.
        name = state.value[:-1].split(b"\0")[0].decode("utf-8", "backslashreplace")
        if name not in _RUN_STATES:
            yield _RULES["X-11"].finding(
                f"the run state in globalstate is '{name}', which no QEMU knows: the stream is "
                "refused",
                state.offset,
                path="section:globalstate.runstate",
            )


def _without_nested_state(vcpu: Vcpu) -> Iterator[Finding]:
    # Under TCG L1's state is in memory; either of these two shows that it is TCG.
    tcg = vcpu.get("vm_vmcb") != 0 or vcpu.get("hflags") & _TCG_SVME
    if vcpu.guest_mode and not tcg:
        yield _RULES["X-03"].finding(
            f"vCPU {vcpu.index} was in guest mode, but the stream has no nested state for it: "
            "L1's state is lost and the restore will fail",
            vcpu.registers["hflags"].offset,
        )


def _partial(vcpu: Vcpu) -> Iterator[Finding]:
    # What an input that is no stream does not have.
    name = f"vCPU {vcpu.index}"
    # A vCPU that has run before keeps the nested state that a later put leaves out.
    fresh = vcpu.put is None or (
        vcpu.put.number == 1 and not any(call.name == "SET_NESTED_STATE" for call in vcpu.put.calls)
    )
    if fresh and not vcpu.has("NESTED_STATE") and vcpu.get("efer") & _SVME:
        yield _RULES["X-12"].finding(
            f"{name}: SVME is set in EFER ({vcpu.get('efer'):#x}) and there is no nested state: "
            "if the vCPU was in L2, L1's state is lost and L2's code continues as L1",
            vcpu.registers["efer"].offset,
        )
    lacking = missing(vcpu)
    if lacking:
        options = ", ".join(f"{OPTIONS[one]} FILE" for one in lacking)
        unjudged = "" if can_run(vcpu) else "; whether L2 runs right is not judged"
        where = "in the input" if vcpu.put is None else f"in the {vcpu.put.label}"
        found = _RULES["X-13"].finding(f"{name}: no {', '.join(lacking)} {where}{unjudged}")
        yield replace(found, do=f"give them with {options} (raw structures, docs/state.md)")


def _with_nested_state(vcpu: Vcpu, nested: NestedState, exists: _Exists) -> Iterator[Finding]:
    name, guest_mode = f"vCPU {vcpu.index}", bool(nested.flags & bits.GUEST_MODE)
    if nested.format not in bits.FORMATS:
        yield _RULES["X-04"].finding(
            f"{name}: nested state of unknown format {nested.format}", nested.offset + 2
        )
        return
    if guest_mode != vcpu.guest_mode:
        yield _RULES["X-01"].finding(
            f"{name}: guest mode is {int(vcpu.guest_mode)} in hflags and {int(guest_mode)} in "
            f"the nested state's flags ({nested.flags:#x}); QEMU refuses or changes this on load",
            nested.offset,
        )
    if not nested.is_svm:
        return
    gif = bool(nested.flags & bits.GIF_SET)
    if gif != vcpu.gif:
        yield _RULES["X-02"].finding(
            f"{name}: GIF is {int(vcpu.gif)} in hflags2 and {int(gif)} in the nested state's "
            f"flags ({nested.flags:#x}); QEMU uses hflags2",
            nested.offset,
        )
    if no_vmcb(vcpu) and nested.size >= layout.NESTED_STATE_SIZE:
        yield _RULES["X-04"].finding(
            f"{name}: in guest mode, and the VMCB is not there: the nested state announces "
            f"{nested.size} bytes and has its header only",
            nested.offset + 4,
        )
    elif guest_mode and (nested.size < layout.NESTED_STATE_SIZE or not nested.vmcb):
        yield _RULES["X-04"].finding(
            f"{name}: the nested state's size is {nested.size} bytes; guest mode needs "
            f"{layout.NESTED_STATE_SIZE}",
            nested.offset + 4,
        )
    if guest_mode and nested.vmcb:
        yield from _in_guest_mode(vcpu, nested, name, exists)


def _in_guest_mode(
    vcpu: Vcpu, nested: NestedState, name: str, exists: _Exists
) -> Iterator[Finding]:
    if vcpu.has("SREGS", "SREGS2") and not vcpu.get("efer") & _SVME:
        yield _RULES["X-05"].finding(
            f"{name}: in guest mode, but SVME is clear in EFER ({vcpu.get('efer'):#x})",
            vcpu.registers["efer"].offset if "efer" in vcpu.registers else None,
        )
    if vcpu.smm:
        yield _RULES["X-10"].finding(f"{name}: in SMM and in guest mode at once", nested.offset)
    at = nested.vmcb_offset
    if not exists(nested.vmcb_pa, layout.VMCB_SIZE):
        yield _RULES["X-06"].finding(
            f"{name}: vmcb12 at {nested.vmcb_pa:#x} is outside the guest's RAM: the next #VMEXIT "
            "becomes #GP in L2, or a shutdown",
            nested.vmcb_pa_at,
        )
    control, save = nested.control, nested.l1_save
    intercepts = bits.intercept_words(list(control.intercepts))
    bitmap = control.msrpm_base_pa & ~0xFFF
    merged = intercepts & bits.INTERCEPTS.mask("MSR_PROT")
    if merged and not exists(bitmap, 0x2000):
        yield _RULES["X-07"].finding(
            f"{name}: L1's MSR bitmap at {bitmap:#x} is outside the guest's RAM",
            at + layout.CONTROL.member("msrpm_base_pa").offset,
        )
    if vcpu.has("MSRS") and not vcpu.get("vm_hsave_pa"):
        yield _RULES["X-08"].finding(
            f"{name}: VM_HSAVE_PA is 0 in guest mode",
            vcpu.registers["vm_hsave_pa"].offset if "vm_hsave_pa" in vcpu.registers else None,
        )
    if save.rax != nested.vmcb_pa:
        yield _RULES["X-09"].finding(
            f"{name}: L1's RAX is {save.rax:#x}, vmcb12's address is {nested.vmcb_pa:#x}",
            at + layout.SAVE_OFFSET + layout.SAVE.member("rax").offset,
        )
