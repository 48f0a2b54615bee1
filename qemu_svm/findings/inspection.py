"""What looks wrong at first sight: damage, and parts that contradict each other.

Source: QEMU ``target/i386/machine.c`` (``cpu_post_load``) and
``target/i386/kvm/kvm.c`` (``kvm_put_nested_state``) for what must agree.
"""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.findings.model import Finding, Severity, from_error
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.nested import bits, layout


def findings(machine: Machine) -> list[Finding]:
    """List what is wrong with a stream and its vCPUs; empty for a sound one."""
    found = [from_error(error) for error in machine.stream.problems + machine.problems]
    found.extend(_description(machine))
    for vcpu in machine.vcpus:
        found.extend(_nested(vcpu))
    return found


def _description(machine: Machine) -> Iterator[Finding]:
    if machine.stream.complete and machine.stream.description is None:
        yield Finding(
            Severity.WARNING,
            "no-description",
            "the stream does not describe itself (suppress-vmdesc, postcopy or a very old "
            "machine type): its device sections are listed but cannot be decoded",
        )


def _nested(vcpu: Vcpu) -> Iterator[Finding]:
    nested = vcpu.nested
    if nested is None:
        # Under TCG L1's state is in memory, and these two tell that it is TCG.
        tcg = vcpu.get("vm_vmcb") != 0 or vcpu.get("hflags") & 1 << 20
        if vcpu.guest_mode and not tcg:
            yield Finding(
                Severity.ERROR,
                "guest-without-nested-state",
                f"vCPU {vcpu.index} was in guest mode, but the stream carries no nested state: "
                "L1's state is lost and the restore will fail",
                vcpu.registers["hflags"].offset,
            )
        return
    if nested.format not in bits.FORMATS:
        yield Finding(
            Severity.ERROR,
            "nested-format",
            f"vCPU {vcpu.index}: nested state of unknown format {nested.format}",
            nested.offset + 2,
        )
    if bool(nested.flags & bits.GUEST_MODE) != vcpu.guest_mode:
        yield Finding(
            Severity.ERROR,
            "guest-mode-mismatch",
            f"vCPU {vcpu.index}: hflags say guest mode {vcpu.guest_mode}, the nested state's "
            f"flags {nested.flags:#x} say the opposite; QEMU refuses or changes this on load",
            nested.offset,
        )
    if nested.is_svm:
        yield from _svm(vcpu)


def _svm(vcpu: Vcpu) -> Iterator[Finding]:
    nested = vcpu.nested
    assert nested is not None
    if bool(nested.flags & bits.GIF_SET) != vcpu.gif:
        yield Finding(
            Severity.WARNING,
            "gif-mismatch",
            f"vCPU {vcpu.index}: hflags2 say GIF {int(vcpu.gif)}, the nested state's flags "
            f"{nested.flags:#x} the opposite; QEMU takes hflags2",
            nested.offset,
        )
    whole = layout.UAPI_HEADER_SIZE + layout.VMCB_SIZE
    if nested.flags & bits.GUEST_MODE and nested.size < whole:
        yield Finding(
            Severity.ERROR,
            "nested-size",
            f"vCPU {vcpu.index}: the nested state says it has {nested.size} bytes; guest mode "
            f"needs {whole}",
            nested.offset + 4,
        )
