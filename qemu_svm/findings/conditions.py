"""Conditions of a saved vCPU that several rules test."""

from __future__ import annotations

from qemu_svm.model.saved import Saved
from qemu_svm.nested import bits

_NP_ENABLE = 1
_EXCEPTION, _SOFT_INTERRUPT = 3, 4


def soft_event(saved: Saved) -> bool:
    """Whether a software interrupt or exception is to be injected into L2."""
    event = saved.control().get("event_inj")
    return bool(event & bits.EVENT_VALID) and event >> 8 & 7 in (_EXCEPTION, _SOFT_INTERRUPT)


def nested_paging(saved: Saved) -> bool:
    """Whether L1 uses nested paging for L2."""
    return bool(saved.control().get("nested_ctl") & _NP_ENABLE)
