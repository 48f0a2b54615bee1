"""Reduction of a plan to the shortest one with the same effect (delta debugging).

Steps are removed first, then single settings.

Source: A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing
Input", 2002 (ddmin).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

ShowAll = Callable[[Sequence[str]], Sequence[bool]]


def shrink(plan: str, show_all: ShowAll) -> str:
    """Return the shortest plan found that still has the effect.

    :param show_all: which of several plans have the effect; called once for all plans of a
        round.  ``plan`` itself has it.
    """
    steps = _ddmin(plan.split(","), show_all)
    while True:
        fewer = list(_with_one_setting_less(steps))
        answers = show_all([",".join(one) for one in fewer])
        found = next((one for one, shown in zip(fewer, answers, strict=True) if shown), None)
        if found is None:
            return ",".join(steps)
        steps = found


def _with_one_setting_less(steps: Sequence[str]) -> list[list[str]]:
    made = []
    for place, step in enumerate(steps):
        name, *settings = step.split(":")
        for number in range(len(settings)):
            fewer = ":".join([name, *settings[:number], *settings[number + 1 :]])
            made.append([*steps[:place], fewer, *steps[place + 1 :]])
    return made


def _ddmin(items: Sequence[str], show_all: ShowAll) -> list[str]:
    kept, parts = list(items), 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        rests = [kept[:start] + kept[start + size :] for start in range(0, len(kept), size)]
        answers = show_all([",".join(rest) for rest in rests])
        found = next((rest for rest, shown in zip(rests, answers, strict=True) if shown), None)
        if found is not None:
            kept, parts = found, max(parts - 1, 2)
        elif parts >= len(kept):
            break
        else:
            parts = min(parts * 2, len(kept))
    return kept
