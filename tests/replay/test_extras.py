"""What the model leaves out, out of a capture into the arguments of the ioctls."""

from __future__ import annotations

import struct

import pytest

from qemu_svm.kvm import layouts
from qemu_svm.machine import read_machine
from qemu_svm.replay.extras import Extras, extras
from qemu_svm.source import BytesSource
from qemu_svm.stream import read_stream
from tests.conftest import capture_bytes

NAME = "qemu7.2-linux6.1-nested.mig.zst"


@pytest.fixture(scope="module")
def stream() -> bytes:
    return capture_bytes(NAME)


def taken(data: bytes) -> Extras:
    machine = read_machine(read_stream(BytesSource(data)))
    return extras(machine, machine.vcpus[0])


def field(data: bytes, name: str) -> tuple[int, int]:
    """Offset and size of a field of the cpu section."""
    section = read_machine(read_stream(BytesSource(data))).vcpus[0].section
    node = section.resolve(name)
    assert node is not None
    return node.offset, node.size


def test_a_vcpu_that_used_none_of_it(stream: bytes) -> None:
    found = taken(stream)
    assert found.xsave is not None
    assert struct.unpack_from("<HHB", found.xsave) == (0x37F, 0, 0)
    assert struct.unpack_from("<I", found.xsave, 24) == (0x1F80,)
    assert struct.unpack_from("<Q", found.xsave, 512) == (7,)
    assert found.xcrs is not None
    assert layouts.XCRS.unpack(found.xcrs)["xcrs"][:2] == [0, 1]
    assert found.lapic is not None
    registers = layouts.LAPIC.unpack(found.lapic)["regs"]
    assert registers[0xF0 // 4] == 0x1FF
    assert registers[0xE0 // 4] == 0xFFFFFFFF
    assert registers[0x300 // 4] == 804368
    assert [registers[(0x320 + 16 * number) // 4] for number in range(6)] == [
        65536, 65536, 65536, 34560, 33792, 65536,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("env.fpuc", (0, 2), 0x27F),
        ("env.mxcsr", (24, 4), 0x9FC0),
        ("env.fpregs[2].tmp.tmp_mant", (32 + 2 * 16, 8), 0x123456789ABCDEF0),
        ("env.fpregs[7].tmp.tmp_exp", (32 + 7 * 16 + 8, 2), 0x4001),
        ("env.xmm_regs[0][3]._q_ZMMReg[1]", (160 + 3 * 16 + 8, 8), 0x1122334455667788),
        ("env.xmm_regs[1][15]._q_ZMMReg[2]", (576 + 15 * 16, 8), 0x8877665544332211),
    ],
)
def test_each_register_has_its_place(
    stream: bytes, name: str, place: tuple[int, int], value: int
) -> None:
    offset, size = field(stream, name)
    changed = stream[:offset] + value.to_bytes(size, "big") + stream[offset + size :]
    found = taken(changed).xsave
    assert found is not None
    at, width = place
    assert int.from_bytes(found[at : at + width], "little") == value
