"""Why KVM refuses an ioctl of a vCPU or a VM: likely causes by ioctl and errno.

Nothing here needs the argument. What was called before narrows the causes down
(:class:`Circumstances`); a cause that this contradicts is left out, one that it supports
comes first.

Source: Linux ``arch/x86/kvm/x86.c`` (``kvm_arch_vcpu_ioctl``, ``__set_sregs``,
``kvm_set_msr_common``, ``kvm_vcpu_ioctl_x86_set_vcpu_events``), ``cpuid.c``
(``kvm_set_cpuid``), ``lapic.c``, ``svm/nested.c`` and ``virt/kvm/kvm_main.c``
(``kvm_vcpu_ioctl``, ``kvm_vm_ioctl``) of 5.10, 6.1, 6.12 and 7.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qemu_svm.kvm.numbers import Level, by_name

EFER_SVME = 1 << 12
_LME, _LMA = 1 << 8, 1 << 10


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What was called on the vCPU before; None where that is not known.

    :param cpuid: KVM_SET_CPUID2 (or KVM_SET_CPUID) succeeded.
    :param ran: KVM_RUN was called.
    :param nested: KVM_SET_NESTED_STATE succeeded.
    :param put: something of the vCPU's state was put.
    :param svme: EFER.SVME was set by the last SREGS.
    :param efer: EFER in this call's argument.
    :param memory: a memory region was set.
    :param on: the kind of file descriptor that it was called on.
    :param accepted: the model of the kernel concerned accepts this nested state.
    """

    cpuid: bool | None = None
    ran: bool | None = None
    nested: bool | None = None
    put: bool | None = None
    svme: bool | None = None
    efer: int | None = None
    memory: bool | None = None
    on: Level | None = None
    accepted: bool = False


UNKNOWN = Circumstances()
"""Nothing is known but the ioctl and its errno."""


@dataclass(frozen=True, slots=True)
class Cause:
    """A cause of a refusal.

    :param rule: id of the rule that it breaks; empty if there is none.
    :param why: the cause, as the end of "because …".
    :param do: what to do about it.
    :param seen: whether what was called before supports it.
    :param since: the kernel release from which on it is a cause; empty for all.
    :param until: the release in which it no longer is one.
    """

    rule: str
    why: str
    do: str = ""
    seen: bool = False
    since: str = ""
    until: str = ""


_Test = Callable[[Circumstances], bool | None]


@dataclass(frozen=True, slots=True)
class _Row:
    # ``holds`` gives True if the circumstances support the cause, False if they
    # contradict it, None if they say nothing.
    ioctls: tuple[str, ...]
    errors: tuple[str, ...]
    rule: str
    why: str
    do: str
    holds: _Test = lambda _c: None
    since: str = ""
    until: str = ""


def _before_cpuid(known: Circumstances) -> bool | None:
    return None if known.cpuid is None else not known.cpuid


def _after_run(known: Circumstances) -> bool | None:
    return known.ran


def _after_nested(known: Circumstances) -> bool | None:
    return known.nested


def _without_svme(known: Circumstances) -> bool | None:
    return None if known.svme is None else not known.svme


def _not_accepted(known: Circumstances) -> bool | None:
    return False if known.accepted else None


def _with_svme(known: Circumstances) -> bool | None:
    return None if known.efer is None else bool(known.efer & EFER_SVME)


def _bad_efer(known: Circumstances) -> bool | None:
    if known.efer is None:
        return None
    return True if known.efer & _LMA and not known.efer & _LME else None


def _no_memory(known: Circumstances) -> bool | None:
    return None if known.memory is None else not known.memory


def _late_cpuid(known: Circumstances) -> bool | None:
    return True if known.ran else None


_SREGS = ("SET_SREGS", "SET_SREGS2")
_CPUID = ("SET_CPUID2", "SET_CPUID")
_MODEL = "compare the destination's CPU model with the source's"
_STATE = (
    *("SREGS", "SREGS2", "REGS", "MSRS", "VCPU_EVENTS", "MP_STATE", "DEBUGREGS", "NESTED_STATE"),
    *("FPU", "XSAVE", "XSAVE2", "XCRS", "LAPIC", "CPUID2", "CPUID", "TSC_KHZ", "ONE_REG"),
)
_ANY = ("RUN", *(f"{way}_{name}" for way in ("SET", "GET") for name in _STATE))

