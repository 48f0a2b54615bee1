"""Recorded ioctls of a restore: read, split into phases, judged."""

from __future__ import annotations

from qemu_svm.restore.trace.model import Trace, VcpuTrace, read_trace

__all__ = ["Trace", "VcpuTrace", "read_trace"]
