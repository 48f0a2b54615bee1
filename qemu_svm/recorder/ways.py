"""Which way of recording works on this host: it is tried."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qemu_svm.errors import EnvironmentFault
from qemu_svm.recorder.by_bpf import BpfSource
from qemu_svm.recorder.by_ptrace import NO_TRACING, yama

_BUFFER = 1 << 16


@dataclass(frozen=True)
class Ways:
    """What can be used here.

    :param bpf: why eBPF cannot be; empty if it can.
    :param yama: the setting ``kernel.yama.ptrace_scope``, 0 where there is no Yama.
    """

    bpf: str
    yama: int

    @property
    def ptrace(self) -> bool:
        """Whether commands can be recorded by ptrace."""
        return self.yama < NO_TRACING


def ways() -> Ways:
    """Load the programs of eBPF for a moment, watching nothing; return what works."""
    wake, other = os.pipe()
    why = ""
    try:
        BpfSource(_BUFFER, wake, follow=True).close()
    except EnvironmentFault as error:
        why = str(error)
    finally:
        os.close(wake)
        os.close(other)
    return Ways(why, yama())
