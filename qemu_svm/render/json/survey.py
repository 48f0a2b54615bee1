"""The JSON document of ``survey``, version 1 (``docs/survey.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.render.json.survey_rows import head
from qemu_svm.survey.row import Survey


def render(result: Survey) -> dict[str, Any]:
    """Return the document, with all rows."""
    return {**head(result), "streams": list(result.rows())}
