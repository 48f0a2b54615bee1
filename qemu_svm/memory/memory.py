"""The memory of a stream's guests: L1's, and L2's where a vCPU runs one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from qemu_svm.errors import PathError
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.memory import registers
from qemu_svm.memory.layout import Layout, Range, layout
from qemu_svm.memory.paging import mode
from qemu_svm.memory.physical import Physical
from qemu_svm.memory.registers import Registers
from qemu_svm.memory.results import Piece
from qemu_svm.memory.spaces import Space
from qemu_svm.stream.ram.read import Ram

WORLDS = ("l1p", "l1v", "l2p", "l2v")
"""L1's physical and virtual addresses, and L2's."""

AddressSpace = Physical | Space
_NP_ENABLE = 1


class GuestMemory:
    """Memory as it is at the end of a stream; nothing of it is copied.

    :param ram: the index of the stream's RAM records.
    """

    def __init__(self, machine: Machine, ram: Ram) -> None:
        self.machine = machine
        self.ram = ram
        self._spaces: dict[tuple[str, int, bool], AddressSpace] = {}

    @cached_property
    def layout(self) -> Layout:
        """Where each RAM block lies in the physical address space, and why."""
        ram = self.ram
        index = {block.name: at for at, block in reversed(list(enumerate(ram.blocks)))}

        def content(name: str, offset: int, size: int) -> bytes:
            return ram.read(index[name], offset, size) if name in index else b""

        return layout(self.machine, content, [entry.address for entry in ram.entries])

    @cached_property
    def physical(self) -> Physical:
        """L1-physical memory."""
        return Physical(self.ram, self.layout.ranges)

    @cached_property
    def smm(self) -> Physical:
        """L1-physical memory as a vCPU in system management mode sees it."""
        hidden = self.layout.smram
        if not hidden:
            return self.physical
        ranges: list[Range] = [
            one for one in self.layout.ranges
            if all(one.end <= other.start or other.end <= one.start for other in hidden)
        ]  # fmt: skip
        return Physical(self.ram, sorted((*ranges, *hidden), key=lambda one: one.start))

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes at an L1-physical address.

        :raises AddressError: some of it is not RAM, or was never sent.
        :raises StreamError: what the stream has for it is damaged.
        """
        return self.physical.read(address, size)

    def read_u64(self, address: int) -> int:
        """Return the eight bytes at an L1-physical address as a number.

        :raises AddressError: as for :meth:`read`.
        :raises StreamError: as for :meth:`read`.
        """
        return self.physical.read_u64(address)

    def pieces(self, address: int, size: int) -> Iterator[Piece]:
        """L1-physical memory and what is missing of it; never raises for either."""
        return self.physical.pieces(address, size)

    # Worlds.

    def vcpu(self, index: int) -> Vcpu:
        """The vCPU of this number.

        :raises PathError: there is none that can be read.
        """
        return self.machine.vcpu(index)

    def default_world(self, vcpu: int = 0) -> str:
        """The world in which the vCPU's addresses are: ``l2v`` while it runs L2."""
        return "l2v" if registers.runs_l2(self.vcpu(vcpu)) else "l1v"

    def world(self, name: str, vcpu: int = 0, *, smm: bool = False) -> AddressSpace:
        """An address space.

        :param name: of :data:`WORLDS`.
        :param vcpu: whose tables count.
        :param smm: SMM's view of memory, with SMRAM; that of a vCPU in SMM anyway.
        :raises PathError: no such world or vCPU, or the vCPU was not running L2.
        """
        if name not in WORLDS:
            raise PathError(f"unknown world '{name}'", near=WORLDS)
        if name == "l1p" and not self.machine.vcpus:
            return self.smm if smm else self.physical
        one = self.vcpu(vcpu)
        smm = smm or one.smm
        key = (name, vcpu, smm)
        if key not in self._spaces:
            self._spaces[key] = self._make(name, one, self.smm if smm else self.physical)
        return self._spaces[key]

    def _make(self, name: str, vcpu: Vcpu, physical: Physical) -> AddressSpace:
        bits = registers.physical_bits(vcpu)
        if name == "l1p":
            return physical
        if name == "l1v":
            l1 = self.l1_registers(vcpu.index)
            return self._virtual(physical, l1, "l1v", bits)
        if not registers.runs_l2(vcpu):
            raise PathError(f"vCPU {vcpu.index} was not running L2", near=("l1p:", "l1v:"))
        l2 = self._l2_physical(vcpu, physical, bits)
        return l2 if name == "l2p" else self._virtual(l2, registers.of_vcpu(vcpu), "l2v", bits)

    def _l2_physical(self, vcpu: Vcpu, physical: Physical, bits: int) -> AddressSpace:
        nested = vcpu.nested
        assert nested is not None
        control = nested.control
        if not control.nested_ctl & _NP_ENABLE:
            return physical  # shadow paging: L2's physical addresses are L1's
        l1 = self.l1_registers(vcpu.index)
        # The tables have the format of L1's own paging, which is always on (CR0.PG).
        paging = mode(1 << 31, control.nested_cr3, l1.get("cr4"), l1.get("efer"), bits)
        most = self.machine.stream.limits.page_table_leaves
        return Space(physical, paging, world="l2p", nested=True, physical_bits=bits, most=most)

    def l1_registers(self, vcpu: int = 0) -> Registers:
        """L1's registers, also while the vCPU runs L2.

        :raises PathError: there is no such vCPU.
        """
        return registers.of_l1(self.vcpu(vcpu), self.read)

    def l2_registers(self, vcpu: int = 0) -> Registers:
        """L2's registers.

        :raises PathError: there is no such vCPU, or it was not running L2.
        """
        one = self.vcpu(vcpu)
        if not registers.runs_l2(one):
            raise PathError(f"vCPU {vcpu} was not running L2")
        return registers.of_vcpu(one, "l2")

    def l2_root(self, vcpu: int) -> int | None:
        """Root of the nested page tables of a vCPU in L2.

        None without nested paging, or if the vCPU was not running L2.
        """
        one = self.vcpu(vcpu)
        if not registers.runs_l2(one) or one.nested is None:
            return None
        control = one.nested.control
        return int(control.nested_cr3) if control.nested_ctl & _NP_ENABLE else None

    def _virtual(self, parent: AddressSpace, of: Registers, world: str, bits: int) -> Space:
        paging, ac = of.paging(bits), bool(of.get("rflags") & 1 << 18)
        most = self.machine.stream.limits.page_table_leaves
        return Space(parent, paging, world=world, ac=ac, physical_bits=bits, most=most)
