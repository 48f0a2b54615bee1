"""The table of ioctls: unique, of KVM's type, sized as the kernel sizes them."""

from __future__ import annotations

import pytest

from qemu_svm.kvm import numbers
from qemu_svm.kvm.numbers import Level, by_name, by_number, ioctls, is_kvm, name_of


def test_names_and_numbers_are_unique() -> None:
    table = ioctls()
    assert len({one.name for one in table}) == len(table)
    assert len({one.number for one in table}) == len(table)
    assert len(table) > 100


@pytest.mark.parametrize("one", ioctls(), ids=lambda one: one.name)
def test_a_number_says_what_its_name_says(one: numbers.Ioctl) -> None:
    assert is_kvm(one.number)
    assert by_number(one.number) is one
    assert by_name(one.name) is one
    assert by_name(one.name.removeprefix("KVM_")) is one
    assert name_of(one.number) == one.name
    way = (one.reads << 1) | one.writes
    assert one.number == way << 30 | one.size << 16 | 0xAE << 8 | one.nr
    assert one.levels
    # Exceptions: numbers that the kernel's header declares the other way round.
    odd = {"KVM_SET_IRQCHIP", "KVM_SET_PIT", "KVM_GET_DIRTY_LOG", "KVM_GET_ONE_REG"}
    if not one.size or one.name in odd or "DEVICE_ATTR" in one.name:
        return
    if one.name.startswith("KVM_GET_"):
        assert one.reads
    if one.name.startswith("KVM_SET_"):
        assert (one.writes, one.reads) == (True, False)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("REGS", 144),
        ("SREGS", 312),
        ("SREGS2", 320),
        ("LAPIC", 1024),
        ("VCPU_EVENTS", 64),
        ("DEBUGREGS", 128),
        ("XSAVE", 4096),
        ("XCRS", 392),
        ("NESTED_STATE", 128),
        ("FPU", 416),
        ("MP_STATE", 4),
        ("MSRS", 8),
    ],
)
def test_sizes_of_state(name: str, size: int) -> None:
    get, put = by_name(f"GET_{name}"), by_name(f"SET_{name}")
    assert get is not None
    assert put is not None
    assert (get.size, put.size) == (size, size)
    assert get.levels[0] is put.levels[0] is Level.VCPU


def test_numbers_that_differ_only_in_size_and_direction() -> None:
    assert name_of(0x8040_AE9F) == "KVM_GET_VCPU_EVENTS"
    assert name_of(0x8070_AE9F) == "KVM_GET_PIT2"
    assert name_of(0xAEA3) == "KVM_GET_TSC_KHZ"
    assert name_of(0x4068_AEA3) == "KVM_ENABLE_CAP"
    assert name_of(0x4080_AEA2) == "KVM_SET_DEBUGREGS"


def test_sign_extension_does_not_matter() -> None:
    assert by_number(0xFFFF_FFFF_8090_AE81) is by_name("KVM_GET_REGS")
    assert by_number(0x8090_AE81 - (1 << 32)) is by_name("KVM_GET_REGS")


def test_unknown_numbers_are_taken_apart() -> None:
    assert name_of(0xAEF0) == "KVM ioctl nr 0xf0 (no data)"
    assert name_of(0x4010_AEF1) == "KVM ioctl nr 0xf1 (write 16 bytes)"
    assert name_of(0x8010_AEF1) == "KVM ioctl nr 0xf1 (read 16 bytes)"
    assert name_of(0xC010_AE0B) == "KVM ioctl nr 0x0b (read and write 16 bytes)"
    assert name_of(0x5401) == "ioctl 0x5401 (not KVM's)"
    assert by_number(0x5401) is None
    assert by_name("KVM_NOPE") is None
    assert not is_kvm(0x5401)
