"""The assembler gives the instructions that the kernel documents."""

from __future__ import annotations

import pytest

from qemu_svm.recorder import programs
from qemu_svm.recorder.assembler import AssemblyError, assemble

MAPS = dict.fromkeys(
    ("ring", "watched", "newborn", "threads", "descriptors", "shapes", "settings", "scratch"), 7
)

# Encodings of the kernel's own tests and documentation (samples/bpf/bpf_insn.h,
# instruction-set.rst).
ENCODED = {
    "r1 = r2": "bf21000000000000",
    "w1 = w2": "bc21000000000000",
    "r0 = 0": "b700000000000000",
    "r2 += -8": "07020000f8ffffff",
    "r1 >>= 32": "7701000020000000",
    "r2 <<= r3": "6f32000000000000",
    "r1 &= 0xff": "57010000ff000000",
    "r6 = *(u64 *)(r1 + 8)": "7916080000000000",
    "r6 = *(u32 *)(r10 - 4)": "61a6fcff00000000",
    "r6 = *(u8 *)(r1 + 0)": "7116000000000000",
    "*(u32 *)(r10 - 4) = r0": "630afcff00000000",
    "*(u64 *)(r10 - 8) = -1": "7a0af8ffffffffff",
    "lock *(u64 *)(r0 + 0) += r1": "db10000000000000",
    "r1 = map ring": "1811000007000000" + "00" * 8,
    "call map_lookup_elem": "8500000001000000",
    "exit": "9500000000000000",
}


@pytest.mark.parametrize("line", ENCODED)
def test_an_instruction(line: str) -> None:
    assert assemble(line, {}, MAPS).code.hex() == ENCODED[line]


def test_jumps_both_ways_and_names_of_numbers() -> None:
    text = """
    again:                  ; a comment
        if r1 == SIXTEEN goto end
        if r1 s<= r2 goto again
        goto end
    end:
        exit
    """
    program = assemble(text, {"SIXTEEN": 16}, {})
    assert program.code.hex() == (
        "1501020010000000dd21feff0000000005000000000000009500000000000000"
    )
    assert program.lines[0] == "if r1 == SIXTEEN goto end"


@pytest.mark.parametrize(
    "line",
    ["r11 = 1", "r1 = nothing", "call nothing", "goto nowhere", "r1 = map nothing", "jump",
     "r1 = 0x80000000", "a:\na:", "r1 = *(u24 *)(r1 + 0)", "r1 = *(u8 *)(r1 + 40000)"],
)  # fmt: skip
def test_a_line_that_is_wrong(line: str) -> None:
    with pytest.raises(AssemblyError):
        assemble(line, {}, MAPS)


@pytest.mark.parametrize("namespace", [None, (4, 0xF000_0000)])
@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("copies", [1, 3])
def test_the_programs(namespace: tuple[int, int] | None, copies: int, *, follow: bool) -> None:
    variant = programs.Variant(namespace, follow=follow, copies=copies)
    made = programs.programs(MAPS, variant)
    names = ["sys_enter", "sys_exit", *["sched_process_fork"] * follow]
    assert [name for name, _program in made] == names * copies
    for _name, program in made:
        assert len(program.code) == 8 * len(program.lines) < 8 * 4096
