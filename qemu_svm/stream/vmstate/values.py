"""Decoded values: a tree in which every node has its offset and size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

Leaf = int | bool | str | bytes | tuple[int, ...] | None


class Value(NamedTuple):
    """One field, structure, array or subsection.

    A tuple, because a large machine has half a million of them.

    :param type: the vmstate type, or ``subsection`` or ``array``.
    :param offset: of the first byte, in the stream.
    :param size: in bytes.
    :param value: None for nodes with children (and for empty ones).
    """

    name: str
    type: str
    offset: int
    size: int
    value: Leaf = None
    children: tuple[Value, ...] = ()

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.size

    def __index__(self) -> int:
        """The number of a numeric leaf, for ``hex(value)`` and ``int(value)``."""
        if isinstance(self.value, int):
            return int(self.value)
        raise TypeError(f"'{self.name}' ({self.type}) is not a number")

    def child(self, name: str) -> Value | None:
        """Return the first child of that name."""
        for child in self.children:
            if child.name == name:
                return child
        return None

    def number(self, name: str, default: int = 0) -> int:
        """Return the number in the child ``name``, or ``default``."""
        child = self.child(name)
        return child.value if child is not None and isinstance(child.value, int) else default

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Value]]:
        """Yield ``(path, node)`` for everything below, in wire order."""
        for child in self.children:
            path = join(prefix, child.name)
            yield path, child
            yield from child.walk(path)

    def leaves(self) -> Iterator[Value]:
        """Yield everything below that has no children, in no order."""
        left = list(self.children)
        while left:
            node = left.pop()
            if node.children:
                left += node.children
            else:
                yield node

    def resolve(self, path: str) -> Value | None:
        """Return the node at ``path``.

        Field names may themselves hold dots and brackets (``env.cr[0]``), so
        the longest child name that fits is tried first.
        """
        if not path:
            return self
        for child in sorted(self.children, key=lambda c: len(c.name), reverse=True):
            if path.startswith(child.name):
                rest = path[len(child.name) :]
                if rest and rest[0] not in ".[":
                    continue
                found = child.resolve(rest.removeprefix("."))
                if found is not None:
                    return found
        return None


def join(prefix: str, name: str) -> str:
    """Return the path of a child; elements of arrays are named ``[0]``, ``[1]`` and so on."""
    return name if not prefix else prefix + name if name.startswith("[") else f"{prefix}.{name}"
