"""The parts of a saved state: the structures that KVM_GET_* ioctls return, vCPU by vCPU.

Whatever form an input has, it comes to these; :mod:`qemu_svm.snapshots.assemble` makes a
machine of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from qemu_svm.errors import LimitExceeded, SourceError, StreamError
from qemu_svm.kvm import layouts
from qemu_svm.limits import Limits
from qemu_svm.machine.recorded import RecordedPut
from qemu_svm.source.base import Source
from qemu_svm.stream.ram.laid import Piece

LEAST: Mapping[str, int] = MappingProxyType(
    {
        **{name: layouts.ARGUMENTS[name].size for name in ("REGS", "SREGS", "SREGS2")},
        **{name: layouts.ARGUMENTS[name].size for name in ("DEBUGREGS", "MP_STATE")},
        **{name: layouts.ARGUMENTS[name].size for name in ("VCPU_EVENTS", "XCRS", "XSAVE")},
        **{name: layouts.ARGUMENTS[name].size for name in ("LAPIC", "CPUID2", "MSRS", "FPU")},
        "NESTED_STATE": layouts.NESTED_STATE.size,
    }
)
"""The parts by the ioctls' names after ``GET_``, and the least size of each in bytes."""
FIXED = frozenset({"REGS", "SREGS", "SREGS2", "DEBUGREGS", "MP_STATE", "VCPU_EVENTS", "XCRS"})
"""Those that have no more bytes than that."""
_ENTRIES = {"MSRS": (layouts.MSRS, "nmsrs", 16), "CPUID2": (layouts.CPUID2, "nent", 40)}
_MOST_ENTRIES = 4096
_MOST = 1 << 16  # bytes of a part; XSAVE with AMX has some 11 KiB


@dataclass(frozen=True, slots=True)
class Part:
    """One structure of one vCPU.

    :param name: of :data:`LEAST`.
    :param origin: where it is, in words: a file, a member of a document, a record of a log.
    """

    name: str
    vcpu: int
    data: bytes = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True)
class Range:
    """Guest memory in a file.

    :param address: guest-physical; ``size`` and ``offset`` in bytes.
    :param pieces: where its pages are, if they are not all at ``offset``; others are zero.
    """

    address: int
    size: int
    offset: int
    pieces: tuple[Piece, ...] | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an input holds.

    :param form: its name, as :attr:`~qemu_svm.machine.Machine.form` has it.
    :param memory: of the guest, by address; empty if there is none.
    :param file: has the memory.
    :param problems: what could not be read.
    :param puts: what a recording has, by vCPU.
    """

    form: str
    parts: tuple[Part, ...]
    memory: tuple[Range, ...] = ()
    file: Source | None = None
    problems: tuple[StreamError, ...] = ()
    puts: Mapping[int, RecordedPut] = field(default_factory=dict)


def part(name: str, vcpu: int, data: bytes, origin: str) -> Part:
    """Return a part whose bytes are as long as they have to be.

    :raises SourceError: they are not.
    """
    least = LEAST[name]
    if len(data) < least or (name in FIXED and len(data) != least) or len(data) > _MOST:
        raise SourceError(
            f"{origin} has {len(data)} bytes, which is no struct of KVM_GET_{name}",
            hint=f"expected {least} bytes" + ("" if name in FIXED else " or more"),
        )
    if name in _ENTRIES:
        head, count, size = _ENTRIES[name]
        number = head.unpack(data)[count]
        if number > _MOST_ENTRIES or head.size + number * size > len(data):
            raise SourceError(
                f"{origin} announces {number} entries, and has {len(data)} bytes",
                hint=f"an entry of KVM_GET_{name} has {size} bytes, after {head.size} for the head",
            )
        data = data[: head.size + number * size]
    if name == "NESTED_STATE":
        data = nested_bytes(data, origin)
    return Part(name, vcpu, data, origin)


def nested_bytes(data: bytes, origin: str) -> bytes:
    """Return the bytes of a nested state without what a larger buffer has after them.

    :raises SourceError: an SVM state that ends inside its VMCB.
    """
    header = layouts.NESTED_STATE.unpack(data)
    if header["format"] != 1:
        return data
    if len(data) >= layouts.NESTED_STATE_SIZE:
        whole = data[: layouts.NESTED_STATE_SIZE]
        # A buffer larger than what KVM has filled: the rest of it is no VMCB.
        empty = header["size"] <= layouts.NESTED_STATE.size and not any(whole[128:])
        return whole[: layouts.NESTED_STATE.size] if empty else whole
    if len(data) != layouts.NESTED_STATE.size:
        raise SourceError(
            f"{origin} has {len(data)} bytes and ends inside the VMCB",
            hint=f"{layouts.NESTED_STATE.size} bytes are a header alone, "
            f"{layouts.NESTED_STATE_SIZE} with the VMCB",
        )
    return data


def unique(parts: Iterable[Part], limits: Limits) -> tuple[Part, ...]:
    """Return the parts in order of their vCPUs; of two of one name, the later one counts.

    :raises LimitExceeded: more vCPUs than the limit allows.
    """
    found = {(one.vcpu, one.name): one for one in parts}
    if len({vcpu for vcpu, _ in found}) > limits.vcpus:
        raise LimitExceeded(
            "more vCPUs than the limit allows",
            offset=0,
            expected=f"at most {limits.vcpus}",
            hint="raise it with --limit vcpus=NUMBER",
        )
    return tuple(sorted(found.values(), key=lambda one: one.vcpu))
