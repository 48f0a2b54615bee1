"""Every rule of a restore by its id, out of the rooms that evaluate them.

* checks of KVM (``GET- SET- SV- C- S- R- U-``): :mod:`qemu_svm.model.rules`;
* the order of ioctls (``O- T-``): :mod:`qemu_svm.trace.rules`, and those that depend on
  what a stream holds in :mod:`qemu_svm.findings.advisories`;
* consistency (``X-``): :mod:`qemu_svm.findings.consistency`;
* advisories (``A- K- Q-``): :mod:`qemu_svm.findings.advisories`, those that a change of KVM
  repaired in :mod:`qemu_svm.findings.fixes`, about QEMU in :mod:`qemu_svm.findings.qemus`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qemu_svm.findings.advisories import ADVISORIES, DATA_ORDERS
from qemu_svm.findings.consistency import CONSISTENCY
from qemu_svm.findings.fixes import FIXES
from qemu_svm.findings.qemus import QEMU_RULES
from qemu_svm.model.rules import CHECKS
from qemu_svm.rules import Rule
from qemu_svm.trace.rules import ORDERS

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.id: rule
        for rule in (
            *CHECKS,
            *(one.rule for one in DATA_ORDERS),
            *(one.rule for one in ADVISORIES),
            *(one.rule for one in FIXES),
            *CONSISTENCY,
            *QEMU_RULES,
            *ORDERS,
        )
    }
)
"""All rules by id, in the order in which ``check --rules`` lists them."""