_ROWS: tuple[_Row, ...] = (
    # SREGS
    _Row(_SREGS, ("EINVAL",), "O-02",
         "SREGS come before CPUID2: KVM refuses CR4 and EFER bits that the (still empty) CPUID "
         "does not offer", "set CPUID2 right after KVM_CREATE_VCPU", _before_cpuid),
    _Row(_SREGS, ("EINVAL",), "R-05",
         "EFER has SVME (or another bit) set that the guest's CPUID does not offer",
         f"{_MODEL}: it needs svm", _with_svme),
    _Row(_SREGS, ("EINVAL",), "R-01",
         "EFER.LME, LMA, CR0.PG, CR4.PAE and CS.L do not agree",
         "put SREGS as one KVM_GET_SREGS returned them", _bad_efer),
    _Row(_SREGS, ("EINVAL",), "R-03", "CR4 has a bit set that the guest's CPUID does not offer",
         _MODEL),
    _Row(_SREGS, ("EINVAL",), "R-02", "CR3 is above the guest's MAXPHYADDR", _MODEL),
    _Row(_SREGS, ("EINVAL",), "R-04", "CR0 is impossible: NW without CD, PG without PE", ""),
    _Row(_SREGS, ("EINVAL",), "R-07",
         "the APIC base is not valid: reserved bits, or x2APIC without its CPUID bit", _MODEL),
    _Row(("SET_SREGS2",), ("EINVAL",), "R-08",
         "PDPTRs are passed without PAE paging", "clear the flag PDPTRS_VALID"),
    _Row(("SET_SREGS2", "GET_SREGS2"), ("EINVAL", "ENOTTY"), "R-06",
         "the kernel does not have SREGS2 (before 5.14)", "use KVM_SET_SREGS", until="5.14"),
    # CPUID
    _Row(_CPUID, ("EINVAL",), "U-01",
         "the vCPU has run: since 5.16 its CPUID may only be set again unchanged",
         "set CPUID2 once, before the first KVM_RUN", _late_cpuid, since="5.16"),
    _Row(_CPUID, ("EINVAL",), "U-01",
         "the vCPU is in guest mode: 7.0 and later refuse a CPUID that changes",
         "set CPUID2 before NESTED_STATE", _after_nested, since="7.0"),
    _Row(_CPUID, ("EINVAL",), "",
         "the CPUID contradicts itself or the host: the width of addresses, or features of XSAVE "
         "that need a permission (AMX)", "use what KVM_GET_SUPPORTED_CPUID offers"),
    _Row((*_CPUID, "GET_CPUID2", "GET_SUPPORTED_CPUID", "GET_EMULATED_CPUID"), ("E2BIG",), "",
         "nent is too large for KVM, or too small for what it returns",
         "pass as many entries as there are; up to 256"),
    # Nested state
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "O-03",
         "NESTED_STATE comes before CPUID2: it is checked against a CPUID without SVM",
         "set CPUID2 first", _before_cpuid, since="5.13"),
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "O-01",
         "EFER.SVME is clear when the nested state is put",
         "put SREGS before the nested state", _without_svme),
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "SV-03",
         "EFER.SVME is clear and the flags are not exactly GIF_SET",
         "outside guest mode pass flags 0x100", _without_svme),
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "SV-01",
         "the format is not SVM: the state is of an Intel host", "restore on the same vendor",
         _not_accepted),
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "C-06",
         "tlb_ctl is neither 0 nor 1, as VMware sets it: legal for the processor, refused by this "
         "check", "use a kernel without this check",
         _not_accepted),
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "C-03",
         "L1 uses nested paging and the host has npt=0", "load kvm_amd with npt=1"),
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "SV-18",
         "L1's EFER has LMA without LME, which no processor has", "",
         _not_accepted),
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "SV-17",
         "L2 has a PAT of its own, and gpat in the header is not valid",
         "leave the quirk enabled, or carry hdr.svm.gpat"),
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "SV-05",
         "an address (vmcb12, a bitmap, CR3) is above the guest's MAXPHYADDR", _MODEL),
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "",
         "the controls or the save area are not valid (rules SET-, SV-, C-): svmstream check FILE "
         "tells which", "",
         _not_accepted),
    _Row(("SET_NESTED_STATE",), ("EINVAL",), "SV-04",
         "the vCPU is in SMM and the state says guest mode", "put VCPU_EVENTS afterwards",
         _not_accepted),
    _Row(("SET_NESTED_STATE", "GET_NESTED_STATE"), ("EINVAL", "ENOTTY"), "",
         "KVM has no nested state: kvm_amd with nested=0, or a kernel before 5.8",
         "load kvm_amd with nested=1"),
    _Row(("SET_NESTED_STATE", "GET_NESTED_STATE"), ("EFAULT",), "",
         "the buffer is smaller than its size field says, or unmapped",
         "pass a buffer of KVM_CAP_NESTED_STATE bytes (4224 on AMD)"),
    _Row(("SET_NESTED_STATE",), ("E2BIG",), "",
         "KVM does not return E2BIG here: it is GET_NESTED_STATE's, or the program's own",
         "find the ioctl with strace"),
    _Row(("GET_NESTED_STATE",), ("E2BIG",), "GET-02",
         "the size field is smaller than the state: 4224 bytes in guest mode, 128 outside",
         "set size to what KVM_CHECK_EXTENSION(KVM_CAP_NESTED_STATE) returns"),
    # MSRs
    _Row(("SET_MSRS", "GET_MSRS"), ("E2BIG",), "", "more than 256 MSRs in one call",
         "split the list"),
    _Row(("SET_MSRS",), ("EINVAL", "EPERM"), "U-02",
         "the first MSR of the list is not known or its value is not valid", _MODEL),
    # Others
    _Row(("SET_VCPU_EVENTS",), ("EINVAL",), "U-04",
         "the events are not valid: an exception above 31 or vector 2, a flag that this kernel "
         "does not know, SMM while INIT is pending", "put what KVM_GET_VCPU_EVENTS returned"),
    _Row(("SET_MP_STATE",), ("EINVAL",), "U-05",
         "the MP state is not allowed now: INIT or SIPI with GIF clear or in SMM, or no APIC in "
         "the kernel", "put MP_STATE after NESTED_STATE and VCPU_EVENTS"),
    _Row(("SET_DEBUGREGS",), ("EINVAL",), "U-03", "DR6 or DR7 has bits set above bit 31, or flags",
         ""),
    _Row(("SET_XSAVE", "SET_XCRS"), ("EINVAL",), "",
         "XSTATE_BV or XCR0 has a component that the host or the guest's CPUID lacks, or XSAVE "
         "comes before CPUID2", _MODEL),
    _Row(("SET_LAPIC", "GET_LAPIC"), ("EINVAL", "ENXIO"), "",
         "there is no APIC in the kernel (KVM_CREATE_IRQCHIP), or its id is not the vCPU's",
         "create the interrupt controllers before the vCPUs"),
    _Row(("SET_TSC_KHZ",), ("EINVAL", "EIO"), "", "the host cannot scale the TSC",
         "use a host with the same frequency, or tsc_scaling"),
    _Row(("RUN",), ("EFAULT",), "O-04",
         "CPUID2 came after NESTED_STATE: L2's MMU for nested paging was discarded",
         "set CPUID2 before any state", _after_nested, since="5.14", until="6.7"),
    _Row(("RUN",), ("EFAULT",), "O-22",
         "guest memory is missing or not mapped where the vCPU reads it",
         "set all memory regions before the vCPUs run", _no_memory),
    _Row(("RUN",), ("EINVAL",), "U-05",
         "the vCPU waits for SIPI and GIF or SMM blocks it, or immediate state is not valid", ""),
    _Row(("RUN",), ("ENOEXEC",), "", "the vCPU needs a KVM_ARM_VCPU_INIT (not x86)", ""),
    _Row(("CREATE_VCPU",), ("EEXIST",), "", "the VM has a vCPU with this id", ""),
    _Row(("CREATE_VCPU",), ("EINVAL",), "",
         "the id is above KVM_CAP_MAX_VCPU_ID, or too many vCPUs", ""),
    _Row(("CREATE_VM",), ("EINVAL",), "", "the type of VM is not supported by this host", ""),
    _Row(("CREATE_IRQCHIP",), ("EEXIST", "EINVAL"), "",
         "there is one already, or vCPUs were created before it",
         "create the interrupt controllers before the vCPUs"),
    _Row(("SET_USER_MEMORY_REGION", "SET_USER_MEMORY_REGION2"), ("EEXIST",), "O-22",
         "the region overlaps another slot", "delete or resize the other slot first"),
    _Row(("SET_USER_MEMORY_REGION", "SET_USER_MEMORY_REGION2"), ("EINVAL",), "O-22",
         "address or size is not page-aligned, or the slot's size or flags cannot change so",
         "delete the slot first"),
    _Row(("CHECK_EXTENSION",), ("EINVAL", "ENOTTY"), "T-06",
         "it was called on a vCPU's descriptor, or on one that is not KVM's",
         "call it on the VM's descriptor or that of /dev/kvm"),
    # Any ioctl of a vCPU
    _Row(_ANY, ("EIO",), "U-06",
         "KVM has killed the VM after a bug in KVM (KVM_BUG_ON: every ioctl fails with EIO from "
         "then on; a WARN is in dmesg), or another process than the one that created the VM calls",
         "look at dmesg; svmstream why takes it"),
    _Row(_ANY, ("ENOTTY",), "", "the descriptor is not one of KVM, or the kernel lacks the ioctl",
         ""),
    _Row(_ANY, ("EBADF",), "", "the descriptor is closed", ""),
    _Row(_ANY, ("EFAULT",), "", "the argument is not mapped, or shorter than KVM reads", ""),
    _Row(_ANY, ("ENOMEM",), "", "the host has no memory left (or a limit of its cgroup)", ""),
    _Row(_ANY, ("EPERM", "EACCES"), "", "a security module or seccomp forbids the call", ""),
)  # fmt: skip


