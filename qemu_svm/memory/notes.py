"""What an ELF core of a machine is made of: headers and notes, both ways.

Source: QEMU ``include/elf.h``, ``target/i386/arch_dump.c`` (``QEMUCPUState``,
``x86_64_elf_prstatus``); System V ABI, AMD64 supplement; Linux ``include/uapi/linux/elf.h``.
"""

from __future__ import annotations

from construct import (
    Bytes,
    Const,
    Int16ul,
    Int32ul,
    Int64ul,
    Padding,
    Struct,
)

from qemu_svm.memory.registers import Registers
from qemu_svm.x86.segments import Segment, flags_from_attrib

ET_CORE, EM_X86_64 = 4, 62
PT_LOAD, PT_NOTE = 1, 4
NT_PRSTATUS = 1
PN_XNUM = 0xFFFF
HEADER_SIZE, PROGRAM_SIZE, SECTION_SIZE = 64, 56, 64

HEADER = Struct(
    "magic" / Const(b"\x7fELF\x02\x01\x01" + bytes(9)),
    "type" / Int16ul,
    "machine" / Int16ul,
    "version" / Int32ul,
    "entry" / Int64ul,
    "phoff" / Int64ul,
    "shoff" / Int64ul,
    "flags" / Int32ul,
    "ehsize" / Int16ul,
    "phentsize" / Int16ul,
    "phnum" / Int16ul,
    "shentsize" / Int16ul,
    "shnum" / Int16ul,
    "shstrndx" / Int16ul,
)
"""``Elf64_Ehdr``."""

PROGRAM = Struct(
    "type" / Int32ul,
    "flags" / Int32ul,
    "offset" / Int64ul,
    "vaddr" / Int64ul,
    "paddr" / Int64ul,
    "filesz" / Int64ul,
    "memsz" / Int64ul,
    "align" / Int64ul,
)
"""``Elf64_Phdr``."""

SECTION = Struct(
    "name" / Int32ul,
    "type" / Int32ul,
    "flags" / Int64ul,
    "addr" / Int64ul,
    "offset" / Int64ul,
    "size" / Int64ul,
    "link" / Int32ul,
    "info" / Int32ul,
    "addralign" / Int64ul,
    "entsize" / Int64ul,
)
"""``Elf64_Shdr``; ``info`` of the first one is the number of program headers above 65534."""

NOTE = Struct("namesz" / Int32ul, "descsz" / Int32ul, "type" / Int32ul)

_PTRACE = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
    *("rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base"),
    *("ds", "es", "fs", "gs"),
)
PRSTATUS = Struct(
    "signal" / Bytes(32),
    "pid" / Int32ul,
    Padding(76),
    "registers" / Struct(*(name / Int64ul for name in _PTRACE)),
    "fpvalid" / Int32ul,
    Padding(4),
)
"""``struct elf_prstatus``, 336 bytes."""

_SEGMENT = Struct(
    "selector" / Int32ul, "limit" / Int32ul, "flags" / Int32ul, Padding(4), "base" / Int64ul
)
_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "rflags"),
)
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
CPU_STATE = Struct(
    "version" / Int32ul,
    "size" / Int32ul,
    "general" / Struct(*(name / Int64ul for name in _GENERAL)),
    "segments" / Struct(*(name / _SEGMENT for name in _SEGMENTS)),
    "cr" / Int64ul[5],
    "kernel_gs_base" / Int64ul,
)
"""``QEMUCPUState``, version 1, 440 bytes; crash reads IDT and CR3 out of it."""


def header(programs: int) -> bytes:
    """The ELF header and, after so many program headers, what their number needs."""
    many = programs >= PN_XNUM
    return HEADER.build({
        "type": ET_CORE, "machine": EM_X86_64, "version": 1, "entry": 0,
        "phoff": HEADER_SIZE, "shoff": HEADER_SIZE + programs * PROGRAM_SIZE if many else 0,
        "flags": 0, "ehsize": HEADER_SIZE, "phentsize": PROGRAM_SIZE,
        "phnum": PN_XNUM if many else programs, "shentsize": SECTION_SIZE if many else 0,
        "shnum": int(many), "shstrndx": 0,
    })  # fmt: skip


def extra_section(programs: int) -> bytes:
    """The section header that has the number of program headers where it is too large."""
    if programs < PN_XNUM:
        return b""
    return SECTION.build({
        "name": 0, "type": 0, "flags": 0, "addr": 0, "offset": 0, "size": 0, "link": 0,
        "info": programs, "addralign": 0, "entsize": 0,
    })  # fmt: skip


def program(kind: int, offset: int, size: int, *, virtual: int = 0, physical: int = 0) -> bytes:
    """A program header; loads are readable, writable, executable, and not aligned.

    crash takes a core whose first load is aligned to 4096 for one of an old kind, without
    KASLR.
    """
    return PROGRAM.build({
        "type": kind, "flags": 7 if kind == PT_LOAD else 0, "offset": offset,
        "vaddr": virtual, "paddr": physical, "filesz": size, "memsz": size,
        "align": 0 if kind == PT_LOAD else 4,
    })  # fmt: skip


def note(name: bytes, kind: int, content: bytes) -> bytes:
    """A note: header, name with its zero, content, each padded to four bytes."""
    head = NOTE.build({"namesz": len(name) + 1, "descsz": len(content), "type": kind})
    return head + _padded(name + b"\0") + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def prstatus(of: Registers, number: int) -> bytes:
    """The note that debuggers read registers from; unknown ones are 0.

    :param number: of the CPU in the core, from 0.
    """
    bases = {f"{name}_base": _segment(of, name).base for name in ("fs", "gs")}
    selectors = {name: _segment(of, name).selector for name in ("cs", "ss", "ds", "es", "fs", "gs")}
    numbers = {name: of.get(name) for name in _GENERAL}
    content = PRSTATUS.build({
        "signal": bytes(32), "pid": number + 1,
        "registers": {"orig_rax": 0, **numbers, **selectors, **bases}, "fpvalid": 0,
    })  # fmt: skip
    return note(b"CORE", NT_PRSTATUS, content)


def cpu_state(of: Registers) -> bytes:
    """QEMU's own note of a CPU's state."""
    segments = {}
    for name in _SEGMENTS:
        one = _segment(of, name)
        segments[name] = {
            "selector": one.selector, "limit": one.limit & 0xFFFF_FFFF,
            "flags": flags_from_attrib(one.attrib), "base": one.base,
        }  # fmt: skip
    content = CPU_STATE.build({
        "version": 1, "size": CPU_STATE.sizeof(),
        "general": {name: of.get(name) for name in _GENERAL}, "segments": segments,
        "cr": [of.get("cr0"), 0, of.get("cr2"), of.get("cr3"), of.get("cr4")],
        "kernel_gs_base": of.get("kernel_gs_base"),
    })  # fmt: skip
    return note(b"QEMU", 0, content)


def vmcoreinfo(text: bytes) -> bytes:
    """The note that says where Linux is."""
    return note(b"VMCOREINFO", 0, text)


def _segment(of: Registers, name: str) -> Segment:
    return of.segments.get(name) or Segment(0, 0, 0, 0)
