"""Judges the facts of a host: what they mean for nested SVM."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.doctor.facts import Cpu, Host, KernelMemory, Kvm
from qemu_svm.doctor.model import Check, CheckState
from qemu_svm.findings.advisories import EVERY, known_bugs
from qemu_svm.kvm.layouts import NESTED_STATE_SIZE
from qemu_svm.model.kernels.changes import Evidence
from qemu_svm.model.kernels.derive import evidence, profile_of
from qemu_svm.model.kernels.release import Release
from qemu_svm.model.profile import Profile
from qemu_svm.rules import Severity

_PROCESSOR = "processor"
_KVM = "KVM"
_KERNEL = "kernel"
_INSIDE = "kernel memory"
_REPLAY = frozenset({"replay"})
_FOR_INSIDE = frozenset({"inside"})

AMD = frozenset({"AuthenticAMD", "HygonGenuine"})
"""Vendors whose processors have SVM."""

SVM_STATE, VMX_STATE = NESTED_STATE_SIZE, 8320
"""KVM_CAP_NESTED_STATE with kvm-amd and with kvm-intel: bytes."""

_CRASHES = "O-28"
"""The one known bug that crashes the host, not only a guest."""

_BOX = "svmstream lab provides an emulated AMD host"
_NO_REPLAY = "nested SVM state cannot be restored on this host; reading streams does not need it"
_SHOWN = ("nrips", "vgif", "avic", "vls", "vnmi", "lbrv", "sev")


def judge_host(host: Host) -> Iterator[Check]:
    """Judge a host: processor, KVM, kernel."""
    yield from _processor(host.cpu)
    yield from _device(host)
    if not host.kvm.error:
        yield from _nested(host.kvm)
    yield from _module(host)
    yield from _kernel(host)
    yield from _inside(host)


def _processor(cpu: Cpu) -> Iterator[Check]:
    inside = ", itself a virtual machine" if cpu.hypervisor else ""
    vendor, model = cpu.vendor or "unknown vendor", cpu.model or "unknown model"
    found = f"{vendor}, {model}, CPUs: {cpu.count}{inside}"
    if cpu.vendor not in AMD:
        yield Check(
            _PROCESSOR,
            "vendor",
            CheckState.MISSING,
            found,
            _NO_REPLAY,
            f"use an AMD host; {_BOX}",
            _REPLAY,
        )
        return
    yield Check(_PROCESSOR, "vendor", CheckState.OK, found)
    if not cpu.svm:
        on = "have the hypervisor offer it (kvm_amd nested=1, -cpu host,+svm)"
        on = on if cpu.hypervisor else "enable SVM in the firmware"
        yield Check(
            _PROCESSOR,
            "svm",
            CheckState.MISSING,
            "not offered",
            _NO_REPLAY,
            f"{on}; {_BOX}",
            _REPLAY,
        )
        return
    yield Check(
        _PROCESSOR, "svm", CheckState.OK, " ".join(cpu.svm_features) or "no further features"
    )
    if "npt" not in cpu.svm_features:
        yield Check(
            _PROCESSOR, "npt", CheckState.WARNING, "not offered",
            "streams whose L1 uses nested paging are refused (C-03)", "use a host that has it",
        )  # fmt: skip


def _device(host: Host) -> Iterator[Check]:
    kvm = host.kvm
    owned = f"{kvm.mode} {kvm.owner}:{kvm.group}"
    if not kvm.exists:
        loaded = "kvm_amd" in host.modules or "kvm_intel" in host.modules
        yield Check(
            _KVM, "device", CheckState.MISSING, f"{kvm.device} does not exist", _NO_REPLAY,
            f"{'dmesg says why' if loaded else 'modprobe kvm-amd'}; {_BOX}", _REPLAY,
        )  # fmt: skip
    elif kvm.error in ("EACCES", "EPERM"):
        join = f"adduser {host.user} {'kvm' if kvm.group == 'root' else kvm.group}; log in again"
        share = f"chgrp kvm {kvm.device}; chmod g+rw {kvm.device}; "
        yield Check(
            _KVM,
            "device",
            CheckState.MISSING,
            f"{kvm.device} ({owned}) is not accessible to {host.user}",
            _NO_REPLAY,
            f"as root: {share if kvm.group == 'root' else ''}{join}",
            _REPLAY,
        )
    elif kvm.error:
        yield Check(
            _KVM, "device", CheckState.MISSING, f"{kvm.device} ({owned}): {kvm.error}",
            _NO_REPLAY, f"modprobe kvm-amd; {_BOX}", _REPLAY,
        )  # fmt: skip
    else:
        yield Check(
            _KVM, "device", CheckState.OK, f"{kvm.device} ({owned}) opens, API version {kvm.api}"
        )


def _nested(kvm: Kvm) -> Iterator[Check]:
    size = kvm.capabilities.get("nested_state", 0)
    if size == SVM_STATE:
        yield Check(_KVM, "nested state", CheckState.OK, f"SVM, {size} bytes")
    elif size == VMX_STATE:
        yield Check(
            _KVM,
            "nested state",
            CheckState.MISSING,
            f"VMX, {size} bytes",
            _NO_REPLAY,
            _BOX,
            _REPLAY,
        )
    elif size == 0:
        yield Check(
            _KVM,
            "nested state",
            CheckState.MISSING,
            "none: KVM does not support nesting",
            _NO_REPLAY,
            f"modprobe -r kvm_amd; modprobe kvm_amd nested=1, if the processor offers svm; {_BOX}",
            _REPLAY,
        )
    else:
        yield Check(
            _KVM, "nested state", CheckState.WARNING, f"{size} bytes",
            f"neither SVM's {SVM_STATE} nor VMX's {VMX_STATE}: unknown kernel",
        )  # fmt: skip
    others = [f"{name} {size}" for name, size in kvm.capabilities.items() if name != "nested_state"]
    yield Check(_KVM, "capabilities", CheckState.NOTE, ", ".join(others))


def _module(host: Host) -> Iterator[Check]:
    parameters = host.modules.get("kvm_amd")
    if parameters is None:
        if host.cpu.svm:
            yield Check(_KVM, "kvm_amd", CheckState.NOTE, "not loaded", "", "modprobe kvm-amd")
        return
    for name, means in (
        ("nested", "guests are not offered SVM, and no nested state is saved or restored"),
        ("npt", "streams whose L1 uses nested paging are refused (C-03)"),
    ):
        value = parameters.get(name, "")
        if value in ("1", "Y"):
            yield Check(_KVM, f"kvm_amd {name}", CheckState.OK, value)
        else:
            yield Check(
                _KVM, f"kvm_amd {name}", CheckState.WARNING, value or "not reported", means,
                f"modprobe -r kvm_amd; modprobe kvm_amd {name}=1",
            )  # fmt: skip
    shown = [f"{name}={parameters[name]}" for name in _SHOWN if name in parameters]
    yield Check(_KVM, "kvm_amd", CheckState.NOTE, " ".join(shown) or "no other parameters")


def _basis(kernel: Release, profile: Profile) -> str:
    if profile.measured:
        return f"measured on {', '.join(profile.measured)}"
    if evidence(kernel) is Evidence.READ:
        return "not measured: the answers of check and simulate follow from its changelog"
    return "not measured: the answers of check and simulate are derived from its neighbours"


def _bugs(host: Host, kernel: Release, profile: Profile) -> Iterator[Check]:
    # Bugs that follow from the kernel and the parameters of kvm_amd alone.
    parameters = host.modules.get("kvm_amd", {})
    for one in EVERY:
        if not one.on_host(parameters, profile):
            continue
        rule, change = one.rule, one.change
        # Other series may have the fix in an update that is not in the table.
        known = change is not None and change.names(profile.numbers) and not kernel.vendor_tree
        severe = rule.severity is not Severity.INFO or bool(change is not None and change.cve)
        perhaps = "" if known else "; this kernel may have the fix"
        yield Check(
            _KERNEL, f"bug {rule.id}", CheckState.WARNING if known and severe else CheckState.NOTE,
            f"if {rule.fails_when}: {rule.means}{perhaps}",
            do=f"{rule.do}, or load kvm_amd with {one.avoided_by}",
        )  # fmt: skip


def _kernel(host: Host) -> Iterator[Check]:
    best = None if host.kernel is None else profile_of(host.kernel)
    if host.kernel is None or best is None:
        yield Check(
            _KERNEL, "release", CheckState.WARNING, host.name,
            "nested SVM state is saved and restored since Linux 5.8", "use a newer kernel",
        )  # fmt: skip
        return
    known = "" if str(host.kernel) in host.name else f", which is {host.kernel}"
    yield Check(_KERNEL, "release", CheckState.OK, f"{host.name}{known}")
    yield Check(
        _KERNEL, "profile", CheckState.OK if best.measured else CheckState.NOTE,
        f"{best.row}: {best.about}", _basis(host.kernel, best),
    )  # fmt: skip
    yield from _bugs(host, host.kernel, best)
    for rule in known_bugs(best):
        state = CheckState.WARNING if rule.id == _CRASHES else CheckState.NOTE
        yield Check(_KERNEL, f"bug {rule.id}", state, f"if {rule.fails_when}: {rule.means}",
                    do=rule.do)  # fmt: skip


_NO_LOOK = "inside and replay --inside cannot read vCPUs on this host"
_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, Linux include/linux/proc_ns.h


def _inside(host: Host) -> Iterator[Check]:
    # Whether a vCPU can be read out of this kernel's memory.
    seen = host.inside
    if seen is None:
        return
    trouble = _no_look(host, seen)
    if trouble is not None:
        found, do = trouble
        yield Check(_INSIDE, "vCPUs", CheckState.MISSING, found, _NO_LOOK, do, _FOR_INSIDE)
        return
    types = ", ".join(seen.types)
    yield Check(_INSIDE, "vCPUs", CheckState.OK, f"readable; types of {types}",
                needed_for=_FOR_INSIDE)  # fmt: skip


def _no_look(host: Host, seen: KernelMemory) -> tuple[str, str] | None:
    # The first that applies.
    denied = seen.kcore in ("EACCES", "EPERM")
    known = (
        ("kvm_amd" not in host.modules, "kvm_amd is not loaded",
         f"an AMD host with kvm_amd is needed; {_BOX}"),
        ("[confidentiality]" in seen.lockdown, "kernel lockdown is in mode confidentiality",
         "boot without lockdown=confidentiality"),
        (denied, f"/proc/kcore is not readable for {host.user}", "run inside as root"),
        (bool(seen.kcore), f"/proc/kcore: {seen.kcore}", "use a kernel with CONFIG_PROC_KCORE"),
        (seen.kptr_restrict == "2", "kernel.kptr_restrict is 2", "sysctl kernel.kptr_restrict=1"),
        (seen.pid_namespace not in ("", _FIRST_PID_NAMESPACE), "this is a PID namespace",
         "run inside on the host itself, not in a container"),
        ("vmlinux" not in seen.types, "the kernel has no types",
         "a kernel with CONFIG_DEBUG_INFO_BTF is needed"),
        ("kvm_amd" not in seen.types, "the types of kvm_amd are missing",
         "give inside --types (docs/inside.md)"),
    )  # fmt: skip
    return next(((found, do) for applies, found, do in known if applies), None)
