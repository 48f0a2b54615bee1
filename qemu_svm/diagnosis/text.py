"""A line of a log without what a terminal, a logger or a container runtime put around it."""

from __future__ import annotations

import json
import re

_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-9;:?]{0,32}[@-~]"
                      r"|\x1b\][^\x07\x1b]{0,256}(?:\x07|\x1b\\)?"
                      r"|(?:#033|\\x1b|\\u001b)\[[0-9;]{0,16}m")  # fmt: skip
_KEYS = ("MESSAGE", "message", "msg", "log", "text", "line", "error", "err")
_DEEP = 3


def plain(line: str) -> str:
    """Return the words of a line: no colours, and the message of a JSON object.

    A line of JSON (``journalctl -o json``, container runtimes) becomes its message and then
    its other short texts, so that whatever it says is found.
    """
    for _ in range(_DEEP):
        stripped = line.strip()
        if not (stripped.startswith("{") and stripped.endswith("}")):
            break
        try:
            found = json.loads(stripped)
        except (ValueError, RecursionError):
            break
        if not isinstance(found, dict):
            break
        words = _words(found)
        if not words:
            break
        line = words
    return _ESCAPES.sub("", line).rstrip()


def _words(found: dict[str, object]) -> str:
    said = [_text(found[key]) for key in _KEYS if key in found]
    said += [_text(value) for key, value in found.items() if key not in _KEYS]
    return " ".join(one for one in said if one).replace("\n", " ")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(one, int) for one in value):
        # journald writes a message with escape sequences as numbers of bytes.
        try:
            return bytes(value).decode("utf-8", "replace")
        except ValueError:
            return ""
    if isinstance(value, dict):
        return _words({str(key): one for key, one in value.items() if not isinstance(one, dict)})
    return ""
