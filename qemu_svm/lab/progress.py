"""Reports of progress, which the command line shows and other callers may ignore."""

from __future__ import annotations


class Progress:
    """Ignores all reports; subclasses show them."""

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report the step that is being done now.

        :param done, total: how much of it; ``total`` is 0 if its size is not known.
        """

    def note(self, what: str) -> None:
        """Report something that stays of interest after the step."""


SILENT = Progress()
"""Ignores all reports."""
