"""Being told what goes on; the command line shows it, a library's user may not care."""

from __future__ import annotations


class Progress:
    """Says nothing; subclasses show what they are told."""

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        """Take note that something is being done now; ``total`` 0 if its size is not known."""

    def note(self, what: str) -> None:
        """Take note of something that the user should know afterwards, too."""


SILENT = Progress()
