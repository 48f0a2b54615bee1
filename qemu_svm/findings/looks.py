"""What the RAM of a stream says about a vCPU: the code at L2's RIP, vmcb12, L1's PDPTEs.

RAM is indexed when the first rule asks, so that most streams are judged without it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from qemu_svm.errors import SvmStreamError

if TYPE_CHECKING:
    from qemu_svm.machine import Vcpu
    from qemu_svm.memory.memory import GuestMemory


LOOKED_AT = 256 << 20
"""Size of a stream up to which rules look into its RAM without being asked (bytes)."""


class Looks:
    """Guest memory, if it can be read; None for what it does not have.

    :param memory: makes the index of RAM; None if RAM is not to be looked at.
    """

    def __init__(self, memory: Callable[[], GuestMemory] | None = None) -> None:
        self._make = memory

    @cached_property
    def _memory(self) -> GuestMemory | None:
        try:
            return self._make() if self._make is not None else None
        except SvmStreamError:
            return None

    def physical(self, address: int, size: int) -> bytes | None:
        """Bytes at an L1-physical address."""
        try:
            return None if self._memory is None else self._memory.read(address, size)
        except SvmStreamError:
            return None

    def code(self, vcpu: Vcpu, displacement: int, size: int) -> bytes | None:
        """Bytes at the next instruction of the vCPU, or before it.

        :param displacement: from the instruction's address.
        """
        if self._memory is None:
            return None
        from qemu_svm.memory import registers

        try:
            space = self._memory.world(self._memory.default_world(vcpu.index), vcpu.index)
            address = registers.of_vcpu(vcpu).next_instruction + displacement
            return space.read(address & (1 << 64) - 1, size)
        except SvmStreamError:
            return None

    def vmcb12(self, vcpu: Vcpu) -> bytes | None:
        """The page of L1's memory from which L2 was started."""
        nested = vcpu.nested
        if nested is None or not nested.vmcb:
            return None
        return self.physical(nested.vmcb_pa, 4096)
