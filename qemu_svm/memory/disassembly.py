"""Instructions in guest memory, by capstone, which is optional."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qemu_svm.memory.memory import AddressSpace
from qemu_svm.memory.results import Status
from qemu_svm.optional import optional

_LONGEST = 15  # bytes of an instruction


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; or, if ``status`` is not mapped, where memory ends.

    :param data: its bytes.
    :param text: mnemonic and operands; ``(bad)`` for a byte that does not begin one.
    """

    address: int
    status: Status
    data: bytes = b""
    text: str = ""


def load_capstone() -> Any:
    """Return capstone.

    :raises EnvironmentFault: it is not installed.
    """
    return optional("capstone", "disassembly")


def disassemble(space: AddressSpace, address: int, bits: int, count: int) -> Iterator[Instruction]:
    """Return consecutive instructions; the last one is where memory ends, if it does.

    :param bits: 16, 32 or 64: the code segment's default operand size.
    :raises EnvironmentFault: capstone is not installed.
    """
    capstone = load_capstone()
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    machine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    for _ in range(count):
        code, status = b"", Status.MAPPED
        for piece in space.pieces(address, _LONGEST):
            status = piece.status
            if status is not Status.MAPPED:
                break
            code += piece.data
        found = next(machine.disasm_lite(code, address, 1), None)
        if found is not None:
            _, size, name, operands = found
            text = f"{name} {operands}".rstrip()
        elif status is Status.MAPPED:
            size, text = 1, "(bad)"
        else:
            yield Instruction(address, status)
            return
        yield Instruction(address, Status.MAPPED, code[:size], text)
        address += size
