"""What the facts of a host mean for nested SVM."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.doctor.facts import Cpu, Host, Kvm
from qemu_svm.doctor.model import Check, State
from qemu_svm.findings.advisories import known_bugs
from qemu_svm.model.releases import profile

_PROCESSOR = "processor"
_KVM = "KVM"
_KERNEL = "kernel"
_REPLAY = frozenset({"replay"})

AMD = frozenset({"AuthenticAMD", "HygonGenuine"})
"""Vendors whose processors have SVM."""

SVM_STATE, VMX_STATE = 4224, 8320
"""What KVM_CAP_NESTED_STATE says with kvm-amd and with kvm-intel."""

_CRASHES = "O-28"
"""The one known bug that takes the host down, not only a guest."""

_BOX = "svmstream lab brings an emulated AMD host"
_NO_REPLAY = "nested SVM state cannot be restored on this host; reading streams needs none of it"
_SHOWN = ("nrips", "vgif", "avic", "vls", "vnmi", "lbrv", "sev")


def judge_host(host: Host) -> Iterator[Check]:
    """Judge a host, from the processor up."""
    yield from _processor(host.cpu)
    yield from _device(host)
    if not host.kvm.error:
        yield from _nested(host.kvm)
    yield from _module(host)
    yield from _kernel(host)


def _processor(cpu: Cpu) -> Iterator[Check]:
    inside = ", itself a virtual machine" if cpu.hypervisor else ""
    found = f"{cpu.vendor or 'not told'}, {cpu.model or 'no name'}, CPUs: {cpu.count}{inside}"
    if cpu.vendor not in AMD:
        yield Check(
            _PROCESSOR, "vendor", State.MISSING, found, _NO_REPLAY, f"use an AMD host; {_BOX}",
            _REPLAY,
        )  # fmt: skip
        return
    yield Check(_PROCESSOR, "vendor", State.OK, found)
    if not cpu.svm:
        on = "have the hypervisor below offer it (kvm_amd nested=1, -cpu host,+svm)"
        on = on if cpu.hypervisor else "switch SVM on in the firmware"
        yield Check(
            _PROCESSOR, "svm", State.MISSING, "not offered", _NO_REPLAY, f"{on}; {_BOX}", _REPLAY
        )
        return
    yield Check(_PROCESSOR, "svm", State.OK, " ".join(cpu.svm_features) or "no further features")
    if "npt" not in cpu.svm_features:
        yield Check(
            _PROCESSOR, "npt", State.WARNING, "not offered",
            "streams whose L1 uses nested paging are refused (C-03)", "use a host that has it",
        )  # fmt: skip


def _device(host: Host) -> Iterator[Check]:
    kvm = host.kvm
    owned = f"{kvm.mode} {kvm.owner}:{kvm.group}"
    if not kvm.exists:
        loaded = "kvm_amd" in host.modules or "kvm_intel" in host.modules
        yield Check(
            _KVM, "device", State.MISSING, f"{kvm.device} is not there", _NO_REPLAY,
            f"{'dmesg says why' if loaded else 'modprobe kvm-amd'}; {_BOX}", _REPLAY,
        )  # fmt: skip
    elif kvm.error in ("EACCES", "EPERM"):
        join = f"adduser {host.user} {'kvm' if kvm.group == 'root' else kvm.group}; log in anew"
        share = f"chgrp kvm {kvm.device}; chmod g+rw {kvm.device}; "
        yield Check(
            _KVM, "device", State.MISSING, f"{kvm.device} ({owned}) is not for {host.user}",
            _NO_REPLAY, f"as root: {share if kvm.group == 'root' else ''}{join}", _REPLAY,
        )  # fmt: skip
    elif kvm.error:
        yield Check(
            _KVM, "device", State.MISSING, f"{kvm.device} ({owned}): {kvm.error}",
            _NO_REPLAY, f"modprobe kvm-amd; {_BOX}", _REPLAY,
        )  # fmt: skip
    else:
        yield Check(
            _KVM, "device", State.OK, f"{kvm.device} ({owned}) opens, API version {kvm.api}"
        )


def _nested(kvm: Kvm) -> Iterator[Check]:
    size = kvm.capabilities.get("nested_state", 0)
    if size == SVM_STATE:
        yield Check(_KVM, "nested state", State.OK, f"SVM, {size} bytes")
    elif size == VMX_STATE:
        yield Check(
            _KVM, "nested state", State.MISSING, f"VMX, {size} bytes", _NO_REPLAY, _BOX, _REPLAY
        )
    elif size == 0:
        yield Check(
            _KVM, "nested state", State.MISSING, "none: KVM does not nest", _NO_REPLAY,
            f"modprobe -r kvm_amd; modprobe kvm_amd nested=1, if the processor offers svm; {_BOX}",
            _REPLAY,
        )  # fmt: skip
    else:
        yield Check(
            _KVM, "nested state", State.WARNING, f"{size} bytes",
            f"neither SVM's {SVM_STATE} nor VMX's {VMX_STATE}: a kernel that is not known here",
        )  # fmt: skip
    others = [f"{name} {size}" for name, size in kvm.capabilities.items() if name != "nested_state"]
    yield Check(_KVM, "capabilities", State.NOTE, ", ".join(others))


def _module(host: Host) -> Iterator[Check]:
    parameters = host.modules.get("kvm_amd")
    if parameters is None:
        if host.cpu.svm:
            yield Check(_KVM, "kvm_amd", State.NOTE, "not loaded", "", "modprobe kvm-amd")
        return
    for name, means in (
        ("nested", "guests are not offered SVM, and no nested state is saved or restored"),
        ("npt", "streams whose L1 uses nested paging are refused (C-03)"),
    ):
        value = parameters.get(name, "")
        if value in ("1", "Y"):
            yield Check(_KVM, f"kvm_amd {name}", State.OK, value)
        else:
            yield Check(
                _KVM, f"kvm_amd {name}", State.WARNING, value or "not told", means,
                f"modprobe -r kvm_amd; modprobe kvm_amd {name}=1",
            )  # fmt: skip
    shown = [f"{name}={parameters[name]}" for name in _SHOWN if name in parameters]
    yield Check(_KVM, "kvm_amd", State.NOTE, " ".join(shown) or "no other parameters")


def _kernel(host: Host) -> Iterator[Check]:
    best = None if host.kernel is None else profile(host.kernel)
    if host.kernel is None or best is None:
        yield Check(
            _KERNEL, "release", State.WARNING, host.name,
            "nested SVM state is saved and restored from Linux 5.8 on", "use a newer kernel",
        )  # fmt: skip
        return
    told = "" if str(host.kernel) in host.name else f", which is {host.kernel}"
    yield Check(_KERNEL, "release", State.OK, f"{host.name}{told}")
    measured = host.kernel.measured(best)
    yield Check(
        _KERNEL, "profile", State.OK if measured else State.NOTE, f"{best.name}: {best.about}",
        "" if measured else f"no {host.kernel.major}.{host.kernel.minor} was measured for it: "
        "what check and simulate say is derived",
    )  # fmt: skip
    for rule in known_bugs(best):
        state = State.WARNING if rule.id == _CRASHES else State.NOTE
        yield Check(_KERNEL, f"bug {rule.id}", state, f"if {rule.fails_when}: {rule.means}",
                    do=rule.do)  # fmt: skip
