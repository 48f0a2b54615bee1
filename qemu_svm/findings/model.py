"""What is to be told about a stream."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qemu_svm.errors import StreamError


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.  ``offset`` is where it shows in the stream, if anywhere."""

    severity: Severity
    rule: str
    message: str
    offset: int | None = None


def from_error(error: StreamError) -> Finding:
    """Make a finding of what stopped or disturbed the reading."""
    text = error.detail()
    return Finding(
        Severity.ERROR,
        error.rule,
        f"{text} ({error.hint})" if error.hint else text,
        error.offset,
    )
