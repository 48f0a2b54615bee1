"""KVM's three kinds of file descriptors: system, VM, vCPU.

Every method is one ioctl and has its name.  An ioctl that fails raises
:class:`KvmRefused` with the errno.  Each object is a context manager; closing a
VM closes its vCPUs and releases its memory.

Source: Linux ``Documentation/virt/kvm/api.rst``; numbers and layouts are those
of :mod:`qemu_svm.kvm.numbers` and :mod:`qemu_svm.kvm.layouts`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno as errors
import fcntl
import mmap
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qemu_svm.errors import EnvironmentFault, Refused
from qemu_svm.kvm import layouts
from qemu_svm.kvm.numbers import by_name

if TYPE_CHECKING:
    from typing_extensions import Self

KVM_PATH = "/dev/kvm"
API_VERSION = 12
CAP_NESTED_STATE = 157
CAP_SREGS2 = 200
_CPUID_ENTRIES = 256


class KvmRefused(Refused):
    """An ioctl failed.

    :param ioctl: its name without ``KVM_``.
    :param errno: the kernel's error number.
    """

    rule = "kvm"

    def __init__(self, ioctl: str, errno: int) -> None:
        super().__init__(f"KVM_{ioctl}: {errno_name(errno)} ({os.strerror(errno)})")
        self.ioctl = ioctl
        self.errno = errno


def errno_name(number: int) -> str:
    """Return the name of an error number: ``EINVAL`` for 22."""
    return errors.errorcode.get(number, f"errno {number}")


class Descriptor:
    """A file descriptor with ioctls by name."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def ioctl(self, name: str, argument: bytearray | int = 0) -> int:
        """Call an ioctl; return its result.

        :param argument: a number, or a structure, which is changed in place.
        :raises KvmRefused: it failed.
        :raises ValueError: there is no ioctl of this name.
        """
        known = by_name(name)
        if known is None:
            raise ValueError(f"unknown ioctl KVM_{name}")
        try:
            return fcntl.ioctl(self.fd, known.number, argument)
        except OSError as error:
            raise KvmRefused(name, error.errno or errors.EIO) from None

    def get(self, name: str) -> dict[str, Any]:
        """Call ``KVM_GET_name``; return its values, by the layout of that name."""
        return layouts.ARGUMENTS[name].unpack(self.get_bytes(name))

    def get_bytes(self, name: str) -> bytes:
        """Call ``KVM_GET_name``; return its bytes."""
        buffer = bytearray(layouts.ARGUMENTS[name].size)
        self.ioctl(f"GET_{name}", buffer)
        return bytes(buffer)

    def set(self, name: str, values: Mapping[str, Any]) -> None:
        """Call ``KVM_SET_name`` with values, by the layout of that name."""
        self.ioctl(f"SET_{name}", bytearray(layouts.ARGUMENTS[name].pack(values)))

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION; return 0 if the capability is missing."""
        return self.ioctl("CHECK_EXTENSION", capability)

    def enable_cap(self, capability: int, *args: int) -> None:
        """KVM_ENABLE_CAP."""
        values = {"cap": capability, "args": [*args, 0, 0, 0, 0][:4]}
        self.ioctl("ENABLE_CAP", bytearray(layouts.ENABLE_CAP.pack(values)))

    def close(self) -> None:
        """Close the descriptor; may be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class System(Descriptor):
    """``/dev/kvm``.

    :raises EnvironmentFault: it does not exist, may not be opened, or has another
        version of the API.
    """

    def __init__(self, path: str = KVM_PATH) -> None:
        try:
            super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise EnvironmentFault(
                f"{path}: {error.strerror}", hint="load kvm-amd, or join the group kvm"
            ) from None
        try:
            version = self.ioctl("GET_API_VERSION")
            if version != API_VERSION:
                raise EnvironmentFault(f"{path}: API version {version}, not {API_VERSION}")
        except KvmRefused as error:
            self.close()
            raise EnvironmentFault(f"{path} is not a KVM device: {error}") from None
        except EnvironmentFault:
            self.close()
            raise

    def supported_cpuid(self) -> bytes:
        """KVM_GET_SUPPORTED_CPUID; return a ``kvm_cpuid2``."""
        buffer = bytearray(layouts.CPUID2.size + _CPUID_ENTRIES * layouts.CPUID_ENTRY.size)
        buffer[: layouts.CPUID2.size] = layouts.CPUID2.pack({"nent": _CPUID_ENTRIES})
        self.ioctl("GET_SUPPORTED_CPUID", buffer)
        count = layouts.CPUID2.unpack(buffer)["nent"]
        return bytes(buffer[: layouts.CPUID2.size + count * layouts.CPUID_ENTRY.size])

    def create_vm(self) -> Vm:
        """KVM_CREATE_VM."""
        return Vm(self.ioctl("CREATE_VM"), self.ioctl("GET_VCPU_MMAP_SIZE"))


