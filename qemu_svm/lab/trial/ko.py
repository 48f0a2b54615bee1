"""Kernel modules of others: what they are built for, checked before a box is started.

A module is an ELF file (ET_REL, x86-64).  ``.modinfo`` has strings such as
``vermagic=6.1.0-50-amd64 SMP preempt mod_unload modversions``; ``__versions`` has the checksum
of each symbol that it needs, ``__crc_NAME`` are the symbols of the checksums that it provides.

Source: Linux ``include/linux/module.h``, ``kernel/module/version.c``, ``scripts/mod/modpost.c``
(5.10 to 7.2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from qemu_svm.errors import Refused, SourceError
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.suites.modules import in_order

LIMIT = 256 << 20
"""Bytes of a module."""
NAMES = {"kvm": "kvm.ko", "kvm_amd": "kvm-amd.ko"}
"""Modules that can be replaced, and their files."""

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_VERSION = struct.Struct("<Q56s")
_MAGIC = b"\x7fELF\x02\x01"
_RELOCATABLE, _X86_64, _NOBITS, _SYMTAB, _ABSOLUTE = 1, 62, 8, 2, 0xFFF1
_SHOWN = 4


class ModuleRefused(Refused):
    """A module that does not fit the kernel."""

    rule = "module"


@dataclass(frozen=True)
class Ko:
    """A module.

    :param name: of the file, for messages.
    :param content: of the file.
    :raises SourceError: reading a part of it fails, because it is no module or is damaged.
    """

    name: str
    content: bytes

    @cached_property
    def _sections(self) -> list[tuple[str, int, bytes]]:
        # Name, type and content.
        data = self.content
        if len(data) < _HEADER.size or not data.startswith(_MAGIC):
            raise SourceError(f"{self.name} is no kernel module: it is not an ELF file")
        _, kind, machine, *_, start, _, _, _, _, size, count, names = _HEADER.unpack_from(data)
        if (kind, machine, size) != (_RELOCATABLE, _X86_64, _SECTION.size) or names >= count:
            raise SourceError(f"{self.name} is no kernel module for x86-64")
        start = struct.unpack_from("<Q", data, 40)[0]
        if start + count * size > len(data):
            raise SourceError(f"{self.name} is cut: the section headers are missing")
        raw = [_SECTION.unpack_from(data, start + number * size) for number in range(count)]

        def content(section: tuple[int, ...]) -> bytes:
            if section[1] == _NOBITS:
                return b""
            if section[4] + section[5] > len(data):
                raise SourceError(f"{self.name} is cut: a section is missing")
            return data[section[4] : section[4] + section[5]]

        texts = content(raw[names])
        return [(_text(texts, one[0]), one[1], content(one)) for one in raw]

    def section(self, name: str) -> bytes | None:
        """Return the content of a section; None if there is none."""
        return next((content for found, _, content in self._sections if found == name), None)

    @cached_property
    def info(self) -> dict[str, str]:
        """``vermagic``, ``name``, ``depends`` and the rest of ``.modinfo``."""
        found: dict[str, str] = {}
        for line in (self.section(".modinfo") or b"").split(b"\0"):
            key, _, value = line.decode("ascii", "replace").partition("=")
            found.setdefault(key, value)
        return found

    @cached_property
    def needs(self) -> dict[str, int]:
        """Checksums of the symbols that it needs."""
        data = self.section("__versions") or b""
        found = {}
        for place in range(0, len(data) - _VERSION.size + 1, _VERSION.size):
            crc, name = _VERSION.unpack_from(data, place)
            found[name.partition(b"\0")[0].decode("ascii", "replace")] = crc & 0xFFFFFFFF
        return found

    @cached_property
    def provides(self) -> dict[str, int]:
        """Checksums of the symbols that it exports."""
        return dict(self._exported())

    def _exported(self) -> Iterator[tuple[str, int]]:
        texts = self.section(".strtab") or b""
        for _, kind, symbols in self._sections:
            if kind != _SYMTAB:
                continue
            for place in range(0, len(symbols) - _SYMBOL.size + 1, _SYMBOL.size):
                name, _, _, section, value, _ = _SYMBOL.unpack_from(symbols, place)
                text = _text(texts, name)
                if not text.startswith("__crc_"):
                    continue
                if section == _ABSOLUTE:
                    yield text.removeprefix("__crc_"), value & 0xFFFFFFFF
                elif section < len(self._sections):
                    content = self._sections[section][2]
                    if value + 4 <= len(content):
                        yield (text.removeprefix("__crc_"),
                               int.from_bytes(content[value : value + 4], "little"))  # fmt: skip


def _text(texts: bytes, start: int) -> str:
    end = texts.find(b"\0", start)
    return texts[start : end if end >= 0 else None].decode("ascii", "replace")


def checked(kernel: Built, given: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return modules by the names of the files that they replace.

    :param kernel: that will load them.
    :param given: content by path.
    :raises SourceError: one is no module.
    :raises ModuleRefused: one is not kvm or kvm-amd, or is built for another kernel.
    """
    own = {name: Ko(name, content) for name, content in in_order(kernel)}
    known: dict[str, int] = {}
    for module in own.values():
        known |= module.needs | module.provides
    found: dict[str, Ko] = {}
    for path, content in given.items():
        module = Ko(path, content)
        file = NAMES.get(module.info.get("name", ""))
        if file is None:
            raise ModuleRefused(f"{path} is not kvm.ko or kvm-amd.ko, but the module "
                                f"'{module.info.get('name', '')[:40]}'")  # fmt: skip
        if file in found:
            raise ModuleRefused(f"{path}: {file} is given twice")
        found[file] = module
    for module in found.values():
        known |= module.provides
    for file, module in found.items():
        _check(module, own[file], known)
    if "kvm.ko" in found and "kvm-amd.ko" not in found:
        _check(own["kvm-amd.ko"], own["kvm-amd.ko"], known, because=found["kvm.ko"].name)
    return {file: module.content for file, module in found.items()}


def _check(module: Ko, own: Ko, known: Mapping[str, int], because: str = "") -> None:
    magic, ours = (one.info.get("vermagic", "").strip() for one in (module, own))
    if magic != ours:
        raise ModuleRefused(
            f"{module.name} is built for '{magic[:120]}', this kernel is '{ours}' (vermagic)",
            hint="--kernel chooses the kernel; lab patch PATCH builds it for that one",
        )
    wrong = [name for name, crc in module.needs.items() if known.get(name, crc) != crc]
    if not wrong:
        return
    names = ", ".join(wrong[:_SHOWN]) + (f" and {len(wrong) - _SHOWN} more" * (len(wrong) > _SHOWN))
    if because:
        raise ModuleRefused(f"the kernel's own kvm-amd.ko does not fit {because}: versions of "
                            f"{names} differ", hint="give both modules")  # fmt: skip
    raise ModuleRefused(f"{module.name} does not fit this kernel: versions of {names} differ",
                        hint="build it with the headers of exactly this kernel, and give both "
                        "kvm.ko and kvm-amd.ko if both are changed")  # fmt: skip
