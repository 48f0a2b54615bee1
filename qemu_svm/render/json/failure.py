"""The JSON document of an error, of every verb (``docs/json.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.errors import StreamError, SvmStreamError
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(
    error: BaseException, message: str, exit_status: int, rule: str = "bug"
) -> dict[str, Any]:
    """Return the document.

    :param message: what is printed on standard error, without the hint.
    :param rule: of an error that is none of the library's.
    """
    of_bytes = error if isinstance(error, StreamError) else None
    ours = error if isinstance(error, SvmStreamError) else None
    return {
        "schema_version": SCHEMA_VERSION,
        "error": {
            "rule": rule if ours is None else ours.rule,
            "message": message,
            "hint": None if ours is None else ours.hint,
            "exit_status": exit_status,
            "path": None if of_bytes is None else of_bytes.path,
            "offset": None if of_bytes is None else of_bytes.offset,
            "section": None if of_bytes is None else of_bytes.section,
            "field": None if of_bytes is None else of_bytes.field,
            "expected": None if of_bytes is None else of_bytes.expected,
            "found": None if of_bytes is None else of_bytes.found,
        },
    }
