"""Values of a page that may have to be left out of it, and how that is done.

Every value passes :meth:`Redaction.shown` on its way into the page, because the templates
can print no other way.  What is left out is replaced by a name: equal values by equal names,
so that a page still shows which of them are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from qemu_svm.render.escape import printable

_SMALL: Final = 0x1000
"""Numbers below it are no addresses in running text."""
_LARGE: Final = 0x10000
"""Numbers in running text from here on are left out, unless they are known to be flags."""

_NUMBER = re.compile(r"(?i)(?<![\w.])0x[0-9a-f]+(?!\w)|(?<![\w.-])[0-9a-f]{8,}(?![\w-])")
_UUID = re.compile(r"(?i)(?<![0-9a-f])[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}(?![0-9a-f])")
_MAC = re.compile(r"(?i)(?<![0-9a-f:])(?:[0-9a-f]{2}:){5}[0-9a-f]{2}(?![0-9a-f:])")
_GIVEN = re.compile(r"(/machine/peripheral(?:-anon)?/|/objects/)([^/\s'\"]+)")
_KNOWN_BLOCK = re.compile(
    r"pc\.(?:ram|bios|rom)|ram-node\d+|mem\d+|system\.flash\d+|mach-virt\.ram|vga\.vram"
    r"|/rom@etc/[\w/.-]+|(?:[0-9a-f:.]+/)?[\w-]+\.(?:rom|vram|vrom|ram|bios|bar\d?|flash\d?)"
)


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """An address, or a register that may have one; shown as ``0x…``."""

    value: int


@dataclass(frozen=True, slots=True, repr=False)
class Msr:
    """The value of an MSR; shown as ``0x…``."""

    value: int


@dataclass(frozen=True, slots=True, repr=False)
class Name:
    """Something that people or their programs have named.

    :param role: what it is, for what stands in its place.
    """

    value: str
    role: str = "name"


@dataclass(frozen=True, slots=True, repr=False)
class Uuid:
    """A UUID."""

    value: str


@dataclass(frozen=True, slots=True, repr=False)
class Raw:
    """Bytes of a device or of memory.

    :param text: how they are shown.
    """

    text: str
    size: int


@dataclass(frozen=True, slots=True, repr=False)
class Offset:
    """A place in a file, which tells nothing about the guest."""

    value: int


Cell = str | int | Address | Msr | Name | Uuid | Raw | Offset
"""What a template may print."""


def block_name(name: str) -> Cell:
    """Return the name of a RAM block: that of a memory backend is given by people."""
    return name if _KNOWN_BLOCK.fullmatch(name) else Name(name, "block")


class Redaction:
    """What is left out of a page.

    :param kinds: of :data:`~qemu_svm.findings.overview.REDACTABLE`.
    :param names: that must not occur in running text either.
    :param secrets: numbers that must not.
    :param plain: numbers that may, however large: flags.
    """

    def __init__(
        self,
        kinds: frozenset[str],
        names: Iterable[str] = (),
        secrets: Iterable[int] = (),
        plain: Iterable[int] = (),
    ) -> None:
        self.kinds = kinds
        self._secrets = {one for one in secrets if one >= _SMALL}
        self._plain = set(plain) - self._secrets
        self._given: dict[tuple[str, Any], str] = {}
        found = sorted({one for one in names if len(one) > 1}, key=len, reverse=True)
        self._names = (
            re.compile("|".join(rf"(?<!\w){re.escape(one)}(?!\w)" for one in found))
            if found
            else None
        )

    def shown(self, value: Any) -> Any:
        """Return the text of a value; text that a template has made stays as it is."""
        if hasattr(value, "__html__"):
            return value
        show = self._kinds_of_value.get(type(value))
        return "" if show is None else show(self, value)  # None, and what a template lacks

    def _address(self, one: Address) -> str:
        hidden = "addresses" in self.kinds and one.value
        return self._stand_in("a", one.value) if hidden else f"{one.value:#x}"

    def _msr(self, one: Msr) -> str:
        hidden = "msrs" in self.kinds and one.value
        return self._stand_in("m", one.value) if hidden else f"{one.value:#x}"

    def _named(self, one: Name) -> str:
        if "names" in self.kinds:
            return self._stand_in(one.role, one.value)
        return self._text(one.value)

    def _uuid(self, one: Uuid) -> str:
        return "[uuid]" if "uuids" in self.kinds else printable(one.value)

    def _raw(self, one: Raw) -> str:
        hidden = self.kinds & {"addresses", "names"}
        return f"[{one.size} bytes]" if hidden else printable(one.text)

    def _stand_in(self, role: str, value: Any) -> str:
        # [a1], [a2]: equal values have equal ones.
        key = (role, value)
        if key not in self._given:
            number = sum(one == role for one, _ in self._given) + 1
            self._given[key] = f"[{role}{'' if len(role) == 1 else ' '}{number}]"
        return self._given[key]

    def _text(self, text: str) -> str:
        text = printable(text)
        if not self.kinds or not text:
            return text
        for kind, pattern, stands in (
            ("names", self._names, self._name),
            ("uuids", _UUID, lambda _match: "[uuid]"),
            ("addresses", _MAC, lambda _match: "[mac]"),
            ("names", _GIVEN, lambda match: f"{match[1]}{self._stand_in('name', match[2])}"),
            ("addresses", _NUMBER, self._number),
        ):
            if kind in self.kinds and pattern is not None:
                text = pattern.sub(stands, text)
        return text

    def _name(self, match: re.Match[str]) -> str:
        return self._stand_in("name", match[0])

    def _number(self, match: re.Match[str]) -> str:
        value = int(match[0], 16)
        hidden = value in self._secrets or (value >= _LARGE and value not in self._plain)
        return self._stand_in("a", value) if hidden else match[0]

    _kinds_of_value: ClassVar[dict[type, Callable[[Redaction, Any], str]]] = {
        str: _text,
        int: lambda _self, number: str(number),
        float: lambda _self, number: str(number),
        Address: _address,
        Msr: _msr,
        Name: _named,
        Uuid: _uuid,
        Raw: _raw,
        Offset: lambda _self, one: f"{one.value:#x}",
    }
