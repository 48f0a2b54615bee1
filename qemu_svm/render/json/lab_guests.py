"""The JSON document of ``lab capture --guests``, version 1 (``docs/guests.md``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qemu_svm.lab.results import GuestList
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: GuestList) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "guests": [
            {
                "name": guest.name,
                "about": guest.about,
                "mode": guest.mode.value,
                "nested_paging": guest.nested_paging,
                "vcpus": [asdict(state) for state in guest.vcpus],
                "counters": list(guest.counters),
            }
            for guest in result.guests
        ],
    }