def causes(ioctl: str, error: str, known: Circumstances = UNKNOWN) -> tuple[Cause, ...]:
    """Return why KVM would refuse an ioctl with this errno, the likeliest first.

    :param ioctl: its name, with or without ``KVM_``.
    :param error: name of the errno.
    :param known: what was called before.
    """
    name = ioctl.removeprefix("KVM_")
    wrong = _wrong_descriptor(name, error, known.on)
    if wrong is not None:
        return (wrong,)
    found = [
        Cause(row.rule, row.why, row.do, holds is True, row.since, row.until)
        for row in _ROWS
        if name in row.ioctls and error in row.errors and (holds := row.holds(known)) is not False
    ]
    return tuple(sorted(found, key=lambda cause: not cause.seen))


def _wrong_descriptor(name: str, error: str, on: Level | None) -> Cause | None:
    ioctl = by_name(name)
    if ioctl is None or on is None or on in ioctl.levels or error not in ("EINVAL", "ENOTTY"):
        return None
    return Cause(
        "T-06",
        f"it was called on a {words_of((on,))}, and is an ioctl of a {words_of(ioctl.levels)}",
        f"call it on a {words_of(ioctl.levels)}",
        seen=True,
    )


_DESCRIPTORS = {
    Level.SYSTEM: "descriptor of /dev/kvm",
    Level.VM: "VM's descriptor",
    Level.VCPU: "vCPU's descriptor",
    Level.DEVICE: "device's descriptor",
}


def words_of(levels: Sequence[Level]) -> str:
    """Name kinds of descriptors: ``descriptor of /dev/kvm or VM's descriptor``."""
    return " or ".join(_DESCRIPTORS[level] for level in levels)
