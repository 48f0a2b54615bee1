"""What the results of all verbs have in common."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar


class Result:
    """A frozen value that a verb shows.

    ``verb`` names its two renderers, ``render/text/VERB`` and ``render/json/VERB``.
    """

    __slots__ = ()
    verb: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The JSON document of the verb, as ``docs/json.md`` describes it."""
        # By name and when asked: a room left of render does not import it.
        renderer = import_module(f"qemu_svm.render.json.{self.verb}")
        document: dict[str, Any] = renderer.render(self)
        return document
