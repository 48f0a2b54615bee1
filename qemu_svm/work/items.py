"""What does the items of some work, and what becomes of an item that nobody finishes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Lost:
    """An item that was not finished by anybody.

    :param why: a sentence without a subject: ``the process that did it was killed``.
    """

    why: str


class Runner(Protocol):
    """Whatever does items, in any order."""

    def results(
        self, work: Callable[[T], R], items: Iterable[T]
    ) -> Generator[tuple[T, R | Lost], None, None]:
        """Yield each item with its result when it is there.

        :param work: a function of one item; other processes import it by its name.
        """
        ...


class Here:
    """Does one item after the other, in this process."""

    def results(
        self, work: Callable[[T], R], items: Iterable[T]
    ) -> Generator[tuple[T, R | Lost], None, None]:
        """See :meth:`Runner.results`."""
        for item in items:
            yield item, work(item)
