"""Rules that apply to a stream on a destination as JSON: for ``lab restore`` and ``matrix``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qemu_svm.rules import Finding


def rules(why: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return one object for each."""
    return [
        {"rule": one.rule, "severity": one.severity.value, "message": one.message, "do": one.do}
        for one in why
    ]
