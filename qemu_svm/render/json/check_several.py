"""The JSON document of ``check FILE FILE...``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from qemu_svm.errors import SvmStreamError
from qemu_svm.findings.results import CheckReport
from qemu_svm.render.json import check
from qemu_svm.render.json.base import SCHEMA_VERSION


class Unreadable(NamedTuple):
    """A file that could not be judged."""

    path: str
    error: SvmStreamError


def render(files: Iterable[CheckReport | Unreadable]) -> dict[str, Any]:
    """Return the document; of the files one is in memory at a time."""
    return {"schema_version": SCHEMA_VERSION, "files": [_file(one) for one in files]}


def _file(one: CheckReport | Unreadable) -> dict[str, Any]:
    if isinstance(one, Unreadable):
        return {"source": {"path": one.path}, "error": str(one.error)}
    return check.render(one)
