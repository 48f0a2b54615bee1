"""Recorded puts in the JSON documents of ``simulate`` and ``replay``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from qemu_svm.render.json.observed import observed

if TYPE_CHECKING:
    from qemu_svm.findings.recorded import RecordedDifference  # imports the model
    from qemu_svm.machine.recorded import RecordedPut


def recorded_put(put: RecordedPut) -> dict[str, Any]:
    """Return which put it is."""
    return {
        "vm": put.vm,
        "put": put.number,
        "puts": put.count,
        "ran": put.ran,
        "ran_at": put.ran_at or None,
        "carried": [call.record for call in put.before],
        "not_known": list(put.lacking),
    }


def recorded_difference(
    found: RecordedDifference | None, whose: Literal["kernel", "model"]
) -> dict[str, Any] | None:
    """Return where a recording and other answers part.

    :param whose: the key of the other answer.
    """
    if found is None:
        return None
    return {
        "step": found.step,
        "record": found.record,
        "ioctl": f"KVM_{found.ioctl}",
        "name": found.name,
        "recorded": observed(found.name, found.recorded),
        whose: observed(found.name, found.answer),
    }
