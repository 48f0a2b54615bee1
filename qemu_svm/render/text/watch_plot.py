"""The curves of ``watch --plot``: what is left, what is sent, what the guest writes, over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from qemu_svm.qmp.watch import Sample
from qemu_svm.render.sizes import size_words
from qemu_svm.render.text.base import FAINT, HEADING

_ROWS = 4
_BLOCKS, _PLAIN = " ▁▂▃▄▅▆▇█", " ...:::##"
"""From empty to full, in eighths of a row."""
_LABEL = 10
_LEAST = 20


def plot(samples: Sequence[Sample], width: int, *, plain: bool = False) -> Iterable[Text]:
    """Return the curves; nothing before there are two samples of a migration.

    :param width: columns of the screen.
    :param plain: the terminal has ASCII only.
    """
    timed = [one for one in samples if one.migration.total]
    if len(timed) < 2:
        return
    start, seconds = timed[0].time, timed[-1].time - timed[0].time
    columns = max(_LEAST, width - _LABEL - 4)
    for title, unit, values in (
        ("left", "", [float(one.migration.remaining or 0) for one in timed]),
        ("sent", "/s", [one.rates.wire or 0.0 for one in timed]),
        ("dirtied", "/s", [one.rates.dirty or 0.0 for one in timed]),
    ):
        most = max(values)
        if not most:
            continue
        yield Text(f"  {title}", HEADING).append(
            f"  at most {size_words(round(most))}{unit}", FAINT
        )
        points = [(one.time - start, value) for one, value in zip(timed, values, strict=True)]
        yield from _curve(_spread(points, seconds, columns), most, _PLAIN if plain else _BLOCKS)
    yield Text(f"{'':{_LABEL}}0 s{f'{seconds:.0f} s':>{columns - 3}}", FAINT)


def _spread(points: Sequence[tuple[float, float]], seconds: float, columns: int) -> list[float]:
    # One value a column: the largest that falls into it, else that before it.
    found: list[float | None] = [None] * columns
    for at, value in points:
        column = min(columns - 1, int(columns * at / seconds)) if seconds > 0 else 0
        found[column] = max(found[column] or 0.0, value)
    last, values = 0.0, []
    for one in found:
        last = last if one is None else one
        values.append(last)
    return values


def _curve(values: Sequence[float], most: float, signs: str) -> Iterable[Text]:
    full = len(signs) - 1
    heights = [round(_ROWS * full * value / most) for value in values]
    for row in reversed(range(_ROWS)):
        line = "".join(signs[min(max(one - row * full, 0), full)] for one in heights)
        yield Text(f"{'':{_LABEL}}").append(line.rstrip() or " ", "cyan")
