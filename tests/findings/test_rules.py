"""The tables of rules: complete, consistent, and in step with what evaluates them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from qemu_svm.findings.advisories import ADVISORIES, DATA_ORDERS, known_bugs
from qemu_svm.findings.consistency import CONSISTENCY
from qemu_svm.findings.fixes import FIXES
from qemu_svm.findings.impossible import IMPOSSIBLE
from qemu_svm.findings.qemus import QEMU_RULES
from qemu_svm.findings.recorded import RECORDED
from qemu_svm.findings.rules import RULES
from qemu_svm.model import kvm
from qemu_svm.model.kvm.checks import SET_NESTED_STATE, SET_SREGS
from qemu_svm.model.profiles import PROFILES, RELEASED
from qemu_svm.model.rules import CHECKS
from qemu_svm.rules import Rule, RuleKind, Severity
from qemu_svm.trace.rules import ORDERS

SHARED = "O-28"
"""The one rule that two rooms evaluate."""

TABLES: dict[str, tuple[Rule, ...]] = {
    "checks": CHECKS,
    "orders": ORDERS,
    "orders of data": tuple(one.rule for one in DATA_ORDERS),
    "advisories": tuple(one.rule for one in ADVISORIES),
    "fixes": tuple(one.rule for one in FIXES),
    "consistency": (*CONSISTENCY, *IMPOSSIBLE, *RECORDED),
    "QEMU": QEMU_RULES,
}


def test_every_id_is_one_rule() -> None:
    rules = [rule for table in TABLES.values() for rule in table]
    assert {rule.id for rule in rules} == set(RULES)
    counts = Counter(rule.id for rule in rules)
    assert {rule for rule, count in counts.items() if count > 1} == {SHARED}
    assert len({id(rule) for rule in rules}) == len(RULES)
    for rule in rules:
        assert RULES[rule.id] is rule


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_every_rule_has_words_and_a_source(rule: Rule) -> None:
    assert rule.fails_when
    assert rule.source
    assert rule.means or (rule.kind is RuleKind.ORDER and rule.severity is Severity.INFO)
    assert rule.consequence
    assert rule.advice
    assert set(rule.kernels) <= set(PROFILES)


def test_kinds_belong_to_tables() -> None:
    kinds = {name: {rule.kind for rule in table} for name, table in TABLES.items()}
    assert kinds == {
        "checks": {RuleKind.CHECK},
        "orders": {RuleKind.ORDER},
        "orders of data": {RuleKind.ORDER},
        "advisories": {RuleKind.ADVISORY},
        "fixes": {RuleKind.ADVISORY},
        "consistency": {RuleKind.CONSISTENCY},
        "QEMU": {RuleKind.ADVISORY},
    }


def test_every_check_of_a_profile_is_a_rule_and_the_other_way_round() -> None:
    listed = {check for profile in PROFILES.values() for check in profile.checks}
    assert listed == set(SET_NESTED_STATE) | set(SET_SREGS)
    rules = {rule.id: rule for rule in CHECKS}
    assert listed <= set(rules)
    for check, rule in rules.items():
        assert rule.kernels == tuple(
            name for name, profile in PROFILES.items() if check in profile.checks
        )
    # What no profile lists is checked by the function of an ioctl itself.
    folder = Path(kvm.__file__).parent
    returned = {
        check
        for file in folder.glob("*.py")
        for check in re.findall(r'"([A-Z]+-\d\d)"', file.read_text())
    }
    assert set(rules) <= returned | listed


def test_the_kernels_of_the_missing_mmu_are_those_of_the_profiles() -> None:
    assert RULES[SHARED].kernels == tuple(name for name in RELEASED if not PROFILES[name].mmu_ready)


def test_known_bugs_of_a_kernel() -> None:
    assert {"O-19", "O-21", "O-28"} <= {rule.id for rule in known_bugs(PROFILES["5.10"])}
    assert "O-28" not in {rule.id for rule in known_bugs(PROFILES["6.1"])}
    for profile in PROFILES.values():
        for rule in known_bugs(profile):
            assert profile.name in rule.kernels
