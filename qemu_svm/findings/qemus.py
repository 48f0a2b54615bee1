"""Whether a QEMU of some version can restore a stream, from what is known of its releases.

A version is a string such as ``7.2``; whatever follows the second number is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qemu_svm.errors import PlanError
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.rules import Finding, Rule, RuleKind, Severity
from qemu_svm.stream import Value
from qemu_svm.x86.cpuid import Cpuid

_NESTED = (5, 1)
"""First QEMU that carries nested SVM state."""

_SUBSECTIONS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        (
            *("cpu/pkrs", "cpu/amd_tsc_scale_msr", "cpu/svm_guest", "cpu/intel_sgx"),
            *("cpu/pdptrs", "cpu/msr_xfd", "cpu/intel_amx_xtile", "cpu/arch_lbr"),
            "cpu/triple_fault",
        ),
        ("5.2", "7.2"),
    ),
    **dict.fromkeys(("cpu/xen_vcpu", "cpu/msr_hwcr", "cpu/fred"), ("7.2", "10.0")),
    **dict.fromkeys(("cpu/msr_pl0_ssp", "cpu/cet", "cpu/cet_shstk", "cpu/apx"), ("10.0", "11.1")),
}
"""Subsections of the ``cpu`` section: the last QEMU seen without each, the first with it.

Source: the tables in the binaries of 5.2.0, 7.2.22, 10.0.13 and 11.1.2.
"""

_TOO_OLD = Rule(
    "Q-01",
    Severity.ERROR,
    RuleKind.ADVISORY,
    "QEMU is older than 5.1",
    "it does not restore nested SVM state at all",
    "use QEMU 5.1 or later",
    "QEMU target/i386/kvm.c, 5.1",
)
_MACHINE_TYPE = Rule(
    "Q-02",
    Severity.WARNING,
    RuleKind.ADVISORY,
    "QEMU is older than the machine type",
    "it does not have this machine type",
    "use a QEMU at least as new, or an older machine type",
    "QEMU hw/i386/pc_piix.c",
)
_SUBSECTION = Rule(
    "Q-03",
    Severity.ERROR,
    RuleKind.ADVISORY,
    "a subsection of the vCPU is newer than QEMU",
    "it refuses the section 'cpu' (No such file or directory)",
    "use a QEMU that knows it; an older machine type does not help",
    "QEMU migration/vmstate.c vmstate_subsection_load",
)
_NO_SVM = Rule(
    "Q-04",
    Severity.ERROR,
    RuleKind.ADVISORY,
    "the destination's CPU has no SVM and the stream has nested state",
    "QEMU aborts when it loads the section 'cpu' (an assertion in vmstate_load_state)",
    "add +svm to the CPU model; with KVM only host and max have it by themselves",
    "measured on QEMU 7.2 and 10.0; QEMU target/i386/kvm/kvm.c kvm_arch_init_vcpu",
)
QEMU_RULES = (_TOO_OLD, _MACHINE_TYPE, _SUBSECTION, _NO_SVM)


def qemu_findings(machine: Machine, version: str) -> Iterator[Finding]:
    """Find the rules that a stream breaks in a QEMU of that version.

    :raises PlanError: not a version.
    """
    wanted = _version(version)
    if wanted < _NESTED and any(vcpu.guest_mode for vcpu in machine.vcpus):
        yield _TOO_OLD.finding(f"QEMU {version}: {_TOO_OLD.means}")
    name = machine.name or ""
    number = name.rpartition("-")[2]
    if number.replace(".", "").isdigit() and "." in number and _version(number) > wanted:
        yield _MACHINE_TYPE.finding(f"QEMU {version} does not have the machine type {name}")
    for vcpu in machine.vcpus:
        for subsection, without, with_it in newer_subsections(vcpu.section):
            if wanted >= _version(with_it):
                continue
            certain = wanted <= _version(without)
            words = "does not know" if certain else "may not know"
            known = "" if certain else f" ({without} does not, {with_it} does)"
            yield _SUBSECTION.finding(
                f"vCPU {vcpu.index}: QEMU {version} {words} the subsection "
                f"{subsection.name}{known}",
                subsection.offset,
                severity=None if certain else Severity.WARNING,
            )


def cpu_finding(vcpu: Vcpu, cpuid: Cpuid) -> Finding | None:
    """Return what a QEMU without SVM for its guest makes of a vCPU's nested state.

    :param cpuid: of the vCPU at the destination.
    """
    if vcpu.nested is None or cpuid.has("svm"):
        return None
    return _NO_SVM.finding(f"vCPU {vcpu.index}: {_NO_SVM.fails_when}: {_NO_SVM.means}",
                           vcpu.nested.offset)  # fmt: skip


def newer_subsections(cpu: Value) -> Iterator[tuple[Value, str, str]]:
    """Subsections of a ``cpu`` section that some QEMU since 5.2 does not know.

    :returns: each with the last version seen without it and the first with it.
    """
    for _, value in cpu.walk():
        if value.type == "subsection" and value.name in _SUBSECTIONS:
            yield value, *_SUBSECTIONS[value.name]


def qemu_plan(version: str) -> str:
    """Name the plan of a QEMU of that version, see :mod:`qemu_svm.model.plans`.

    :raises PlanError: not a version.
    """
    return "qemu-5.0" if _version(version) < _NESTED else "qemu"


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        raise PlanError(f"'{text}' is not a version such as 7.2") from None
