"""The shortest plan that still shows what a plan showed (delta debugging).

Steps are taken away first, then single settings.

Source: A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing
Input", 2002 (ddmin).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Shows = Callable[[str], bool]


def shrink(plan: str, shows: Shows) -> str:
    """Make a plan as short as it gets.

    :param shows: whether a plan still shows it; it does for ``plan``.
    """
    steps = _ddmin(plan.split(","), lambda some: bool(some) and shows(",".join(some)))
    place = 0
    while place < len(steps):
        name, *settings = steps[place].split(":")
        for number in range(len(settings) - 1, -1, -1):
            fewer = settings[:number] + settings[number + 1 :]
            tried = [*steps[:place], ":".join([name, *fewer]), *steps[place + 1 :]]
            if shows(",".join(tried)):
                settings, steps = fewer, tried
        place += 1
    return ",".join(steps)


def _ddmin(items: Sequence[str], shows: Callable[[Sequence[str]], bool]) -> list[str]:
    kept, parts = list(items), 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if shows(rest):
                kept, parts = rest, max(parts - 1, 2)
                break
        else:
            if parts >= len(kept):
                break
            parts = min(parts * 2, len(kept))
    return kept
