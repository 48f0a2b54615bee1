"""KVM's ioctl numbers and names, on x86-64.

A number is ``direction << 30 | size << 16 | 0xAE << 8 | nr``; size is that of
the argument in bytes, direction is that of user space (2: the kernel writes
the argument, 1: it reads it, 3: both).  Several ``nr`` are shared by ioctls
that differ in direction, size or level (0x9F, 0xA2, 0xA3, 0xA5, …), so only
the whole 32 bits identify an ioctl.

Source: Linux ``include/uapi/linux/kvm.h``; the numbers were compiled from the
headers of Linux 6.1, those added later are from 6.12's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TypeVar

_Value = TypeVar("_Value")

KVM_TYPE = 0xAE
_MASK = 0xFFFF_FFFF
_PREFIX = "KVM_"


class Level(str, Enum):
    """Kinds of KVM's file descriptors."""

    SYSTEM = "system"
    VM = "vm"
    VCPU = "vcpu"
    DEVICE = "device"


@dataclass(frozen=True)
class Ioctl:
    """An ioctl.

    :param name: with ``KVM_``.
    :param levels: the kinds of file descriptors that have it.
    """

    name: str
    number: int
    levels: tuple[Level, ...]

    @property
    def nr(self) -> int:
        """The low byte, which is not unique."""
        return self.number & 0xFF

    @property
    def size(self) -> int:
        """Size of the argument's fixed part in bytes; 0 if it is a number."""
        return self.number >> 16 & 0x3FFF

    @property
    def reads(self) -> bool:
        """Whether the kernel writes the argument."""
        return bool(self.number >> 31)

    @property
    def writes(self) -> bool:
        """Whether the kernel reads the argument."""
        return bool(self.number >> 30 & 1)


_SYSTEM = {
    "GET_API_VERSION": 0xAE00,
    "CREATE_VM": 0xAE01,
    "GET_MSR_INDEX_LIST": 0xC004_AE02,
    "GET_VCPU_MMAP_SIZE": 0xAE04,
    "GET_SUPPORTED_CPUID": 0xC008_AE05,
    "GET_EMULATED_CPUID": 0xC008_AE09,
    "GET_MSR_FEATURE_INDEX_LIST": 0xC004_AE0A,
    "X86_GET_MCE_CAP_SUPPORTED": 0x8008_AE9D,
}

_VM = {
    "SET_MEMORY_REGION": 0x4018_AE40,
    "CREATE_VCPU": 0xAE41,
    "GET_DIRTY_LOG": 0x4010_AE42,
    "SET_MEMORY_ALIAS": 0x4020_AE43,
    "SET_NR_MMU_PAGES": 0xAE44,
    "GET_NR_MMU_PAGES": 0xAE45,
    "SET_USER_MEMORY_REGION": 0x4020_AE46,
    "SET_TSS_ADDR": 0xAE47,
    "SET_IDENTITY_MAP_ADDR": 0x4008_AE48,
    "SET_USER_MEMORY_REGION2": 0x40A0_AE49,
    "CREATE_IRQCHIP": 0xAE60,
    "IRQ_LINE": 0x4008_AE61,
    "GET_IRQCHIP": 0xC208_AE62,
    "SET_IRQCHIP": 0x8208_AE63,
    "CREATE_PIT": 0xAE64,
    "GET_PIT": 0xC048_AE65,
    "SET_PIT": 0x8048_AE66,
    "IRQ_LINE_STATUS": 0xC008_AE67,
    "REGISTER_COALESCED_MMIO": 0x4010_AE67,
    "UNREGISTER_COALESCED_MMIO": 0x4010_AE68,
    "SET_GSI_ROUTING": 0x4008_AE6A,
    "REINJECT_CONTROL": 0xAE71,
    "IRQFD": 0x4020_AE76,
    "CREATE_PIT2": 0x4040_AE77,
    "SET_BOOT_CPU_ID": 0xAE78,
    "IOEVENTFD": 0x4040_AE79,
    "XEN_HVM_CONFIG": 0x4038_AE7A,
    "SET_CLOCK": 0x4030_AE7B,
    "GET_CLOCK": 0x8030_AE7C,
    "GET_PIT2": 0x8070_AE9F,
    "SET_PIT2": 0x4070_AEA0,
    "SIGNAL_MSI": 0x4020_AEA5,
    "SET_PMU_EVENT_FILTER": 0x4020_AEB2,
    "MEMORY_ENCRYPT_REG_REGION": 0x8010_AEBB,
    "MEMORY_ENCRYPT_UNREG_REGION": 0x8010_AEBC,
    "HYPERV_EVENTFD": 0x4018_AEBD,
    "CLEAR_DIRTY_LOG": 0xC018_AEC0,
    "X86_SET_MSR_FILTER": 0x4188_AEC6,
    "RESET_DIRTY_RINGS": 0xAEC7,
    "XEN_HVM_GET_ATTR": 0xC048_AEC8,
    "XEN_HVM_SET_ATTR": 0x4048_AEC9,
    "XEN_HVM_EVTCHN_SEND": 0x400C_AED0,
    "SET_MEMORY_ATTRIBUTES": 0x4020_AED2,
    "CREATE_GUEST_MEMFD": 0xC040_AED4,
    "CREATE_DEVICE": 0xC00C_AEE0,
}

