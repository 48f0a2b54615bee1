"""A migration in words: one line while it runs, a report of a capture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text

from qemu_svm.render.escape import printable
from qemu_svm.render.text import HEADING, entry, size_words

if TYPE_CHECKING:
    from qemu_svm.qmp.answers import Migration
    from qemu_svm.qmp.capture import Captured

_MEGABIT = 1_000_000 / 8


def progress_line(migration: Migration) -> str:
    """State, how far, how fast, how fast the guest makes it longer; short."""
    parts = [printable(migration.status or "no migration")]
    if migration.transferred is not None:
        parts.append(f"sent {size_words(migration.transferred)}")
    if migration.remaining is not None:
        parts.append(f"left {size_words(migration.remaining)}")
    if migration.mbps:
        parts.append(f"{size_words(round(migration.mbps * _MEGABIT))}/s")
    if migration.dirty_rate and migration.page_size:
        parts.append(f"dirty {size_words(migration.dirty_rate * migration.page_size)}/s")
    if migration.active and migration.expected_downtime:
        parts.append(f"downtime ~{migration.expected_downtime} ms")
    return ", ".join(parts)


def captured_report(done: Captured) -> Iterable[Text]:
    """Lines about a capture that succeeded."""
    yield Text(printable(done.files[0]), HEADING).append(": complete")
    yield entry("size", size_words(done.size))
    if len(done.files) > 1:
        yield entry("channels", f"{len(done.files) - 1}, in {done.files[1]} and so on")
    yield entry("time", f"{done.seconds:.2f} s")
    yield entry("QEMU", str(done.version))
    yield entry("guest", _guest(done))


def _guest(done: Captured) -> str:
    if done.after.running:
        pause = done.stopped
        return "runs on" + (f"; was stopped for {pause * 1000:.0f} ms" if pause else "")
    if done.after.state == done.before.state:
        return f"{done.after.state}, as before"
    if done.after.state == "postmigrate":
        return f"still stopped (was {done.before.state}; QEMU calls it postmigrate now)"
    return f"{done.after.state} (was {done.before.state})"
