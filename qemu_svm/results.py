"""What the results of all verbs have in common."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any, ClassVar


class Result:
    """A frozen value that a verb shows.

    ``verb`` names its two renderers, ``render/text/VERB`` and ``render/json/VERB``.
    """

    __slots__ = ()
    verb: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]  # what fields() asks for

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {', '.join(one.name for one in fields(self))}>"

    def to_json(self) -> dict[str, Any]:
        """The JSON document of the verb, as ``docs/json.md`` describes it."""
        # By name and when asked: a room left of render does not import it.
        renderer = import_module(f"qemu_svm.render.json.{self.verb}")
        document: dict[str, Any] = renderer.render(self)
        return document
