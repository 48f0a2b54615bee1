"""The view of ``watch``: one line for a pipe, an area for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from qemu_svm.qmp.watch import COMPLETED, Sample
from qemu_svm.render.escape import printable
from qemu_svm.render.text import FAINT, HEADING, entry, size_words

_STATE_STYLES = {COMPLETED: "bold green", "failed": "bold red", "cancelled": "yellow"}
_BAR = 40

_KINDS = (
    ("xbzrle-cache", "pages", "xbzrle"),
    ("xbzrle-cache", "cache-miss", "cache misses"),
    ("xbzrle-cache", "overflow", "overflows"),
    ("compression", "pages", "compressed"),
    ("ram", "postcopy-requests", "postcopy requests"),
)
_BYTES = (
    ("precopy-bytes", "precopy"),
    ("downtime-bytes", "while stopped"),
    ("postcopy-bytes", "postcopy"),
    ("multifd-bytes", "multifd"),
)
_LIMITS = ("max-bandwidth", "downtime-limit", "max-postcopy-bandwidth", "multifd-channels",
           "multifd-compression", "cpu-throttle-initial", "max-cpu-throttle",
           "xbzrle-cache-size")  # fmt: skip


def line(sample: Sample) -> Text:
    """Everything that matters, in one line."""
    found = sample.migration
    text = Text(f"{(found.total_time or 0) / 1000:8.1f} s  ")
    text.append_text(_state(sample)).append(f"  guest {printable(sample.vm.state)}")
    if found.passes is not None:
        text.append(f"  pass {found.passes}")
    if found.total:
        text.append(f"  {_percent(sample):.1f}%  sent {size_words(found.transferred or 0)}")
        text.append(f"  left {size_words(found.remaining or 0)}")
    if found.active:
        text.append(_rates(sample))
    if found.downtime is not None:
        text.append(f"  downtime {found.downtime} ms")
    if found.error:
        text.append(f": {printable(found.error)}")
    return text


def area(sample: Sample, title: str) -> Iterable[Text]:
    """The same and more, as the lines of a live area.

    :param title: whose migration it is.
    """
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
        yield entry("rate", _rates(sample).strip() or "-")
        yield entry("pages", ", ".join(_pages(sample)))
        yield entry("bytes", ", ".join(_bytes(sample)) or "-")
    yield entry("time", ", ".join(_times(sample)) or "-")
    throttle = sample.answer.get("cpu-throttle-percentage")
    if isinstance(throttle, int):
        yield entry("throttle", f"vCPUs slowed by {throttle}%")
    on = [name for name, state in sample.capabilities.items() if state]
    yield entry("capabilities", ", ".join(on) or "none")
    limits = [f"{name} {sample.parameters[name]}" for name in _LIMITS if name in sample.parameters]
    yield entry("parameters", Text(printable(", ".join(limits)) or "-", FAINT))


def _state(sample: Sample) -> Text:
    status = sample.migration.status or "no migration"
    return Text(printable(status), _STATE_STYLES.get(status, "bold"))


def _percent(sample: Sample) -> float:
    found = sample.migration
    if found.status == COMPLETED:
        return 100.0
    return 100.0 * (1 - (found.remaining or 0) / (found.total or 1))


def _bar(sample: Sample) -> str:
    percent = _percent(sample)
    full = min(_BAR, max(0, int(percent * _BAR / 100)))
    passes = f", pass {sample.migration.passes}" if sample.migration.passes is not None else ""
    return f"[{'#' * full}{'.' * (_BAR - full)}] {percent:.1f}%{passes}"


def _rates(sample: Sample) -> str:
    rates = sample.rates
    text = "" if rates.wire is None else f"  {_rate(rates.wire)}"
    if rates.dirty:
        text += f"  dirty {_rate(rates.dirty)}"
    if sample.migration.expected_downtime is not None:
        text += f"  downtime ~{sample.migration.expected_downtime} ms"
    if sample.eta is not None:
        text += f"  ETA {sample.eta:.0f} s"
    elif sample.migration.active and rates.dirty and rates.pages is not None:
        text += "  ETA never: the guest writes faster"
    return text


def _rate(rate: float) -> str:
    return f"{size_words(int(rate))}/s"


def _pages(sample: Sample) -> Iterable[str]:
    found = sample.migration
    yield f"{found.normal or 0} normal"
    yield f"{found.zero or 0} zero"
    for group, member, words in _KINDS:
        value = _number(sample.answer.get(group), member)
        if value:
            yield f"{value} {words}"


def _bytes(sample: Sample) -> Iterable[str]:
    for member, words in _BYTES:
        value = _number(sample.answer.get("ram"), member)
        if value:
            yield f"{size_words(value)} {words}"


def _times(sample: Sample) -> Iterable[str]:
    found = sample.migration
    if found.total_time is not None:
        yield f"{found.total_time / 1000:.1f} s"
    if found.setup_time is not None:
        yield f"setup {found.setup_time} ms"
    if found.downtime is not None:
        yield f"downtime {found.downtime} ms"


def _number(group: Any, member: str) -> int | None:
    value = group.get(member) if isinstance(group, Mapping) else None
    return value if isinstance(value, int) else None
