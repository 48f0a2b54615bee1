"""Recordings of a restore, written as a VMM would, of the values of a capture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from qemu_svm.kvm import layouts, numbers
from qemu_svm.kvm.numbers import Level
from qemu_svm.recording.recording import Form, writer
from qemu_svm.recording.records import RUN, Header, Ioctl, Record
from qemu_svm.x86.cpuid import infer
from qemu_svm.x86.cpuid_entries import changed

CLOUD_HYPERVISOR = (
    *("CPUID2", "MP_STATE", "REGS", "SREGS", "XSAVE", "XCRS", "LAPIC", "MSRS", "NESTED_STATE"),
    "VCPU_EVENTS",
)
FIRECRACKER = tuple(name for name in CLOUD_HYPERVISOR if name != "NESTED_STATE")
"""Firecracker's order is that of Cloud Hypervisor, without nested state."""
VM_FD, VCPU_FD = 5, 6


def number_of(name: str) -> int:
    found = numbers.by_name(f"KVM_{name}")
    assert found is not None
    return found.number


def filled(parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """The structures of a capture, with those that a document of it does not have."""
    return {
        "CPUID2": layouts.pack_cpuid(changed([], infer(0, 0, 0))),
        "XSAVE": bytes(24) + (0x1F80).to_bytes(4, "little") + bytes(4068),
        "XCRS": layouts.XCRS.pack({"nr_xcrs": 1, "xcrs": [0, 1, *[0] * 30]}),
        "LAPIC": bytes(1024),
        **parts,
    }


class Log:
    """The records of one process."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def call(
        self, name: str, data: bytes = b"", ret: int = 0, *, fd: int = VCPU_FD,
        index: int | None = 0, arg: int = 0, out: bytes = b"", level: Level = Level.VCPU,
        runs: int | None = None,
    ) -> None:  # fmt: skip
        number = RUN if name == "RUN" else number_of(name)
        at = len(self.records) + 1
        self.records.append(
            Ioctl(at, 1000 * at, 7, fd, level, index, number, ret, data, out, arg, runs)
        )

    def create(self, vm: int = VM_FD, vcpu: int = VCPU_FD) -> None:
        self.call("CREATE_VM", ret=vm, fd=4, index=None, level=Level.SYSTEM)
        self.call("CREATE_IRQCHIP", fd=vm, index=None, level=Level.VM)
        self.call("CREATE_VCPU", ret=vcpu, fd=vm, index=None, level=Level.VM)

    def put(
        self, parts: Mapping[str, bytes], order: Iterable[str], *, fd: int = VCPU_FD,
        run: bool = True,
    ) -> None:  # fmt: skip
        for name in order:
            data = parts[name]
            ret = layouts.MSRS.unpack(data)["nmsrs"] if name == "MSRS" else 0
            self.call(f"SET_{name}", data, ret, fd=fd)
        if run:
            self.call("RUN", fd=fd, out=(10).to_bytes(4, "little"), runs=0)

    def write(self, path: Path, form: Form = "jsonl", release: str = "") -> Path:
        with path.open("wb") as file:
            made = writer(file, form, Header(release=release))
            for record in self.records:
                made.write(record)
        return path
