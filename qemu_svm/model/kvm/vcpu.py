"""The state of one vCPU inside KVM, as far as it matters for a nested restore.

``arch`` is the state that does not depend on guest mode.  Since 5.13 there are two
VMCBs: ``vmcb01`` to run L1 and ``vmcb02`` to run L2.  Before, there was one
VMCB, and ``hsave`` kept L1's state while L2 ran; here the one VMCB is ``vmcb01``
and ``hsave`` is an area of its own.

Source: Linux ``arch/x86/kvm/svm/svm.h`` (``struct svm_nested_state``),
``arch/x86/include/asm/kvm_host.h`` (``struct kvm_vcpu_arch``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from qemu_svm.model.area import RESET, Area, Content, Writer
from qemu_svm.model.profile import Profile
from qemu_svm.nested.groups import VMLOAD_MSRS
from qemu_svm.x86.cpuid import HOST_CPUID, NONE, Cpuid
from qemu_svm.x86.cpuid_entries import Entries
from qemu_svm.x86.registers import CR0, CR4, EFER
from qemu_svm.x86.segments import Segment

RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED, SIPI_RECEIVED = range(5)
RESET_HOLD = 9
"""MP states by number (Linux ``include/uapi/linux/kvm.h``)."""
INVALID_GPA = (1 << 64) - 1
PAGES = "NESTED_STATE_PAGES"
"""KVM_REQ_GET_NESTED_STATE_PAGES: work that the ioctl leaves to the first run."""

VMRUN_FIELDS = (
    *("es", "cs", "ss", "ds", "gdtr", "idtr", "rflags", "efer", "cr0", "cr3", "cr4"),
    *("rax", "rsp", "rip", "cpl"),
)
"""What ``svm_copy_vmrun_state`` copies."""

GPRS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
)

_DATA16 = Segment(0, 0, 0xFFFF, 0x92)  # init_seg: the accessed bit is clear


def reset_save() -> dict[str, Content]:
    """Return the save area of a vCPU after reset (``init_vmcb``, ``kvm_vcpu_reset``)."""
    segments: dict[str, Content] = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), _DATA16)
    numbers: dict[str, Content] = dict.fromkeys(
        (*VMLOAD_MSRS, "cpl", "rax", "rsp", "cr2", "cr3", "cr4"), 0
    )
    return {
        **segments,
        **numbers,
        "cs": Segment(0xF000, 0xFFFF0000, 0xFFFF, 0x9A),
        "tr": Segment(0, 0, 0xFFFF, 0x83),
        "ldtr": Segment(0, 0, 0xFFFF, 0x82),
        "gdtr": Segment(0, 0, 0xFFFF, 0),
        "idtr": Segment(0, 0, 0xFFFF, 0),
        "efer": 0x1000,
        "cr0": 0x10,
        "dr6": 0xFFFF0FF0,
        "dr7": 0x400,
        "rflags": 2,
        "rip": 0xFFF0,
        "g_pat": 0x0007040600070406,
    }


_ZERO_AT_RESET = (
    *("cr2", "cr3", "cr4", "cr8", "efer", "dr0", "dr1", "dr2", "dr3"),
    *("vm_hsave_pa", "vm_cr"),
)

_APIC_BASE = 0xFEE0_0800
APIC_BSP = 1 << 8
"""IA32_APIC_BASE: the bootstrap processor."""


def _reset_arch() -> dict[str, Content]:
    values: dict[str, Content] = dict.fromkeys((*GPRS, *_ZERO_AT_RESET), 0)
    return {
        **values,
        "rip": 0xFFF0,
        "cr0": 0x60000010,
        "dr6": 0xFFFF0FF0,
        "dr7": 0x400,
        "pat": 0x0007040600070406,
    }


class Mmu(StrEnum):
    """The MMU in use (``vcpu->arch.mmu``)."""

    ROOT = "root"
    GUEST = "guest"
    """The one for nested paging of L2."""


class MmuFault(StrEnum):
    """Why the MMU in use cannot translate, or how KVM_RUN ends because of that."""

    UNINITIALISED = "uninitialised"
    """KVM_SET_NESTED_STATE left it unset: emulation crashes the host kernel."""
    EFAULT = "efault"
    EIO = "eio"
    HANG = "hang"


class RunEnd(StrEnum):
    """How KVM_RUN ends."""

    EXIT = "exit"
    """L1 has control again."""
    L1 = "l1"
    """The vCPU was not in guest mode, and runs on."""
    WAITS = "waits"
    """For INIT or SIPI; nothing was entered."""
    RESET = "reset"
    """INIT was pending."""
    SMI = "smi"
    """SMM is entered first."""
    INTERNAL_ERROR = "INTERNAL_ERROR"
    EFAULT = "EFAULT"
    EINVAL = "EINVAL"
    EIO = "EIO"
    HANG = "hang"
    """It does not return."""
    SHUTDOWN = "SHUTDOWN"
    L2 = "l2"
    """L2 runs on: KVM itself handles what it does, or an exception that it got."""


@dataclass(frozen=True, slots=True)
class Host:
    """Properties of the host and the VM, apart from the kernel.

    :param npt: kvm-amd uses nested paging (module parameter ``npt``).
    :param irqchip: the local APIC is in the kernel.
    :param bsp: it is the bootstrap processor; with an APIC in the kernel any other one
        waits for INIT and SIPI until KVM_SET_MP_STATE says otherwise.
    :param separate_pat: the quirk KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT is disabled.
    :param cpuid: the features that the host supports.
    :param exception_payload, triple_fault_event: the VM has enabled
        KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT.
    """

    npt: bool = True
    irqchip: bool = True
    bsp: bool = True
    separate_pat: bool = False
    cpuid: Cpuid = HOST_CPUID
    exception_payload: bool = False
    triple_fault_event: bool = False

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE of the vCPU after reset."""
        return _APIC_BASE | (APIC_BSP if self.bsp else 0)


