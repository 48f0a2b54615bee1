"""The report of ``lab capture --guests``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.lab.results import GuestList
from qemu_svm.render.text.base import columns


def render(result: GuestList) -> Iterable[Text]:
    """Return the guests by name, one on a line."""
    return columns([(guest.name, guest.about) for guest in result.guests])
