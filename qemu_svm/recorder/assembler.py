"""A small assembler for eBPF programs, in the notation of the kernel's verifier.

One instruction a line; ``;`` starts a comment::

    r1 = r2                        also += -= *= |= &= ^= <<= >>=, and a number as operand
    w1 = w2                        the low 32 bits; the others become 0
    r1 = *(u32 *)(r2 + 8)          u8 u16 u32 u64; also - 8
    *(u64 *)(r10 - 8) = r1         or = number (32 bits, sign-extended)
    lock *(u64 *)(r1 + 0) += r2
    r1 = map NAME                  address of a map
    call NAME                      a helper
    if r1 == r2 goto LABEL         == != > >= < <= s> s>= s< s<= &; a number as operand
    goto LABEL
    LABEL:
    exit

Names of numbers are given by the caller.  Source: Linux ``Documentation/bpf/standardization/
instruction-set.rst``, ``include/uapi/linux/bpf.h``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

_SIZES = {"u32": 0x00, "u16": 0x08, "u8": 0x10, "u64": 0x18}
_ARITHMETIC = {
    "+=": 0x00, "-=": 0x10, "*=": 0x20, "|=": 0x40, "&=": 0x50, "<<=": 0x60, ">>=": 0x70,
    "^=": 0xA0, "=": 0xB0,
}  # fmt: skip
_JUMPS = {
    "==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "s>": 0x60, "s>=": 0x70,
    "<": 0xA0, "<=": 0xB0, "s<": 0xC0, "s<=": 0xD0,
}  # fmt: skip
_LD_IMM64, _MAP_FD = 0x18, 1
_LOAD, _STORE_NUMBER, _STORE, _ATOMIC_ADD = 0x61, 0x62, 0x63, 0xC3
_ALU32, _JUMP, _ALU64, _REGISTER = 0x04, 0x05, 0x07, 0x08
_CALL, _EXIT = 0x85, 0x95

HELPERS = {
    "map_lookup_elem": 1,
    "map_update_elem": 2,
    "map_delete_elem": 3,
    "ktime_get_ns": 5,
    "get_current_pid_tgid": 14,
    "get_current_task": 35,
    "probe_read_user": 112,
    "probe_read_kernel": 113,
    "get_ns_current_pid_tgid": 120,
    "ringbuf_output": 130,
}
"""Numbers of the helpers (``bpf.h``, ``__BPF_FUNC_MAPPER``)."""

_MEMORY = r"\*\((u8|u16|u32|u64) \*\)\((r\d+) ([+-]) (\w+)\)"
_LINE_LABEL = re.compile(r"(\w+):")
_LINE_GOTO = re.compile(r"goto (\w+)")
_LINE_CALL = re.compile(r"call (\w+)")
_LINE_IF = re.compile(r"if (r\d+) (s?[<>]=?|[=!]=|&) (-?\w+) goto (\w+)")
_LINE_MAP = re.compile(r"(r\d+) = map (\w+)")
_LINE_LOAD = re.compile(r"(r\d+) = " + _MEMORY)
_LINE_STORE = re.compile(_MEMORY + r" = (-?\w+)")
_LINE_ADD = re.compile(r"lock " + _MEMORY + r" \+= (r\d+)")
_LINE_MOVE = re.compile(r"([rw]\d+) (=|[-+*|&^]=|<<=|>>=) (-?\w+)")
_REGISTER_NAME = re.compile(r"[rw](\d|10)")


class AssemblyError(ValueError):
    """A line that is no instruction, or names something that does not exist."""


@dataclass(frozen=True)
class Program:
    """An assembled program.

    :param code: its instructions, 8 bytes each.
    :param lines: for each instruction the source line, without the comment.
    """

    code: bytes
    lines: tuple[str, ...]


def assemble(source: str, numbers: Mapping[str, int], maps: Mapping[str, int]) -> Program:
    """Assemble a program.

    :param numbers: values of the names that the source uses.
    :param maps: file descriptors of the maps, by name.
    :raises AssemblyError: a line is wrong; the message has the line.
    """
    return _Assembly(numbers, maps).run(source)


class _Assembly:
    def __init__(self, numbers: Mapping[str, int], maps: Mapping[str, int]) -> None:
        self._numbers = numbers
        self._maps = maps
        self._labels: dict[str, int] = {}
        self._code: list[bytes] = []
        self._lines: list[str] = []
        self._jumps: list[tuple[int, str]] = []

    def run(self, source: str) -> Program:
        for number, whole in enumerate(source.splitlines(), 1):
            line = " ".join(whole.partition(";")[0].split())
            if not line:
                continue
            label = _LINE_LABEL.fullmatch(line)
            if label:
                if label[1] in self._labels:
                    raise AssemblyError(f"line {number}: label '{label[1]}' is used twice")
                self._labels[label[1]] = len(self._code)
                continue
            try:
                code = self._instruction(line)
            except (KeyError, ValueError, struct.error) as error:
                raise AssemblyError(f"line {number}: '{line}': {error}") from error
            self._code += code
            self._lines += [line] * len(code)
        for place, label_name in self._jumps:
            if label_name not in self._labels:
                raise AssemblyError(f"'{self._lines[place]}': no label '{label_name}'")
            away = self._labels[label_name] - place - 1
            jump = self._code[place]
            self._code[place] = jump[:2] + struct.pack("<h", away) + jump[4:]
        return Program(b"".join(self._code), tuple(self._lines))

    def _instruction(self, line: str) -> list[bytes]:
        if line == "exit":
            return [_pack(_EXIT)]
        found = _LINE_GOTO.fullmatch(line)
        if found:
            return [self._jump(_pack(_JUMP), found[1])]
        found = _LINE_CALL.fullmatch(line)
        if found:
            return [_pack(_CALL, number=HELPERS[found[1]])]
        found = _LINE_IF.fullmatch(line)
        if found:
            left, how, right, label = found.groups()
            code = _JUMPS[how] | _JUMP
            return [self._jump(self._operation(code, _register(left), right), label)]
        found = _LINE_MAP.fullmatch(line)
        if found:
            first = _pack(_LD_IMM64, _register(found[1]), _MAP_FD, number=self._maps[found[2]])
            return [first, _pack(0)]
        return [self._memory(line)]

    def _memory(self, line: str) -> bytes:
        found = _LINE_LOAD.fullmatch(line)
        if found:
            target, size, base, sign, offset = found.groups()
            code = _LOAD | _SIZES[size]
            return _pack(code, _register(target), _register(base), self._offset(sign, offset))
        found = _LINE_STORE.fullmatch(line)
        if found:
            size, base, sign, offset, value = found.groups()
            away = self._offset(sign, offset)
            if _REGISTER_NAME.fullmatch(value):
                return _pack(_STORE | _SIZES[size], _register(base), _register(value), away)
            number = self._number(value)
            return _pack(_STORE_NUMBER | _SIZES[size], _register(base), 0, away, number)
        found = _LINE_ADD.fullmatch(line)
        if found:
            size, base, sign, offset, value = found.groups()
            code = _ATOMIC_ADD | _SIZES[size]
            return _pack(code, _register(base), _register(value), self._offset(sign, offset))
        found = _LINE_MOVE.fullmatch(line)
        if found:
            target, how, value = found.groups()
            kind = _ALU32 if target[0] == "w" else _ALU64
            return self._operation(_ARITHMETIC[how] | kind, _register(target), value)
        raise ValueError("unknown instruction")

    def _operation(self, code: int, target: int, operand: str) -> bytes:
        if _REGISTER_NAME.fullmatch(operand):
            return _pack(code | _REGISTER, target, _register(operand))
        return _pack(code, target, number=self._number(operand))

    def _jump(self, code: bytes, label: str) -> bytes:
        self._jumps.append((len(self._code), label))
        return code

    def _number(self, text: str) -> int:
        # As a signed word; one above 2^31 would be sign-extended to another value.
        value = self._numbers[text] if text in self._numbers else int(text, 0)
        if not -(1 << 31) <= value < 1 << 31:
            raise ValueError(f"{value:#x} does not fit in 31 bits")
        return value

    def _offset(self, sign: str, text: str) -> int:
        return self._number(text) if sign == "+" else -self._number(text)


def _register(name: str) -> int:
    if not _REGISTER_NAME.fullmatch(name):
        raise ValueError(f"no register '{name}'")
    return int(name[1:])


def _pack(code: int, target: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | target, offset, number)
