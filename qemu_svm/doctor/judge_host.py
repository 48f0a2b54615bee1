"""What the facts of a host mean for nested SVM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qemu_svm.doctor.kernel import known_bugs, profile_of, version_of
from qemu_svm.doctor.model import Check, State

_PROCESSOR = "processor"
_KVM = "KVM"
_KERNEL = "kernel"
_REPLAY = frozenset({"replay"})

AMD_VENDORS = frozenset({"AuthenticAMD", "HygonGenuine"})

SVM_STATE, VMX_STATE = 4224, 8320
"""What KVM_CAP_NESTED_STATE says with kvm-amd and with kvm-intel."""

_LAB = "or use the emulated AMD host: svmstream lab"


def judge(facts: Mapping[str, Any]) -> Iterator[Check]:
    """Judge the facts of :func:`qemu_svm.doctor.probe.host`."""
    yield from _processor(facts["cpu"])
    yield from _device(facts["kvm"], facts["modules"], facts["user"])
    yield from _modules(facts["modules"])
    yield from _kernel(facts["kernel"])


def _processor(cpu: Mapping[str, Any]) -> Iterator[Check]:
    amd = cpu["vendor"] in AMD_VENDORS
    guest = " (this host is a virtual machine itself)" if cpu["hypervisor"] else ""
    yield Check(
        _PROCESSOR,
        "vendor",
        State.OK if amd else State.WARNING,
        f"{cpu['vendor'] or 'unknown'}, {cpu['model'] or 'no name'}, {cpu['count']} CPUs{guest}",
        "" if amd else "nested SVM needs AMD: no real restore here, everything else works",
        "" if amd else _LAB.removeprefix("or "),
    )
    if not amd:
        return
    if cpu["svm"]:
        yield Check(_PROCESSOR, "svm", State.OK, "offered")
    else:
        yield Check(
            _PROCESSOR, "svm", State.MISSING, "not offered by this processor",
            "no AMD virtualisation: KVM cannot restore nested SVM state here",
            "let the hypervisor below offer it (nested=1, -cpu host,+svm); " + _LAB
            if cpu["hypervisor"]
            else "switch SVM on in the firmware; " + _LAB,
            _REPLAY,
        )  # fmt: skip
        return
    features = set(cpu["svm_features"])
    yield Check(
        _PROCESSOR,
        "npt",
        State.OK if "npt" in features else State.WARNING,
        "offered" if "npt" in features else "not offered",
        "" if "npt" in features else "guests that use nested paging are refused (C-03)",
        "" if "npt" in features else "use a host that has it",
    )
    yield Check(
        _PROCESSOR, "SVM features", State.NOTE, " ".join(cpu["svm_features"]) or "none named"
    )


def _device(
    kvm: Mapping[str, Any], modules: Mapping[str, Any], user: Mapping[str, Any]
) -> Iterator[Check]:
    name = kvm["device"]
    owned = f"{kvm['mode']} {kvm['owner']}:{kvm['group']}"
    if not kvm["exists"]:
        loaded = any(modules[one] is not None for one in ("kvm_amd", "kvm_intel"))
        yield Check(
            _KVM, name, State.MISSING, "not there", "no KVM: QEMU emulates, replay is not possible",
            "see why: dmesg" if loaded else "modprobe kvm-amd; " + _LAB, _REPLAY,
        )  # fmt: skip
        return
    if kvm["error"] is not None:
        yield Check(
            _KVM, name, State.MISSING, f"{kvm['error']} ({owned}, you are {user['name']})",
            "KVM is there and not for you",
            f"join the group {kvm['group']} (adduser {user['name']} {kvm['group']}), log in anew"
            if kvm["group"] != "root" and kvm["error"] in ("EACCES", "EPERM")
            else "let the owner give you access, or run as root",
            _REPLAY,
        )  # fmt: skip
        return
    yield Check(_KVM, name, State.OK, f"opened ({owned}), API version {kvm['api']}")
    size = kvm["capabilities"].get("nested_state", 0)
    words = {
        SVM_STATE: (State.OK, "4224: SVM", "", ""),
        VMX_STATE: (
            State.MISSING,
            "8320: VMX",
            "this KVM restores Intel's nested state, not AMD's",
            _LAB.removeprefix("or "),
        ),
        0: (
            State.MISSING,
            "0: none",
            "this KVM has no nested virtualisation: no nested state can be saved or restored",
            "modprobe -r kvm_amd; modprobe kvm_amd nested=1 (if the processor offers svm); " + _LAB,
        ),
    }
    state, found, means, do = words.get(
        size, (State.WARNING, str(size), "neither SVM's size nor VMX's", "tell us")
    )
    needed = _REPLAY if state is State.MISSING else frozenset[str]()
    yield Check(_KVM, "nested state", state, found, means, do, needed)
    others = {key: value for key, value in kvm["capabilities"].items() if key != "nested_state"}
    yield Check(_KVM, "capabilities", State.NOTE, ", ".join(f"{k} {v}" for k, v in others.items()))


def _modules(modules: Mapping[str, Any]) -> Iterator[Check]:
    amd = modules["kvm_amd"]
    if amd is None:
        yield Check(_KVM, "kvm_amd", State.NOTE, "not loaded (or built in without parameters)")
        return
    wanted = {
        "nested": ("guests get no SVM", "modprobe kvm_amd nested=1"),
        "npt": ("guests that use nested paging are refused (C-03)", "modprobe kvm_amd npt=1"),
    }
    for name, (means, do) in wanted.items():
        value = amd.get(name)
        on = value in ("1", "Y")
        yield Check(
            _KVM, f"kvm_amd.{name}", State.OK if on else State.WARNING, value or "not told",
            "" if on else means, "" if on else do,
        )  # fmt: skip
    rest = [f"{name}={amd[name]}" for name in ("vgif", "avic", "vls", "sev") if amd.get(name)]
    if rest:
        yield Check(_KVM, "kvm_amd", State.NOTE, " ".join(rest))


def _kernel(kernel: Mapping[str, Any]) -> Iterator[Check]:
    release = kernel["release"]
    version = version_of(release, kernel["version"], kernel["signature"])
    profile = profile_of(version) if version is not None else None
    if version is None or profile is None:
        yield Check(
            _KERNEL, "release", State.WARNING, release,
            "nested SVM state is saved and restored from Linux 5.8 on", "use a newer kernel",
        )  # fmt: skip
        return
    told = ".".join(str(part) for part in version if part is not None)
    near = "" if profile.measured else "; no kernel of this line was measured"
    old = State.NOTE if profile.kernel.mmu_ready else State.WARNING
    yield Check(_KERNEL, "release", State.OK, f"{release} ({told})" if told != release else release)
    yield Check(
        _KERNEL, "profile", State.OK if profile.measured else State.NOTE,
        f"{profile.kernel.name}: {profile.kernel.about}{near}",
        "" if profile.measured else "what check and simulate say of it is derived, not proven",
    )  # fmt: skip
    for rule in known_bugs(profile.kernel):
        state = old if rule.id == "O-28" else State.NOTE
        yield Check(_KERNEL, f"bug {rule.id}", state, f"if {rule.fails_when}", rule.means, rule.do)
