"""Where, in a row of kernels, the answer to a plan changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from qemu_svm.replay.answers import Answer

Ask = Callable[[int], Answer | None]
"""Returns the answer of one kernel of the row; None if it cannot be tried."""


@dataclass
class Search:
    """A search in a row of kernels, from the oldest to the newest.

    :param count: how many there are.
    :param answers: by place in the row; None for one that could not be tried.
    """

    count: int
    ask: Ask
    answers: dict[int, Answer | None] = field(default_factory=dict)

    def run(self, suspects: Callable[[], Iterable[int]] = tuple, *, every: bool = False) -> None:
        """Try kernels until each change that is seen lies between two neighbours.

        :param suspects: is called after the two ends; places after which a change is
            expected, so that a change that is taken back again is found too.
        :param every: try all of them.
        """
        self._try(0)
        self._try(self.count - 1)
        for suspect in suspects():
            self._try(suspect)
            self._try(suspect + 1)
        if every:
            for place in range(self.count):
                self._try(place)
        while (middle := self._next()) is not None:
            self._try(middle)

    def boundaries(self) -> list[tuple[int, int]]:
        """Return neighbours that were tried and answer differently.

        Those between them, if any, could not be tried.
        """
        tried = [place for place in sorted(self.answers) if self.answers[place] is not None]
        pairs = itertools.pairwise(tried)
        return [(one, two) for one, two in pairs if self.answers[one] != self.answers[two]]

    def _next(self) -> int | None:
        # The middle of the first pair that differs and has something untried between it.
        for one, two in self.boundaries():
            between = [place for place in range(one + 1, two) if place not in self.answers]
            if between:
                return min(between, key=lambda place: abs(2 * place - one - two))
        return None

    def _try(self, place: int) -> None:
        if place not in self.answers:
            self.answers[place] = self.ask(place)