class Vm(Descriptor):
    """A VM with its vCPUs and memory."""

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        self._run_size = run_size
        self._vcpus: list[Vcpu] = []
        self._memory: dict[int, mmap.mmap] = {}

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP, to be called before any vCPU is created."""
        self.ioctl("CREATE_IRQCHIP")

    def create_vcpu(self, index: int = 0) -> Vcpu:
        """KVM_CREATE_VCPU."""
        vcpu = Vcpu(self.ioctl("CREATE_VCPU", index), self._run_size)
        self._vcpus.append(vcpu)
        return vcpu

    def add_memory(self, slot: int, address: int, memory: mmap.mmap, offset: int = 0,
                   size: int | None = None) -> None:  # fmt: skip
        """KVM_SET_USER_MEMORY_REGION: map ``memory`` into the guest at ``address``.

        The caller keeps the ownership; it must not be unmapped before the VM is closed.

        :param offset, size: the part of ``memory`` to map; by default all of it.
        """
        place = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + offset
        region = {
            "slot": slot,
            "guest_phys_addr": address,
            "memory_size": len(memory) - offset if size is None else size,
            "userspace_addr": place,
        }
        self.set("USER_MEMORY_REGION", region)
        self._memory[slot] = memory

    def close(self) -> None:
        """Close the vCPUs, then the VM."""
        for vcpu in self._vcpus:
            vcpu.close()
        self._vcpus.clear()
        super().close()
        self._memory.clear()


class Vcpu(Descriptor):
    """A vCPU with its ``kvm_run`` page."""

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        try:
            self.run_page = mmap.mmap(fd, run_size, mmap.MAP_SHARED)
        except OSError:
            super().close()
            raise

    def close(self) -> None:
        """Unmap and close."""
        with contextlib.suppress(AttributeError):
            self.run_page.close()
        super().close()

    def set_cpuid(self, cpuid: bytes) -> None:
        """KVM_SET_CPUID2; ``cpuid`` is a ``kvm_cpuid2``."""
        self.ioctl("SET_CPUID2", bytearray(cpuid))

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """KVM_GET_MSRS; return the values before the first MSR that cannot be read."""
        buffer = bytearray(layouts.pack_msrs([(index, 0) for index in indices]))
        done = self.ioctl("GET_MSRS", buffer)
        found = layouts.unpack_msrs(buffer)
        return {index: found[index] for index in indices[:done]}

    def set_msrs(self, values: Sequence[tuple[int, int]]) -> int:
        """KVM_SET_MSRS; return how many were set before one was refused."""
        return self.ioctl("SET_MSRS", bytearray(layouts.pack_msrs(values)))

    def get_nested_state(self, size: int = layouts.NESTED_STATE_SIZE) -> bytes:
        """KVM_GET_NESTED_STATE; return header and data.

        The buffer always has room for everything: SVM writes the whole VMCB
        even if ``size`` is smaller, and fails with E2BIG afterwards.

        :param size: the size in the header that is passed.
        """
        buffer = bytearray(max(size, layouts.NESTED_STATE_SIZE))
        buffer[: layouts.NESTED_STATE.size] = layouts.NESTED_STATE.pack({"size": size})
        self.ioctl("GET_NESTED_STATE", buffer)
        return bytes(buffer[: layouts.NESTED_STATE.unpack(buffer)["size"]])

    def set_nested_state(self, argument: bytes) -> None:
        """KVM_SET_NESTED_STATE; ``argument`` has header and data."""
        self.ioctl("SET_NESTED_STATE", bytearray(argument))
