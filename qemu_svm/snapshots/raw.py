"""Raw structures: ``struct kvm_nested_state`` by itself, and a selftest's ``kvm_x86_state``.

Source: Linux ``arch/x86/include/uapi/asm/kvm.h``; ``struct kvm_x86_state`` in
``tools/testing/selftests/kvm/include/x86/processor.h`` (5.18 to 7.2), which the selftests'
``vcpu_save_state()`` fills.
"""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.kvm import layouts
from qemu_svm.snapshots.parts import LEAST, Part, part

_FORMATS = (0, 1)  # VMX, SVM
_VMX_SIZE = 128 + 2 * 4096
NESTED_SIZES = (layouts.NESTED_STATE.size, layouts.NESTED_STATE_SIZE, _VMX_SIZE)
"""Sizes of a file with a nested state: the header, SVM's, and VMX's, which some VMMs use for
both."""

_SELFTEST = (
    *(("VCPU_EVENTS", 8), ("MP_STATE", 72), ("REGS", 80), ("XCRS", 224), ("SREGS", 616)),
    *(("DEBUGREGS", 928), ("NESTED_STATE", 1056)),
)
"""Parts of ``struct kvm_x86_state`` at their offsets; a pointer to XSAVE is before them."""
_SELFTEST_MSRS = 1056 + 16384
SELFTEST_LEAST = _SELFTEST_MSRS + layouts.MSRS.size


def is_nested(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that starts like this is a nested state."""
    if size not in NESTED_SIZES or len(head) < layouts.NESTED_STATE.size:
        return False
    return layouts.NESTED_STATE.unpack(head)["format"] in _FORMATS


def is_selftest(data: bytes) -> bool:
    """Whether it is a ``struct kvm_x86_state``: the MSRs at its end fill it."""
    if len(data) < SELFTEST_LEAST:
        return False
    number = layouts.MSRS.unpack(data[_SELFTEST_MSRS:])["nmsrs"]
    nested = layouts.NESTED_STATE.unpack(data[1056:])
    whole = SELFTEST_LEAST + number * layouts.MSR_ENTRY.size
    return len(data) == whole and nested["format"] in _FORMATS


def selftest_parts(data: bytes) -> Iterator[Part]:
    """Split a ``struct kvm_x86_state``."""
    for name, offset in _SELFTEST:
        size = layouts.NESTED_STATE_SIZE if name == "NESTED_STATE" else LEAST[name]
        yield part(name, 0, data[offset : offset + size], f"{name.lower()} at {offset:#x}")
    yield part("MSRS", 0, data[_SELFTEST_MSRS:], f"msrs at {_SELFTEST_MSRS:#x}")
