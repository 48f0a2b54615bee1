"""The report of ``lab bisect``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text

from qemu_svm.lab.bisect import Bisection, Boundary, Tried
from qemu_svm.lab.suites.kernels import Kernel
from qemu_svm.model.kernels.changes import Change
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, columns
from qemu_svm.render.text.observed import observed
from qemu_svm.replay.answers import Answer, Difference

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SHOWN = 12  # differences of the state


def render(result: Bisection) -> Iterable[Text]:
    """Return the answers, which kernel gave which, and where the answer changes."""
    patched = f", with {printable(result.patch)}" if result.patch is not None else ""
    yield Text(f"{printable(result.path)}: plan {printable(result.plan)}{patched}", HEADING)
    answers: list[Answer] = []
    for one in result.tried:
        if one.answer is not None and one.answer not in answers:
            answers.append(one.answer)
    for number, answer in enumerate(answers):
        yield from _answer(_letter(number), answer)
    yield Text()
    yield from columns([_tried(one, result, answers) for one in result.tried])
    if result.left:
        left = ", ".join(one.name_for_option for one in result.left)
        yield Text(f"  not tried: {printable(left)}", FAINT)
    for boundary in result.boundaries:
        yield Text()
        yield from _boundary(boundary, result)
    yield Text()
    yield from _end(result)


def _letter(number: int) -> str:
    return _LETTERS[number] if number < len(_LETTERS) else str(number + 1)


def _answer(name: str, answer: Answer) -> Iterator[Text]:
    bad = [step for step in answer.steps if step.errno or step.run]
    words = []
    for step in bad:
        if step.errno:
            words.append(f"{step.step}: {step.errno}")
        elif step.exit_code is not None:
            words.append(f"{step.step}: L1 has control ({exit_name(step.exit_code)})")
        else:
            words.append(f"{step.step}: {step.run}")
    if not any(step.errno for step in answer.steps):
        words.insert(0, "every step is accepted")
    if answer.end != "done":
        words.append(_ended(answer))
    yield Text(f"  {name}  {printable('; '.join(words))}")


def _ended(answer: Answer) -> str:
    at = f"after step {len(answer.steps)}" if answer.steps else "at the first step"
    if answer.end == "host":
        return f"the host's kernel crashes or hangs {at}"
    return f"ends {at}: {answer.error or answer.end}"


def _tried(tried: Tried, result: Bisection, answers: list[Answer]) -> list[str | Text]:
    role = {result.good.version: "good", result.bad.version: "bad"}.get(tried.kernel.version, "")
    letter = "-" if tried.answer is None else _letter(answers.index(tried.answer))
    why = f"{role} {tried.why}".strip() if tried.why else role
    return [tried.kernel.name_for_option, printable(tried.kernel.version), letter,
            Text(printable(why), FAINT)]  # fmt: skip


def _boundary(boundary: Boundary, result: Bisection) -> Iterator[Text]:
    yield Text(f"{_between(boundary)}", HEADING)
    skipped = _skipped(boundary, result)
    if skipped:
        names = ", ".join(one.name_for_option for one in skipped)
        yield Text(f"  could not be tried: {printable(names)}", FAINT)
    for one in boundary.differences[:_SHOWN]:
        yield Text(f"  {printable(_difference(one))}")
    more = len(boundary.differences) - _SHOWN
    if more > 0:
        yield Text(f"  and {more} more differences, see --json", FAINT)
    for change in boundary.reasons:
        yield Text(f"  table: {_change(change)}")
    others = [one.id for one in boundary.changes if one not in boundary.reasons]
    if others:
        also = "also there" if boundary.reasons else "table"
        yield Text(f"  {also}: {', '.join(others)}", FAINT if boundary.reasons else "")


def _skipped(boundary: Boundary, result: Bisection) -> list[Kernel]:
    first, last = boundary.before.order, boundary.after.order
    return [one.kernel for one in result.tried
            if one.answer is None and first < one.kernel.order < last]  # fmt: skip


def _between(boundary: Boundary) -> str:
    return f"between {boundary.before.name_for_option} and {boundary.after.name_for_option}"


def _difference(one: Difference) -> str:
    step = f"step {one.number} {one.step}".rstrip()
    if one.name == "end":
        return f"{step}: {one.before}, then {one.after}"
    values = (_value(one.name, one.before), _value(one.name, one.after))
    return f"{step}, {one.name}: {values[0]}, then {values[1]}"


def _value(name: str, value: Any) -> str:
    if name == "errno":
        return value or "accepted"
    if name == "exit_code":
        return "none" if value is None else exit_name(value)
    return str(value) if name == "run" else observed(name, value)


def _change(change: Change) -> str:
    numbers = ", ".join((*change.cve, *change.commits))
    return f"{change.id}: {change.title}" + (f" ({numbers})" if numbers else "")


def _end(result: Bisection) -> Iterator[Text]:
    found = result.boundaries
    if not found:
        same = f"{result.good.name_for_option} and {result.bad.name_for_option}"
        yield Text(f"The answer does not change: {same} answer alike", HEADING)
        return
    if len(found) > 1:
        yield Text(f"The answer changes {len(found)} times:", HEADING)
    else:
        yield Text("The answer changes once, as far as kernels were tried:", HEADING)
    for boundary in found:
        yield Text(f"  {_between(boundary)}; {_table(boundary)}")


def _table(boundary: Boundary) -> str:
    named = boundary.reasons or boundary.changes
    if not named:
        return "the table has no change there"
    ids = ", ".join(f"{change.id} ({_where(change, boundary)})" for change in named[:3])
    rest = f" and {len(named) - 3} more" if len(named) > 3 else ""
    unsure = "" if boundary.reasons else ", none of which changes the model's answer"
    return f"the table has {ids}{rest} there{unsure}"


def _where(change: Change, boundary: Boundary) -> str:
    # The update or the release in which the table has it.
    series = boundary.after.order[:2]
    for update in (*change.stable, *change.reverted):
        if tuple(int(part) for part in update.split(".")[:2]) == series:
            return update
    return change.until or change.since
