"""BTF, the type information that a running kernel carries.

``/sys/kernel/btf/vmlinux`` has the types of the kernel.  Those of a module are in a file of
its own, whose type numbers and names continue those of the kernel.

Source: Linux ``Documentation/bpf/btf.rst`` and ``include/uapi/linux/btf.h``, 6.12.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.types import DEPTH, Member

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_ARRAY = struct.Struct("<III")

(_INT, _PTR, _ARRAY_KIND, _STRUCT, _UNION, _ENUM) = range(1, 7)
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT = 8, 9, 10, 11
_TYPE_TAG, _ENUM64 = 18, 19
_SAME = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_KINDS = {1: (4, 0), 2: (0, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 7: (0, 0)} | {
    8: (0, 0), 9: (0, 0), 10: (0, 0), 11: (0, 0), 12: (0, 0), 13: (0, 8), 14: (4, 0),
    15: (0, 12), 16: (0, 0), 17: (4, 0), 18: (0, 0), 19: (0, 12),
}  # fmt: skip
"""By kind: bytes that follow a type, and bytes for each of its members."""
_POINTER = 8


class Btf:
    """The types of a kernel, or of a module on top of them.

    :param data: the file.
    :param base: the kernel's types, for those of a module.
    :param name: of the file, for errors.
    :raises EnvironmentFault: it is not BTF, or damaged.
    """

    end: int
    """The number after that of the last type."""
    strings_end: int
    """The offset after that of the last string."""

    def __init__(self, data: bytes, base: Btf | None = None, name: str = "BTF") -> None:
        self.base = base
        self._name = name
        self.first, self._first_string = 1, 0
        if base is not None:
            self.first, self._first_string = base.end, base.strings_end
        self.end, self.strings_end = self.first, self._first_string
        try:
            self._read(data)
        except (struct.error, IndexError) as error:
            raise EnvironmentFault(f"{name} is damaged: {error}") from None

    def _read(self, data: bytes) -> None:
        magic, version, _flags, header, types, types_size, strings, strings_size = (
            _HEADER.unpack_from(data)
        )
        if magic != _MAGIC or version != 1:
            raise EnvironmentFault(f"{self._name} is not BTF of version 1")
        self.data = data[header + types : header + types + types_size]
        self.strings = data[header + strings : header + strings + strings_size]
        if len(self.data) != types_size or len(self.strings) != strings_size:
            raise EnvironmentFault(f"{self._name} is cut")
        self.starts: list[int] = []
        self.named: dict[int, int] = {}
        self._enums: list[int] = []
        self._cache: dict[int, dict[str, Member]] = {}
        place, end = 0, types_size
        unpack, after = _TYPE.unpack_from, _KINDS
        while place < end:
            name, info, _size = unpack(self.data, place)
            kind = info >> 24 & 0x1F
            if kind not in after:
                raise EnvironmentFault(f"{self._name} has a type of unknown kind {kind}")
            fixed, each = after[kind]
            if kind in (_STRUCT, _UNION) and name:
                self.named.setdefault(name, self.first + len(self.starts))
            elif kind in (_ENUM, _ENUM64):
                self._enums.append(self.first + len(self.starts))
            self.starts.append(place)
            place += 12 + fixed + each * (info & 0xFFFF)
        if place != end:
            raise EnvironmentFault(f"{self._name} is cut inside a type")
        self.end = self.first + len(self.starts)
        self.strings_end = self._first_string + strings_size

    def text(self, offset: int) -> bytes:
        """Return the string at an offset; those of a module continue the kernel's."""
        if self.base is not None and offset < self._first_string:
            return self.base.text(offset)
        start = offset - self._first_string
        end = self.strings.find(b"\0", start) if start >= 0 else -1
        if end < 0:
            raise EnvironmentFault(f"{self._name} has no string at {offset:#x}")
        return self.strings[start:end]

    def _head(self, number: int) -> tuple[bytes, int, int, int, int]:
        # The data that has the type, its offset behind the head, kind, info, size or type.
        owner = self
        while owner.base is not None and number < owner.first:
            owner = owner.base
        if not owner.first <= number < owner.end:
            if number == 0:
                return b"", 0, 0, 0, 0  # void
            raise EnvironmentFault(f"{self._name} has no type {number}")
        place = owner.starts[number - owner.first]
        _name, info, size = _TYPE.unpack_from(owner.data, place)
        return owner.data, place + 12, info >> 24 & 0x1F, info, size

    def _plain(self, number: int) -> int:
        # The type behind names and qualifiers.
        for _ in range(DEPTH):
            _data, _place, kind, _info, target = self._head(number)
            if kind not in _SAME:
                return number
            number = target
        raise EnvironmentFault(f"{self._name} has types that name each other")

    def structure(self, name: str) -> int | None:
        """See :meth:`Types.structure`."""
        wanted = b"\0" + name.encode() + b"\0"
        place = self.strings.find(wanted)
        while place >= 0:
            found = self.named.get(self._first_string + place + 1)
            if found is not None:
                return found
            place = self.strings.find(wanted, place + 1)
        if self.base is None:
            return None
        # The name of a module's type may be among the kernel's strings.
        place = self.base.strings.find(wanted)
        if place >= 0 and place + 1 in self.named:
            return self.named[place + 1]
        return self.base.structure(name)

    def members(self, number: int) -> Mapping[str, Member]:
        """See :meth:`Types.members`."""
        number = self._plain(number)
        if number not in self._cache:
            self._cache[number] = self._members(number, 0)
        return self._cache[number]

    def _members(self, number: int, depth: int) -> dict[str, Member]:
        data, place, kind, info, _size = self._head(number)
        if kind not in (_STRUCT, _UNION) or depth > DEPTH:
            return {}
        found: dict[str, Member] = {}
        for index in range(info & 0xFFFF):
            name, inner, offset = _MEMBER.unpack_from(data, place + 12 * index)
            bits = 0
            if info >> 31:
                bits, offset = offset >> 24, offset & 0xFFFFFF
            text = self.text(name).decode("ascii", "replace")
            if text:
                found[text] = Member(offset, bits, inner)
                continue
            for below, member in self._members(self._plain(inner), depth + 1).items():
                found[below] = Member(offset + member.offset, member.bits, member.type)
        return found

    def size(self, number: int) -> int:
        """See :meth:`Types.size`."""
        count = 1
        for _ in range(DEPTH):
            data, place, kind, _info, size = self._head(self._plain(number))
            if kind == _PTR:
                return count * _POINTER
            if kind != _ARRAY_KIND:
                return count * size
            number, _index, many = _ARRAY.unpack_from(data, place)
            count *= many
        raise EnvironmentFault(f"{self._name} has arrays of too many dimensions")

    def is_pointer(self, number: int) -> bool:
        """See :meth:`Types.is_pointer`."""
        return self._head(self._plain(number))[2] == _PTR

    def constant(self, name: str) -> int | None:
        """See :meth:`Types.constant`."""
        wanted = name.encode()
        for number in self._enums:
            data, place, kind, info, _size = self._head(number)
            step = 12 if kind == _ENUM64 else 8
            for index in range(info & 0xFFFF):
                text, value = struct.unpack_from("<II", data, place + step * index)
                if self.text(text) == wanted:
                    return int(value)
        return None if self.base is None else self.base.constant(name)
