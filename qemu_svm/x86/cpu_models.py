"""CPU models as QEMU's ``-cpu`` names them: the features that KVM's checks depend on.

With KVM, QEMU switches SVM off in every model but ``host`` and ``max``; ``+svm`` switches it
on again.  x2APIC is on.

Source: ``query-cpu-model-expansion`` of QEMU 7.2.22, 10.0.13 and 11.1.3; QEMU
``target/i386/kvm/kvm-cpu.c`` (``kvm_default_props``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from qemu_svm.errors import PlanError
from qemu_svm.x86.cpuid import Cpuid

FEATURES: Mapping[str, str] = {
    **{
        name: name
        for name in (
            *("svm", "npt", "vgif", "lm", "nx", "invpcid", "rdtscp", "skinit", "fsgsbase"),
            *("pcid", "xsave", "smep", "smap", "pku", "umip", "la57", "vmx", "x2apic", "gmet"),
        )
    },
    "nrip-save": "nrips",
    "fxsr-opt": "fxsr_opt",
    "cet-ss": "shstk",
    "auto-ibrs": "autoibrs",
    "tsc-scale": "tscratemsr",
}
"""Names of QEMU's properties, and those of :data:`qemu_svm.x86.cpuid.FEATURES`."""

_ZEN = "fsgsbase fxsr-opt lm npt nrip-save nx rdtscp smap smep svm xsave"
_ZEN2 = f"{_ZEN} umip"
_ZEN3 = f"{_ZEN2} invpcid pcid pku"
_ZEN4 = f"{_ZEN3} auto-ibrs la57"

_GROUPS: Mapping[str, str] = {
    "qemu64 qemu64-v1 Opteron_G2 Opteron_G2-v1": "lm nx svm",
    "kvm64 kvm64-v1 Opteron_G1 Opteron_G1-v1": "lm nx",
    "phenom phenom-v1": "fxsr-opt lm npt nx rdtscp svm",
    "Opteron_G3 Opteron_G3-v1": "lm nx rdtscp svm",
    "Opteron_G4 Opteron_G4-v1 Opteron_G5 Opteron_G5-v1": "lm npt nrip-save nx rdtscp svm xsave",
    "EPYC EPYC-IBPB EPYC-v1 EPYC-v2 EPYC-v3 EPYC-v4 Dhyana Dhyana-v1 Dhyana-v2": _ZEN,
    "EPYC-v5": f"{_ZEN} tsc-scale vgif",
    "EPYC-Rome EPYC-Rome-v1 EPYC-Rome-v2 EPYC-Rome-v3 EPYC-Rome-v4": _ZEN2,
    "EPYC-Rome-v5": f"{_ZEN2} tsc-scale vgif",
    "EPYC-Milan EPYC-Milan-v1 EPYC-Milan-v2": _ZEN3,
    "EPYC-Milan-v3": f"{_ZEN3} tsc-scale vgif",
    "EPYC-Milan-v4": f"{_ZEN3} tsc-scale vgif gmet",
    "EPYC-Genoa EPYC-Genoa-v1": _ZEN4,
    "EPYC-Genoa-v2 EPYC-Turin EPYC-Turin-v1": f"{_ZEN4} tsc-scale vgif",
    "EPYC-Genoa-v3 EPYC-Turin-v2": f"{_ZEN4} tsc-scale vgif gmet",
}

MODELS: Mapping[str, frozenset[str]] = {
    name: frozenset(features.split())
    for names, features in _GROUPS.items()
    for name in names.split()
}
"""QEMU's own features of each model of AMD's processors, and of the generic ones."""

AS_SAVED = ("host", "max")
"""Models without a list of features: those that the saved registers show are taken."""

_PHYS_BITS = "phys-bits"
_ON, _OFF = ("on", "yes", "true", "y"), ("off", "no", "false", "n")


def parse(text: str, saved: Cpuid) -> Cpuid:
    """Return the CPUID of a vCPU that QEMU starts on KVM with ``-cpu`` and this text.

    :param text: ``EPYC,+svm,-pcid,phys-bits=48``.
    :param saved: features that the saved registers show, and the address width.
    :raises PlanError: an unknown model or feature; ``near`` has some that are known.
    """
    model, *words = (one.strip() for one in text.split(","))
    if model in AS_SAVED:
        features, width = set(saved.features), saved.maxphyaddr
    elif model in MODELS:
        own = MODELS[model] - {"svm"} | {"x2apic"}
        features, width = {FEATURES[one] for one in own}, saved.maxphyaddr
    else:
        known = {one.casefold(): one for one in (*AS_SAVED, *MODELS)}
        near = difflib.get_close_matches(model.casefold()[:80], known, cutoff=0.4)
        raise PlanError(
            f"unknown CPU model {model[:80]!r}",
            near=[known[one] for one in near] or (*AS_SAVED, "EPYC"),
        )
    for word in words:
        name, value = _setting(word)
        if name == _PHYS_BITS:
            width = _width(value)
        elif value in _ON:
            features.add(FEATURES[name])
        else:
            features.discard(FEATURES[name])
    return Cpuid(frozenset(features), width)


def _setting(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    if word[:1] in ("+", "-"):
        name, value = word[1:], "on" if word[0] == "+" else "off"
    name = name.replace("_", "-")
    known = (*FEATURES, _PHYS_BITS)
    if name not in known:
        near = difflib.get_close_matches(name[:80], known, cutoff=0.4)
        raise PlanError(
            f"no check depends on the CPU feature {name[:80]!r}; leave it out",
            near=near or tuple(FEATURES),
        )
    if name != _PHYS_BITS and value not in (*_ON, *_OFF):
        raise PlanError(f"{word[:80]!r} is not +{name}, -{name}, {name}=on or {name}=off")
    return name, value


def _width(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 32 <= int(value[:4]) <= 52):
        raise PlanError(f"phys-bits={value[:80]!r}: not a number from 32 to 52")
    return int(value)


def words() -> str:
    """What :func:`parse` accepts, in words."""
    bases: dict[str, list[str]] = {}
    for name in MODELS:
        base, _, version = name.rpartition("-v")
        bases.setdefault(base or name, []).extend([version] if base else [])
    models = ", ".join([*AS_SAVED, *_ranges(bases)])
    return f"MODEL is one of {models}; FEATURE is one of {', '.join(FEATURES)}."


def _ranges(bases: Mapping[str, list[str]]) -> Iterator[str]:
    for base, versions in sorted(bases.items(), key=lambda one: one[0].casefold()):
        yield f"{base}[-v{min(versions)}…{max(versions)}]" if len(versions) > 1 else base