@dataclass
class Nested:
    """``svm->nested``: the two caches and what belongs to them.

    ``save_valid`` is set while ``save`` holds vmcb12's save area for the current or
    next VMRUN; reading it otherwise is a kernel bug.
    """

    initialized: bool = False
    ctl: Area = field(default_factory=lambda: Area("ctl cache"))
    save: Area = field(default_factory=lambda: Area("save cache"))
    save_valid: bool = False
    vmcb12_gpa: int = 0
    last_vmcb12_gpa: int = INVALID_GPA
    run_pending: int = 0


@dataclass
class KvmVcpu:
    """Everything that the model changes.  ``step`` is the current step of the plan.

    :param entries: of the CPUID, without what KVM changes itself; None if they are not known.
    :param backed: whether a page of guest memory exists.
    :param init_pending: INIT has arrived and was not processed (``latched_init``);
        ``sipi_pending`` and ``smi_pending`` likewise.
    :param injected_error: the error code of the exception that the next entry injects, or None
        (``arch.exception``, with ``injected``).
    :param smram: the address of vmcb12 that SMM entry saved, or None.
    :param vmcb12: vmcb12's save area in memory, as last written.
    :param mmu_broken: why the MMU in use cannot translate; None if it can.
    :param dead: KVM has killed the VM: everything fails with EIO from now on.
    :param cr0_intercepted: writes of CR0 are intercepted, because the VMCB's CR0 is not
        the guest's.
    """

    kernel: Profile
    host: Host = field(default_factory=Host)
    cpuid: Cpuid = NONE
    entries: Entries | None = None
    step: int = 0
    arch: Area = field(default_factory=lambda: Area("arch", _reset_arch()))
    vmcb01: Area = field(default_factory=lambda: Area("vmcb01", reset_save()))
    vmcb02: Area = field(default_factory=lambda: Area("vmcb02"))
    hsave: Area = field(default_factory=lambda: Area("hsave"))
    control01: Area = field(default_factory=lambda: Area("vmcb01 control", {"int_state": 0}))
    control02: Area = field(default_factory=lambda: Area("vmcb02 control", {"int_state": 0}))
    hsave_control: Area = field(default_factory=lambda: Area("hsave control"))
    nested: Nested = field(default_factory=Nested)
    guest_mode: bool = False
    gif: bool = True
    smm: bool = False
    init_pending: bool = False
    sipi_pending: bool = False
    smi_pending: bool = False
    injected_error: int | None = None
    has_run: bool = False
    mp_state: int = RUNNABLE
    mmu: Mmu = Mmu.ROOT
    mmu_broken: MmuFault | None = None
    cr0_intercepted: bool = True
    dead: bool = False
    requests: set[str] = field(default_factory=set)
    pdptrs_from_userspace: bool = False
    smram: int | None = None
    hsave_page: Area = field(default_factory=lambda: Area("HSAVE page"))
    vmcb12: Area = field(default_factory=lambda: Area("vmcb12 save"))
    vmcb12_control: Area = field(default_factory=lambda: Area("vmcb12 control"))
    backed: Callable[[int, int], bool] = lambda _address, _size: True
    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arch.set("rdx", self.kernel.reset_rdx, RESET)
        self.arch.set("apic_base", self.host.apic_base, RESET)
        if self.kernel.split:
            self.vmcb01.set("dr6", 0, RESET)  # init_vmcb leaves it to svm_set_dr6
            self.vmcb01.set("rip", 0, RESET)  # and this to svm_vcpu_run
            self.nested.vmcb12_gpa = INVALID_GPA
        self._reset_control_registers()
        if not self.host.npt:
            self.vmcb01.set("g_pat", 0, RESET)  # init_vmcb sets it for nested paging only
        if self.host.irqchip and not self.host.bsp:
            self.mp_state = UNINITIALIZED

    def _reset_control_registers(self) -> None:
        # Shadow paging needs bits of its own.  kvm_vcpu_reset sets them by svm_set_efer,
        # svm_set_cr0 and svm_set_cr4; up to 5.12 init_vmcb writes CR4.
        shadow = not self.host.npt
        mce = CR4.mask("MCE") if self.kernel.split else 0
        for name, bits in (
            ("efer", EFER.mask("NX") if shadow else 0),
            ("cr0", CR0.mask("PG", "WP") if shadow else 0),
            ("cr4", mce | (CR4.mask("PAE") if shadow else 0)),
        ):
            self.vmcb01.set(name, self.vmcb01.get(name) | bits, RESET)

    @property
    def current(self) -> Area:
        """Save area of the active VMCB (``svm->vmcb->save``)."""
        return self.vmcb02 if self.guest_mode and self.kernel.split else self.vmcb01

    @property
    def current_control(self) -> Area:
        """Control area of the active VMCB."""
        return self.control02 if self.guest_mode and self.kernel.split else self.control01

    @property
    def l1_save(self) -> Area:
        """Where L1's state is kept while L2 runs."""
        return self.vmcb01 if self.kernel.split else self.hsave

    def writer(self, function: str) -> Writer:
        """Return the writer of a value that is written in the current step."""
        return Writer(self.step, function)

    def save_cache(self, names: Iterable[str], reader: str) -> Area:
        """Read the save cache; adds a note if it was not filled for this use."""
        if not self.nested.save_valid:
            self.note(f"{reader} reads the save cache although nothing refilled it")
        found = Area("save cache")
        found.copy_from(self.nested.save, names)
        return found

    def note(self, text: str) -> None:
        """Add a note to the current step."""
        if text not in self.notes:
            self.notes.append(text)

    def controls(self) -> dict[str, Area]:
        """Return the control areas that this kernel has, by the name of the VMCB."""
        if self.kernel.split:
            return {"vmcb01": self.control01, "vmcb02": self.control02}
        return {"vmcb01": self.control01, "hsave": self.hsave_control}

    def areas(self) -> dict[str, Area]:
        """Return the areas that this kernel has, by name."""
        found = {"arch": self.arch, "vmcb01": self.vmcb01}
        if self.kernel.split:
            found["vmcb02"] = self.vmcb02
        else:
            found["hsave"] = self.hsave
        found["ctl_cache"] = self.nested.ctl
        if self.kernel.has_save_cache:
            found["save_cache"] = self.nested.save
        return found
