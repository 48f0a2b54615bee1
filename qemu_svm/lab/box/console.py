"""Crashes, panics and stalls in a kernel's log."""

from __future__ import annotations

import re

_TROUBLE = re.compile(
    r"Kernel panic|BUG: |Oops: |kernel BUG at|general protection fault|"
    r"Unable to handle kernel|double fault|rcu: INFO: .*detected .*stall|"
    r"INFO: task .* blocked for more than|watchdog: BUG"
)
_STAMP = re.compile(r"^\[ *\d+\.\d+\] ")
_END = re.compile(r"---\[ end ")
_LINES = 80


def first_trouble(text: str) -> str | None:
    """Return the first oops, BUG, panic or stall in a kernel's log, with its trace; else None."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if _TROUBLE.search(line):
            found = []
            for later in lines[at : at + _LINES]:
                found.append(_STAMP.sub("", later))
                if _END.search(later):
                    break
            return "\n".join(found)
    return None


def headline(trouble: str) -> str:
    """Return the first line of what :func:`first_trouble` found."""
    return trouble.splitlines()[0].strip()
