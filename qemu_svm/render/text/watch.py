"""The view of ``watch``: one line for a pipe, an area for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from qemu_svm.qmp.watch import Sample, Update
from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words
from qemu_svm.render.text.base import FAINT, HEADING, entry

_STATE_STYLES = {"completed": "bold green", "failed": "bold red", "cancelled": "yellow"}
_BAR = 40

_PAGES = (
    ("xbzrle-cache", "pages", "as deltas"),
    ("xbzrle-cache", "cache-miss", "not in the cache"),
    ("xbzrle-cache", "overflow", "too different"),
    ("compression", "pages", "compressed"),
    ("ram", "postcopy-requests", "requested by the destination"),
)
"""Group and member of an answer of query-migrate that counts pages, and words for it."""

_BYTES = (
    ("ram", "precopy-bytes", "during precopy"),
    ("ram", "downtime-bytes", "during downtime"),
    ("ram", "postcopy-bytes", "during postcopy"),
    ("ram", "multifd-bytes", "over multifd"),
    ("vfio", "transferred", "of devices"),
)
"""The same for bytes."""

_LIMITS = (
    ("max-bandwidth", "", "bytes/s"),
    ("downtime-limit", "", "ms"),
    ("max-postcopy-bandwidth", "postcopy-ram", "bytes/s"),
    ("multifd-channels", "multifd", ""),
    ("multifd-compression", "multifd", ""),
    ("xbzrle-cache-size", "xbzrle", "bytes"),
    ("cpu-throttle-initial", "auto-converge", "%"),
    ("cpu-throttle-increment", "auto-converge", "%"),
    ("max-cpu-throttle", "auto-converge", "%"),
)
"""Parameter, the capability that makes it matter (empty: it always does), its unit."""


def render(result: Update, *, title: str | None = None) -> Iterable[Text]:
    """Return the state of a migration: one line, or the lines of a live area.

    :param title: of the live area: whose migration it is.
    """
    return [_line(result.sample)] if title is None else _area(result.sample, title)


def _line(sample: Sample) -> Text:
    found = sample.migration
    parts = [f"guest {printable(sample.vm.state)}"]
    if found.passes is not None:
        parts.append(f"pass {found.passes}")
    if found.total:
        parts.append(f"{_percent(sample):.1f}%")
        parts.append(f"sent {size_words(found.transferred or 0)}")
        parts.append(f"left {size_words(found.remaining or 0)}")
    if found.active:
        parts += _rates(sample)
    if throttle := _number(sample.answer, "cpu-throttle-percentage"):
        parts.append(f"throttled {throttle}%")
    if found.downtime is not None:
        parts.append(f"downtime {found.downtime} ms")
    if found.blockers:
        parts.append(f"blocked for {len(found.blockers)} reasons")
    if found.error:
        parts.append(printable(found.error))
    seconds = "" if found.total_time is None else f"{found.total_time / 1000:.1f} s"
    return Text(f"{seconds:>9}  ").append_text(_state(sample)).append("  " + "  ".join(parts))


def _area(sample: Sample, title: str) -> Iterable[Text]:
    found = sample.migration
    head = Text(printable(title), HEADING).append(": ").append_text(_state(sample))
    yield head.append(f", guest {printable(sample.vm.state)}")
    if found.error:
        yield entry("error", found.error)
    for reason in found.blockers:
        yield entry("blocked", reason)
    if found.total:
        yield entry("RAM", _bar(sample))
        yield entry("sent", f"{size_words(found.transferred or 0)} on the wire, "
                            f"{size_words(found.remaining or 0)} of "
                            f"{size_words(found.total)} left")  # fmt: skip
        yield entry("rate", ", ".join(_rates(sample)) or "-")
        pages = {"normal": found.normal, "zero": found.zero} | _numbers(sample, _PAGES)
        yield entry("pages", ", ".join(f"{n} {kind}" for kind, n in pages.items() if n) or "none")
        sizes = _numbers(sample, _BYTES)
        yield entry(
            "bytes", ", ".join(f"{size_words(n)} {kind}" for kind, n in sizes.items()) or "none"
        )
    yield entry("time", ", ".join(_times(sample)) or "-")
    if throttle := _number(sample.answer, "cpu-throttle-percentage"):
        yield entry("throttle", f"vCPUs are slowed down by {throttle}%")
    on = [name for name, state in sample.capabilities.items() if state]
    yield entry("capabilities", ", ".join(on) or "none")
    yield entry("parameters", Text(", ".join(_limits(sample)), FAINT))


def _state(sample: Sample) -> Text:
    status = sample.migration.status or "no migration"
    return Text(printable(status), _STATE_STYLES.get(status, "bold"))


def _percent(sample: Sample) -> float:
    # Of RAM that need not be sent any more; it falls when the guest writes.
    found = sample.migration
    if found.status == "completed":
        return 100.0
    return 100.0 * (1 - (found.remaining or 0) / (found.total or 1))


def _bar(sample: Sample) -> str:
    percent = _percent(sample)
    full = min(_BAR, max(0, int(percent * _BAR / 100)))
    passes = f", pass {sample.migration.passes}" if sample.migration.passes is not None else ""
    return f"[{'#' * full}{'.' * (_BAR - full)}] {percent:.1f}%{passes}"


def _rates(sample: Sample) -> list[str]:
    rates = sample.rates
    parts = []
    if rates.wire is not None:
        parts.append(f"{size_words(round(rates.wire))}/s")
    if rates.dirty:
        parts.append(f"dirty {size_words(round(rates.dirty))}/s")
    if sample.migration.expected_downtime is not None and sample.vm.running:
        parts.append(f"downtime ~{sample.migration.expected_downtime} ms")
    if sample.eta is not None:
        parts.append(f"ETA {sample.eta:.0f} s")
    elif rates.endless and sample.migration.active:
        parts.append("not converging: the guest writes as fast")
    return parts


def _times(sample: Sample) -> Iterable[str]:
    found = sample.migration
    if found.total_time is not None:
        yield f"{found.total_time / 1000:.1f} s"
    if found.setup_time is not None:
        yield f"setup {found.setup_time} ms"
    if found.downtime is not None:
        yield f"downtime {found.downtime} ms"
    if blocked := _number(sample.answer, "postcopy-blocktime"):
        yield f"vCPUs waited for pages {blocked} ms"


def _limits(sample: Sample) -> Iterable[str]:
    for name, capability, unit in _LIMITS:
        value = sample.parameters.get(name)
        if value is None or (capability and not sample.capabilities.get(capability)):
            continue
        if unit.startswith("bytes") and isinstance(value, int):
            words = size_words(value) + unit.removeprefix("bytes")
        else:
            words = f"{printable(str(value))} {unit}".rstrip()
        yield f"{name} {words}"


def _numbers(sample: Sample, table: Iterable[tuple[str, str, str]]) -> dict[str, int]:
    # Counters that not every migration has; only those that are not 0.
    found = {
        words: _number(sample.answer.get(group), member) or 0 for group, member, words in table
    }
    return {words: value for words, value in found.items() if value}


def _number(group: Any, member: str) -> int | None:
    value = group.get(member) if isinstance(group, Mapping) else None
    return value if isinstance(value, int) else None
