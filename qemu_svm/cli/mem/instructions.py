"""Instructions in guest memory, by capstone, which is optional."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from qemu_svm.cli.mem import common
from qemu_svm.memory.results import WORDS, Status

if TYPE_CHECKING:
    from qemu_svm.memory.memory import GuestMemory

_LONGEST = 15  # bytes of an instruction


def listing(memory: GuestMemory, one: common.Place, count: int) -> set[Status]:
    """Print instructions; which statuses were met."""
    at = common.registers(memory, one.world, one.vcpu).next_instruction
    seen: set[Status] = set()
    for item in instructions(memory, one, count):
        status = Status(item["status"])
        seen.add(status)
        address = int(item["address"], 16)
        mark = "=>" if address == at and one.world.endswith("v") else "  "
        if status is not Status.MAPPED:
            click.echo(f"{mark} {address:#018x}: ??  {status} ({WORDS[status]})")
        else:
            spaced = bytes.fromhex(item["hex"]).hex(" ")
            click.echo(f"{mark} {address:#018x}: {spaced:30}  {item['text']}")
    return seen


def instructions(memory: GuestMemory, one: common.Place, count: int) -> Iterator[dict[str, Any]]:
    """Instructions one after the other; the last one is where memory ends, if it does."""
    capstone = common.extra("capstone", "disassembly")
    bits = common.registers(memory, one.world, one.vcpu).bits
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    machine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    address = one.address
    for _ in range(count):
        code, status = b"", Status.MAPPED
        for piece in one.space.pieces(address, _LONGEST):
            status = piece.status
            if status is not Status.MAPPED:
                break
            code += piece.data
        found = next(machine.disasm_lite(code, address, 1), None)
        item: dict[str, Any] = {"address": f"{address:#x}"}
        if found is None and status is not Status.MAPPED:
            yield item | {"status": status.value, "hex": "", "text": ""}
            return
        if found is None:
            size, text = 1, "(bad)"
        else:
            _, size, name, operands = found
            text = f"{name} {operands}".rstrip()
        yield item | {"status": Status.MAPPED.value, "hex": code[:size].hex(), "text": text}
        address += size
