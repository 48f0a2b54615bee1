"""A libvirt domain's XML without what people, hosts and networks have named.

Elements and the names of attributes stay; of values only those that are libvirt's own words
or numbers.  What is not known to be one is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_OMITTED = "[left out]"
_WORDS = frozenset(
    {
        *("type", "arch", "machine", "bus", "unit", "mode", "check", "fallback", "policy", "model"),
        *("offset", "tickpolicy", "present", "placement", "state", "enabled", "event", "action"),
        *("cache", "io", "discard", "device", "format", "track", "migratable", "heads"),
        *(
            "primary",
            "domain",
            "slot",
            "function",
            "index",
            "controller",
            "target",
            "multifunction",
        ),
        *("current", "cpus", "sockets", "dies", "clusters", "cores", "threads", "backend", "mask"),
    }
)
"""Attributes whose values are libvirt's or QEMU's words."""

_WITH_NAME = frozenset({"feature", "timer", "driver"})
"""Elements whose ``name`` is a word too."""

_TEXTS = frozenset(
    {"memory", "currentMemory", "vcpu", "type", "on_poweroff", "on_reboot", "on_crash", "model"}
    | {"vendor", "emulatorpin"}
)
"""Elements whose text is a word or a number."""

_WORD = re.compile(r"[\w.+-]{1,40}")
_SECRET = re.compile(r">([^<>]{3,})<|=\s*(?:\"([^\"]{3,})\"|'([^']{3,})')")
_COMMON = re.compile(r"[a-z]+|\d{1,5}|0x[0-9a-f]{1,4}|[A-Z][\w.-]*|[\w.-]*\d+\.\d+|pc|q35")


def redacted_xml(text: str) -> str:
    """Return the document with its values left out, or a note if it cannot be parsed."""
    from xml.etree import ElementTree as ET

    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError):
        return "[left out: not XML that can be parsed]"
    _redact(root)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")


def _redact(root: Element) -> None:
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        for name, value in element.attrib.items():
            kept = name in _WORDS or (name == "name" and tag in _WITH_NAME)
            if not (kept and _WORD.fullmatch(value)):
                element.attrib[name] = _OMITTED
        if element.text and element.text.strip():
            kept = tag in _TEXTS and _WORD.fullmatch(element.text.strip()) is not None
            element.text = element.text.strip() if kept else _OMITTED
        element.tail = None


def secrets_of_xml(text: str) -> list[str]:
    """Return the values in a document that may be names, to be left out elsewhere as well."""
    return list(dict.fromkeys(_values(text)))


def _values(text: str) -> Iterator[str]:
    for match in _SECRET.finditer(text):
        value = (match[1] or match[2] or match[3] or "").strip()
        if len(value) >= 3 and _COMMON.fullmatch(value) is None:
            yield value
