"""The templates: compiled once, and printing only through the redaction.

Compiled templates are kept beside them in ``__pycache__``, as Python does with modules: where
that can be written, and unless PYTHONDONTWRITEBYTECODE is set.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

from qemu_svm.render.html.values import Redaction

_TEMPLATES = os.path.join(os.path.dirname(__file__), "templates")


class _Compiled(FileSystemBytecodeCache):
    def __init__(self, *, kept: bool) -> None:
        super().__init__(os.path.join(_TEMPLATES, "__pycache__"))
        self._kept = kept

    def load_bytecode(self, bucket: Bucket) -> None:
        with contextlib.suppress(OSError):
            super().load_bytecode(bucket)

    def dump_bytecode(self, bucket: Bucket) -> None:
        with contextlib.suppress(OSError):
            if self._kept:
                os.makedirs(self.directory, exist_ok=True)
                super().dump_bytecode(bucket)


def filled(name: str, redaction: Redaction, values: dict[str, Any]) -> str:
    """Return a template with its values.

    :param redaction: what every value passes before it is escaped.
    """
    environment = _environment(redaction, kept=not sys.dont_write_bytecode)
    text: str = environment.get_template(name).render(values)
    return text


def _environment(redaction: Redaction, *, kept: bool) -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=redaction.shown,
        bytecode_cache=_Compiled(kept=kept),
    )


def compile_all() -> None:
    """Compile the templates, as ``compileall`` does modules (``make install``)."""
    environment = _environment(Redaction(frozenset()), kept=True)
    for name in environment.list_templates(filter_func=lambda name: "__" not in name):
        environment.get_template(name)
