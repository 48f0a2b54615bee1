"""The verdict on a recorded put: that of the model, and what a recording lets one say.

The model judges the bytes that the recording has.  What it lacks is not judged; and what was
saved may be known, so that a put of other values is wrong even if KVM takes it.
"""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.findings.recorded import apart_from_saved
from qemu_svm.findings.verdict import RIGHT, Judgement, Verdict, judge_restore, refusals
from qemu_svm.machine import Vcpu
from qemu_svm.machine.recorded import RecordedPut
from qemu_svm.model.plans import WITHOUT_EFFECT
from qemu_svm.model.recorded import IOCTLS, unreadable
from qemu_svm.model.simulate import Simulation

_IDLE = frozenset(IOCTLS[name] for name in WITHOUT_EFFECT)
_MOST = 16


def judge_recorded(simulation: Simulation, vcpu: Vcpu, saved: Vcpu | None) -> Judgement:
    """Judge a simulated restore, of a recording by what it has and what was saved.

    :param saved: the vCPU that a recorded put was to restore; None if it is not known.
    """
    found = judge_restore(simulation)
    put = vcpu.put
    if put is None or not any(step.step.data is not None for step in simulation.results):
        return found
    unknown = tuple(_unknown(put))
    if unknown:
        return Judgement(Verdict.OPEN, (*refusals(simulation), *unknown))
    assumed = tuple(_assumed(put))
    failed = [call for call in put.failed if call.name not in _IDLE]
    if failed and found.verdict in (Verdict.RIGHT, Verdict.OPEN):
        words = [
            f"Record {call.record}: KVM_{call.name} failed with {call.errno} in the recording: "
            "what it carries was not set."
            for call in failed[:_MOST]
        ]
        return Judgement(Verdict.REFUSED, (*words, *assumed), found.differences)
    if saved is not None and found.verdict in (Verdict.RIGHT, Verdict.OPEN):
        apart = apart_from_saved(vcpu, saved)
        if apart:
            lines = [line for line in found.lines if line not in RIGHT]
            words = [f"It is not what was saved: {one}" for one in apart[:_MOST]]
            return Judgement(Verdict.WRONG, (*lines, *words, *assumed), found.differences)
    return Judgement(found.verdict, (*found.lines, *assumed), found.differences)


def _unknown(put: RecordedPut) -> Iterator[str]:
    # What makes any verdict a guess.
    for call in unreadable(put):
        if call.name not in _IDLE:
            yield (
                f"Record {call.record}: KVM_{call.name} has not all of its data, so the state that "
                "it sets is not known."
            )
    nested = any(call.name == "SET_NESTED_STATE" for call in put.before)
    if nested and "NESTED_STATE" in put.lacking:
        yield (
            f"The vCPU ran at record {put.ran_at}, and its nested state was neither read nor put "
            "since: whether it is in L2 is not known."
        )


def _assumed(put: RecordedPut) -> Iterator[str]:
    if put.lacking and put.before:
        yield (
            f"The vCPU ran at record {put.ran_at}; {', '.join(put.lacking)} were not read since, "
            "and are assumed to be as they were put."
        )
