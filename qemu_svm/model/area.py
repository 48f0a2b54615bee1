"""Sets of registers that remember who wrote each of them.

A restore goes wrong silently when the last writer of a register was not the
right one, so every value carries its writer: the step of the plan and the
kernel function.  Copying an area copies the writers with the values: what
SREGS wrote into vmcb01 is still SREGS' when KVM copies it to vmcb02.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qemu_svm.x86.segments import Segment

Content = int | Segment


@dataclass(frozen=True, slots=True)
class Writer:
    """The step of the plan (0 for the vCPU's reset) and the function that wrote a value."""

    step: int
    function: str


RESET = Writer(0, "reset")


class Area:
    """Named values with their writers.

    :param values: to begin with, all written by ``writer``.
    """

    def __init__(
        self, name: str, values: Mapping[str, Content] | None = None, writer: Writer = RESET
    ) -> None:
        self.name = name
        self._values: dict[str, Content] = dict(values or {})
        self._writers: dict[str, Writer] = dict.fromkeys(self._values, writer)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, name: str) -> int:
        """Return a number; 0 if the area has none of that name."""
        value = self._values.get(name, 0)
        return value if isinstance(value, int) else 0

    def segment(self, name: str) -> Segment:
        """Return a segment; an empty one if the area has none of that name."""
        value = self._values.get(name)
        return value if isinstance(value, Segment) else Segment(0, 0, 0, 0)

    def content(self, name: str) -> Content:
        """Return a value of either kind.

        :raises KeyError: no such name.
        """
        return self._values[name]

    def writer(self, name: str) -> Writer:
        """Return the last writer of a value."""
        return self._writers.get(name, RESET)

    def set(self, name: str, value: Content, writer: Writer) -> None:
        """Write one value."""
        self._values[name] = value
        self._writers[name] = writer

    def copy_from(self, other: Area, names: Iterable[str] | None = None) -> None:
        """Copy values together with their writers (all of them without ``names``)."""
        if names is None:
            self._values.update(other._values)
            self._writers.update(other._writers)
            return
        for name in names:
            if name in other:
                self.set(name, other.content(name), other.writer(name))

    def clear(self) -> None:
        """Remove all values."""
        self._values.clear()
        self._writers.clear()

    def copy(self, name: str | None = None) -> Area:
        """Return an independent copy."""
        made = Area(name or self.name)
        made._values = self._values.copy()
        made._writers = self._writers.copy()
        return made

    def items(self) -> Iterator[tuple[str, Content]]:
        """The values with their names."""
        return iter(self._values.items())
