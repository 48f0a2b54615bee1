"""What is known about restoring a stream in a QEMU of some version.

A version is a text such as ``7.2``; whatever follows the second number is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qemu_svm.findings.check import Finding
from qemu_svm.findings.rules import ERROR, RULES, WARNING
from qemu_svm.machine import Machine
from qemu_svm.stream import Value

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


def qemu_findings(machine: Machine, version: str) -> Iterator[Finding]:
    """Rules that a stream meets in a QEMU of that version.

    :raises ValueError: not a version.
    """
    wanted = _version(version)
    if wanted < _NESTED and any(vcpu.guest_mode for vcpu in machine.vcpus):
        yield Finding("Q-01", f"QEMU {version}: {RULES['Q-01'].means}", ())
    name = machine.name or ""
    number = name.rpartition("-")[2]
    if number.replace(".", "").isdigit() and "." in number and _version(number) > wanted:
        yield Finding("Q-02", f"QEMU {version} does not know the machine type {name}", ())
    for vcpu in machine.vcpus:
        for subsection, without, with_it in newer_subsections(vcpu.section):
            if wanted >= _version(with_it):
                continue
            sure = wanted <= _version(without)
            words = "does not know" if sure else "may not know"
            known = "" if sure else f" ({without} does not, {with_it} does)"
            yield Finding(
                "Q-03",
                f"vCPU {vcpu.index}: QEMU {version} {words} the subsection "
                f"{subsection.name}{known}",
                (),
                subsection.offset,
                ERROR if sure else WARNING,
            )


def newer_subsections(cpu: Value) -> Iterator[tuple[Value, str, str]]:
    """Subsections of a ``cpu`` section that not every QEMU from 5.2 on knows.

    :returns: each with the last version seen without it and the first with it.
    """
    for _, value in cpu.walk():
        if value.type == "subsection" and value.name in _SUBSECTIONS:
            yield value, *_SUBSECTIONS[value.name]


def qemu_plan(version: str) -> str:
    """The order in which a QEMU of that version restores.

    :raises ValueError: not a version.
    """
    return "qemu-5.0" if _version(version) < _NESTED else "qemu"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