_VCPU = {
    "RUN": 0xAE80,
    "GET_REGS": 0x8090_AE81,
    "SET_REGS": 0x4090_AE82,
    "GET_SREGS": 0x8138_AE83,
    "SET_SREGS": 0x4138_AE84,
    "TRANSLATE": 0xC018_AE85,
    "INTERRUPT": 0x4004_AE86,
    "SET_MSRS": 0x4008_AE89,
    "SET_CPUID": 0x4008_AE8A,
    "SET_SIGNAL_MASK": 0x4004_AE8B,
    "GET_FPU": 0x81A0_AE8C,
    "SET_FPU": 0x41A0_AE8D,
    "GET_LAPIC": 0x8400_AE8E,
    "SET_LAPIC": 0x4400_AE8F,
    "SET_CPUID2": 0x4008_AE90,
    "GET_CPUID2": 0xC008_AE91,
    "TPR_ACCESS_REPORTING": 0xC028_AE92,
    "SET_VAPIC_ADDR": 0x4008_AE93,
    "GET_MP_STATE": 0x8004_AE98,
    "SET_MP_STATE": 0x4004_AE99,
    "NMI": 0xAE9A,
    "SET_GUEST_DEBUG": 0x4048_AE9B,
    "X86_SETUP_MCE": 0x4008_AE9C,
    "X86_SET_MCE": 0x4040_AE9E,
    "GET_VCPU_EVENTS": 0x8040_AE9F,
    "SET_VCPU_EVENTS": 0x4040_AEA0,
    "GET_DEBUGREGS": 0x8080_AEA1,
    "SET_DEBUGREGS": 0x4080_AEA2,
    "GET_XSAVE": 0x9000_AEA4,
    "SET_XSAVE": 0x5000_AEA5,
    "GET_XCRS": 0x8188_AEA6,
    "SET_XCRS": 0x4188_AEA7,
    "GET_ONE_REG": 0x4010_AEAB,
    "SET_ONE_REG": 0x4010_AEAC,
    "KVMCLOCK_CTRL": 0xAEAD,
    "GET_REG_LIST": 0xC008_AEB0,
    "SMI": 0xAEB7,
    "GET_NESTED_STATE": 0xC080_AEBE,
    "SET_NESTED_STATE": 0x4080_AEBF,
    "XEN_VCPU_GET_ATTR": 0xC048_AECA,
    "XEN_VCPU_SET_ATTR": 0x4048_AECB,
    "GET_SREGS2": 0x8140_AECC,
    "SET_SREGS2": 0x4140_AECD,
    "GET_XSAVE2": 0x9000_AECF,
    "PRE_FAULT_MEMORY": 0xC040_AED5,
}

