"""Every rule of a restore by its id, out of the rooms that evaluate them.

* checks of KVM (``GET- SET- SV- C- S- R- U-``): :mod:`qemu_svm.model.rules`;
* the order of ioctls (``O- T-``): :mod:`qemu_svm.trace.rules`, and those that depend on
  what a stream holds in :mod:`qemu_svm.findings.advisories`;
* consistency (``X-``): :mod:`qemu_svm.findings.consistency`, states that no processor can
  be in :mod:`qemu_svm.findings.impossible`, recorded puts :mod:`qemu_svm.findings.recorded`;
* advisories (``A- K- Q-``): :mod:`qemu_svm.findings.advisories`, those that a change of KVM
  repaired in :mod:`qemu_svm.findings.fixes`, about QEMU in :mod:`qemu_svm.findings.qemus`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from qemu_svm.errors import PlanError
from qemu_svm.findings.advisories import EVERY
from qemu_svm.findings.consistency import CONSISTENCY
from qemu_svm.findings.fixes import rules_of
from qemu_svm.findings.impossible import IMPOSSIBLE
from qemu_svm.findings.qemus import QEMU_RULES
from qemu_svm.findings.recorded import RECORDED
from qemu_svm.findings.results import RuleList
from qemu_svm.model.kernels.table import find as find_changes
from qemu_svm.model.rules import CHECKS
from qemu_svm.rules import Rule
from qemu_svm.trace.rules import ORDERS

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.id: rule
        for rule in (
            *CHECKS,
            *(one.rule for one in EVERY),
            *CONSISTENCY,
            *IMPOSSIBLE,
            *RECORDED,
            *QEMU_RULES,
            *ORDERS,
        )
    }
)
"""All rules by id, in the order in which ``check --rules`` lists them."""


_ID = re.compile(r"\s*([A-Za-z]+)-?0*(\d+)([A-Za-z]?)\s*")


def _rule(word: str) -> Rule | None:
    # In either case, without the hyphen and leading zeros if need be: ``o-4`` is O-04.
    found = _ID.fullmatch(word)
    return found and RULES.get(f"{found[1].upper()}-{found[2]:>02}{found[3].lower()}")


def all_rules() -> RuleList:
    """Return every rule."""
    return RuleList(tuple(RULES.values()))


def explained(word: str) -> RuleList:
    """Return the rule with this id, or the changes of KVM with this CVE number or commit.

    :raises PlanError: there is none; ``near`` has similar ids of rules.
    """
    rule = _rule(word)
    if rule is not None:
        return RuleList((rule,))
    changes = find_changes(word)
    if changes:
        rules = tuple(RULES[one] for change in changes for one in rules_of(change.id))
        return RuleList(rules, changes)
    import difflib

    near = difflib.get_close_matches(word.upper(), RULES, cutoff=0.4) or tuple(RULES)[:6]
    raise PlanError(f"there is no rule, CVE or commit '{word}'", near=near)
