"""The document of ``survey`` row by row, so that its rows are not in memory at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from qemu_svm.render.json.base import SCHEMA_VERSION
from qemu_svm.survey.row import Survey


def head(result: Survey) -> dict[str, Any]:
    """Return the members of the document before its rows."""
    question = result.question
    return {
        "schema_version": SCHEMA_VERSION,
        "question": {
            "kernels": list(question.kernels),
            "qemu": question.qemu,
            "source": question.source,
            "npt": question.npt,
            "cpu": question.cpu,
            "maxphyaddr": question.maxphyaddr,
        },
        "summary": result.summary.to_json(),
        "continued": result.continued,
    }


def pieces(result: Survey) -> Iterator[str]:
    """Yield the same document as text, without its rows in memory at once."""
    start = json.dumps(head(result), indent=1)
    yield start.removesuffix("\n}") + ',\n "streams": ['
    comma = ""
    for row in result.rows():
        yield f"{comma}\n  {json.dumps(row)}"
        comma = ","
    yield "\n ]\n}\n"
