"""A restore as a picture: steps, the state that each writes, what L2 and L1 run with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qemu_svm.findings.verdict import Judgement, RegisterDifference
from qemu_svm.model.area import Area
from qemu_svm.model.simulate import Result, Simulation
from qemu_svm.render.html.fields import Shown, content

COLOURS = 10
"""Colours of steps; a further step has that of the first again."""

_LANE, _STEPS, _ROW, _HEAD = 124, 168, 30, 34
_BAR, _LABEL, _LEAST = 44, 22, 70
_BRIEF = 14
_WORDS = 17


@dataclass(frozen=True, slots=True)
class Node:
    """What a step writes in an area.

    :param names: registers, in the order of the area.
    """

    x: int
    y: int
    area: str
    names: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class DrawnStep:
    """A row of the picture."""

    number: int
    text: str
    label: str
    y: int
    colour: int
    error: str
    rule: str
    notes: tuple[str, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Registers of a level that one step wrote.

    :param wrong: those that are not what was saved.
    """

    x: float
    width: float
    step: int
    colour: int
    names: tuple[str, ...]
    wrong: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """What a level runs with."""

    level: str
    words: str
    y: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class WrongValue:
    """A register that is not what was saved."""

    level: str
    register: str
    value: Shown
    wanted: Shown
    whose: str
    step: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """The whole picture and its size."""

    kernel: str
    about: str
    verdict: str
    lines: tuple[str, ...]
    lanes: tuple[tuple[str, int], ...]
    steps: tuple[DrawnStep, ...]
    bars: tuple[Bar, ...]
    wrong: tuple[WrongValue, ...]
    more_wrong: int
    width: int
    height: int


def drawing(simulation: Simulation, judgement: Judgement) -> Drawing:
    """Return the picture of a restore."""
    written = [_written(result, before) for result, before in _pairs(simulation)]
    names = dict.fromkeys(name for one in written for name in one)
    lanes = tuple((name, _STEPS + _LANE * at) for at, name in enumerate(names))
    places = dict(lanes)
    steps = []
    for at, (result, areas) in enumerate(zip(simulation.results, written, strict=True)):
        y, text = _HEAD + _ROW * at, result.step.text
        label = f"{result.number} {text if len(text) <= _WORDS else text[: _WORDS - 1] + '…'}"
        steps.append(
            DrawnStep(
                result.number, text, label, y, result.number % COLOURS,
                result.errno or "", result.failed or "", result.notes,
                tuple(Node(places[name], y, name, registers, _some(registers))
                      for name, registers in areas.items()),
            )
        )  # fmt: skip
    width = max(_STEPS + _LANE * len(lanes), 640)
    bars = tuple(_bars(simulation, judgement, _HEAD + _ROW * len(steps) + 12, width))
    height = (bars[-1].y + _BAR if bars else _HEAD + _ROW * len(steps)) + 8
    shown = judgement.differences[:_BRIEF]
    return Drawing(
        simulation.kernel.name, simulation.kernel.about, judgement.verdict.value,
        judgement.lines, lanes, tuple(steps), bars, tuple(map(_wrong, shown)),
        len(judgement.differences) - len(shown), width, height,
    )  # fmt: skip


def _pairs(simulation: Simulation) -> list[tuple[Result, Mapping[str, Area]]]:
    before = simulation.start.areas
    found = []
    for result in simulation.results:
        found.append((result, before))
        before = result.state.areas
    return found


def _written(result: Result, before: Mapping[str, Area]) -> dict[str, tuple[str, ...]]:
    # Names of what differs from before, or was written again.
    found = {}
    for name, area in result.state.areas.items():
        old = before.get(name)
        names = tuple(
            one for one in area
            if old is None or one not in old or area.content(one) != old.content(one)
            or area.writer(one) != old.writer(one)
        )  # fmt: skip
        if names:
            found[name] = names
    return found


def _some(names: Sequence[str], room: int = 15) -> str:
    # As many names as there is room for, and how many more.
    text = ""
    for at, name in enumerate(names):
        left = len(names) - at
        more = f" +{left - 1}" if left > 1 else ""
        if len(text) + len(name) + len(more) + 1 > room:
            return f"{text} +{left}" if text else f"{left} values"
        text += f"{' ' if text else ''}{name}"
    return text


def _bars(simulation: Simulation, judgement: Judgement, y: int, width: int) -> list[Bar]:
    outcome = next((one.outcome for one in simulation.results if one.outcome is not None), None)
    if outcome is None:
        return []
    bars: list[Bar] = []
    levels = (
        (outcome.level, outcome.entry, "runs with"),
        ("L1", outcome.l1, "gets back, at the next #VMEXIT"),
    )
    for level, area, words in levels:
        if area is None or not level:
            continue
        top = y + _LABEL + len(bars) * (_BAR + _LABEL)
        wrong = {one.register for one in judgement.differences if one.level == level}
        bars.append(Bar(level, words, top, _parts(area, wrong, width)))
    return bars


def _parts(area: Area, wrong: set[str], width: int) -> tuple[Part, ...]:
    by_step: dict[int, list[str]] = {}
    for name in area:
        by_step.setdefault(area.writer(name).step, []).append(name)
    if not by_step:
        return ()
    least = min(_LEAST, width / len(by_step))
    share = (width - least * len(by_step)) / sum(map(len, by_step.values()))
    x, parts = 0.0, []
    for step, names in sorted(by_step.items()):
        wide = least + share * len(names)
        bad = tuple(name for name in names if name in wrong)
        shown = [*bad, *(name for name in names if name not in wrong)]
        text = _some(shown, int((wide - 12) / 6.6))
        colour = step % COLOURS
        parts.append(Part(round(x, 1), round(wide, 1), step, colour, tuple(names), bad, text))
        x += wide
    return tuple(parts)


def _wrong(one: RegisterDifference) -> WrongValue:
    return WrongValue(
        one.level, one.register, content(one.register, one.value),
        content(one.register, one.wanted), one.whose, one.step,
    )  # fmt: skip
