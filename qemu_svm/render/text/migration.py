"""A migration in one line, while it runs."""

from __future__ import annotations

from qemu_svm.qmp.answers import Migration
from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words

_MEGABIT = 1_000_000 / 8


def progress_line(migration: Migration) -> str:
    """Return state, progress, rate, and how fast the guest dirties pages; short."""
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
        parts.append(f"stop ~{migration.expected_downtime} ms")
    return ", ".join(parts)
