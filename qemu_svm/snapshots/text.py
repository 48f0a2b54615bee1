"""JSON of strangers: size, depth and number of members are limited before it is parsed."""

from __future__ import annotations

import json
from typing import Any

from qemu_svm.errors import LimitExceeded, SourceError
from qemu_svm.limits import Limits


def parse_json(text: bytes, where: str, limits: Limits) -> Any:
    """Parse JSON.

    :param where: for errors.
    :raises LimitExceeded: larger, or with more members, than the limit.
    :raises SourceError: it is not JSON.
    """
    for what, found, most, name in (
        ("bytes", len(text), limits.snapshot_bytes, "snapshot_bytes"),
        ("objects and lists", text.count(b"{") + text.count(b"["), limits.description_items,
         "description_items"),
    ):  # fmt: skip
        if found > most:
            raise LimitExceeded(
                f"'{where}' has more {what} than the limit",
                offset=0,
                expected=f"at most {most}",
                found=f"{found}",
                hint=f"raise it with --limit {name}=NUMBER",
            )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SourceError(f"'{where}' is not JSON: {what[:200]}") from error
