"""What is wrong with a stream, or would go wrong with it: findings of every kind."""

from __future__ import annotations

from qemu_svm.findings.inspection import findings

__all__ = ["findings"]
