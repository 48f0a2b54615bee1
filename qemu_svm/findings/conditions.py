"""Conditions of a saved vCPU that several rules test."""

from __future__ import annotations

from qemu_svm.machine import Vcpu
from qemu_svm.model.saved import Saved
from qemu_svm.nested import bits

_NP_ENABLE = 1
NMI, EXCEPTION, SOFT_INTERRUPT = 2, 3, 4
"""Types of an event in ``event_inj`` (AMD64 APM volume 2, 15.20)."""

BREAKPOINT, OVERFLOW = 3, 4
"""Vectors of the exceptions that an instruction raises on purpose."""


def event_pending(saved: Saved) -> bool:
    """Whether an event is to be injected into L2."""
    return bool(saved.control().get("event_inj") & bits.EVENT_VALID)


def event_of(saved: Saved, *types: int) -> bool:
    """Whether an event of one of these types is to be injected into L2."""
    return event_pending(saved) and saved.control().get("event_inj") >> 8 & 7 in types


def soft_event(saved: Saved) -> bool:
    """Whether INT n, INT3 or INTO is to be injected into L2 (``is_evtinj_soft`` of nested.c)."""
    soft = saved.control().get("event_inj") & 0xFF in (BREAKPOINT, OVERFLOW)
    return event_of(saved, SOFT_INTERRUPT) or (soft and event_of(saved, EXCEPTION))


def nested_paging(saved: Saved) -> bool:
    """Whether L1 uses nested paging for L2."""
    return bool(saved.control().get("nested_ctl") & _NP_ENABLE)


def intercepts(saved: Saved, name: str) -> bool:
    """Whether L1 intercepts something of L2."""
    return bool(saved.control().get("intercepts") & bits.INTERCEPTS.mask(name))


def run_pending(saved: Saved) -> bool:
    """Whether L1's VMRUN has not entered L2 yet."""
    return bool(saved.nested.flags & bits.RUN_PENDING)


def has_svm(vcpu: Vcpu) -> bool:
    """Whether the stream has SVM state of the vCPU: its CPUID has SVM."""
    return vcpu.nested is not None and vcpu.nested.is_svm
