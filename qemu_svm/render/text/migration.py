"""A migration in words: one line while it runs, a report of a capture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import HEADING, entry, size_words

if TYPE_CHECKING:
    from qemu_svm.qmp.answers import Migration
    from qemu_svm.qmp.capture import Captured
    from qemu_svm.qmp.restore import Restored
    from qemu_svm.rules import Finding

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
        parts.append(f"stop ~{migration.expected_downtime} ms")
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


def restored_report(path: str, done: Restored, socket: str | None) -> Iterable[Text]:
    """Lines about a restore that succeeded.

    :param socket: where QMP listens, if the user may use it.
    """
    yield Text(printable(path), HEADING).append(f": taken by QEMU {done.version}")
    yield entry("size", f"{size_words(done.size)}, in {done.seconds:.2f} s")
    yield entry("guest", done.status.state)
    if socket is not None:
        yield entry("QMP", f"unix:{socket}")


def refused_report(path: str, reason: Sequence[str], known: Sequence[Finding]) -> Iterable[Text]:
    """Lines about a stream that QEMU did not take: its words, and the stream's side."""
    yield Text(printable(path), HEADING).append(": QEMU did not take it", "bold red")
    for line in reason or ["nothing: its own log may say why"]:
        yield entry("QEMU says", line)
    for finding in known:
        yield entry("stream", finding.message)


def _guest(done: Captured) -> str:
    if done.after.running:
        pause = done.stopped
        return "runs on" + (f"; was stopped for {pause * 1000:.0f} ms" if pause else "")
    if done.after.state == done.before.state:
        return f"{done.after.state}, as before"
    if done.after.state == "postmigrate":
        return f"still stopped (was {done.before.state}; QEMU calls it postmigrate now)"
    return f"{done.after.state} (was {done.before.state})"