_SHARED: tuple[tuple[str, int, tuple[Level, ...]], ...] = (
    ("CHECK_EXTENSION", 0xAE03, (Level.SYSTEM, Level.VM)),
    ("GET_MSRS", 0xC008_AE88, (Level.VCPU, Level.SYSTEM)),
    ("SET_TSC_KHZ", 0xAEA2, (Level.VCPU, Level.VM)),
    ("GET_TSC_KHZ", 0xAEA3, (Level.VCPU, Level.VM)),
    ("ENABLE_CAP", 0x4068_AEA3, (Level.VM, Level.VCPU)),
    ("MEMORY_ENCRYPT_OP", 0xC008_AEBA, (Level.VM, Level.VCPU)),
    ("GET_SUPPORTED_HV_CPUID", 0xC008_AEC1, (Level.VCPU, Level.SYSTEM)),
    ("GET_STATS_FD", 0xAECE, (Level.VCPU, Level.VM)),
    ("SET_DEVICE_ATTR", 0x4018_AEE1, (Level.DEVICE, Level.VCPU, Level.VM)),
    ("GET_DEVICE_ATTR", 0x4018_AEE2, (Level.DEVICE, Level.VCPU, Level.VM, Level.SYSTEM)),
    ("HAS_DEVICE_ATTR", 0x4018_AEE3, (Level.DEVICE, Level.VCPU, Level.VM, Level.SYSTEM)),
)


@cache
def ioctls() -> tuple[Ioctl, ...]:
    """Return all ioctls of the table."""
    groups = ((_SYSTEM, Level.SYSTEM), (_VM, Level.VM), (_VCPU, Level.VCPU))
    alone = (
        Ioctl(_PREFIX + name, number, (level,))
        for group, level in groups
        for name, number in group.items()
    )
    shared = (Ioctl(_PREFIX + name, number, levels) for name, number, levels in _SHARED)
    return (*alone, *shared)


@cache
def _numbers() -> dict[int, Ioctl]:
    return {ioctl.number: ioctl for ioctl in ioctls()}


@cache
def _names() -> dict[str, Ioctl]:
    return {ioctl.name: ioctl for ioctl in ioctls()}


def by_number(number: int) -> Ioctl | None:
    """Return the ioctl of a number; only the low 32 bits count, as in the kernel."""
    return _numbers().get(number & _MASK)


def by_name(name: str) -> Ioctl | None:
    """Return the ioctl of a name, with or without ``KVM_``."""
    return _names().get(name if name.startswith(_PREFIX) else _PREFIX + name)


def keyed_by_number(table: Mapping[str, _Value]) -> dict[int, _Value]:
    """Return a table of ioctls' names as one of their numbers.

    :raises KeyError: there is no ioctl of such a name.
    """
    found = {}
    for name, value in table.items():
        ioctl = by_name(name)
        if ioctl is None:
            raise KeyError(name)
        found[ioctl.number] = value
    return found


def is_kvm(number: int) -> bool:
    """Return whether a number is one of KVM's, known or not."""
    return number >> 8 & 0xFF == KVM_TYPE


def name_of(number: int) -> str:
    """Return the name of a number, or its parts if it is not in the table."""
    known = by_number(number)
    if known is not None:
        return known.name
    if not is_kvm(number):
        return f"ioctl {number & _MASK:#x} (not KVM's)"
    size = number >> 16 & 0x3FFF
    way = ("no data", "write", "read", "read and write")[number >> 30 & 3]
    data = f"{way} {size} bytes" if number >> 30 & 3 else way
    return f"KVM ioctl nr {number & 0xFF:#04x} ({data})"
