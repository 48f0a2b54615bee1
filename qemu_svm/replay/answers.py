"""What a kernel answers to a plan, in a form in which kernels can be told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qemu_svm.model.kvm.vcpu import RunEnd
from qemu_svm.replay.job import ReplayResult, ReplayStep

_EXIT_CODE = slice(0x70, 0x78)  # in vmcb12


@dataclass(frozen=True, slots=True)
class StepAnswer:
    """The answer to one step.

    :param errno: its name; None if the step was accepted.
    :param run: how KVM_RUN ended, see :class:`qemu_svm.replay.job.RunResult`; None for other
        steps.
    :param exit_code: what vmcb12 says, if L1 got control back.
    :param state: what was read after it, by name; empty if the state does not count.
    """

    step: str
    errno: str | None
    run: str | None = None
    exit_code: int | None = None
    state: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a plan.

    :param steps: those that were finished.
    :param end: as in :class:`qemu_svm.replay.target.JobResult`.
    :param error: why it ended; not for crashes, whose words differ from run to run.
    """

    steps: tuple[StepAnswer, ...]
    end: str = "done"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which two answers differ.

    :param number: of the step, from 1.
    :param step: its text; empty if one of the two did not come so far.
    :param name: ``errno``, ``run``, ``exit_code``, ``end``, or a part of the state.
    """

    number: int
    step: str
    name: str
    before: Any
    after: Any


def answer_of(result: ReplayResult, *, state: bool) -> Answer:
    """Return the answer in the result of a replay.

    :param state: it consists of the state after each step as well.
    """
    steps = tuple(_step(step, state=state) for step in result.steps)
    return Answer(steps, result.end, None if result.end == "host" else result.error)


def _step(seen: ReplayStep, *, state: bool) -> StepAnswer:
    found = tuple(sorted(seen.state.items(), key=lambda pair: pair[0])) if state else ()
    run, code = None, None
    if seen.run is not None:
        run = seen.run.result
        if run == RunEnd.EXIT and seen.run.vmcb12:
            code = int.from_bytes(seen.run.vmcb12[_EXIT_CODE], "little")
    return StepAnswer(seen.step.text, seen.errno, run, code, found)


def differences(before: Answer, after: Answer) -> Iterator[Difference]:
    """Yield in what two answers to the same plan differ; steps after the first that does, not.

    What follows a step that was answered differently is its consequence.
    """
    for number, (one, two) in enumerate(zip(before.steps, after.steps, strict=False), 1):
        found = list(_in_step(number, one, two))
        if found:
            yield from found
            return
    ends = [(len(one.steps), one.end, one.error) for one in (before, after)]
    if ends[0] != ends[1]:
        shorter = min(before, after, key=lambda one: len(one.steps))
        longer = max(before, after, key=lambda one: len(one.steps))
        at = len(shorter.steps)
        text = longer.steps[at].step if at < len(longer.steps) else ""
        yield Difference(at + 1, text, "end", _end(before), _end(after))


def _end(answer: Answer) -> str:
    return f"{answer.end}: {answer.error}" if answer.error else answer.end


def _in_step(number: int, before: StepAnswer, after: StepAnswer) -> Iterator[Difference]:
    for name in ("errno", "run", "exit_code"):
        one, two = getattr(before, name), getattr(after, name)
        if one != two:
            yield Difference(number, before.step, name, one, two)
    old, new = dict(before.state), dict(after.state)
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            yield Difference(number, before.step, name, old[name], new[name])
