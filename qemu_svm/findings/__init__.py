"""What is to be told: findings, the same for every renderer."""

from __future__ import annotations

from qemu_svm.findings.inspection import findings
from qemu_svm.findings.model import Finding, Severity

__all__ = ["Finding", "Severity", "findings"]
