"""The table of changes, and the boundaries that it gives."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.model.kernels import abi
from qemu_svm.model.kernels.changes import numbers
from qemu_svm.model.kernels.release import Release, parse
from qemu_svm.model.kernels.table import BY_ID, CHANGES, find


def test_the_format() -> None:
    assert len(BY_ID) == len(CHANGES)
    for change in CHANGES:
        assert re.fullmatch(r"[a-z0-9-]+", change.id)
        assert change.source, change.id
        assert all(re.fullmatch(r"[0-9a-f]{12}", one) for one in change.commits), change.id
        assert all(re.fullmatch(r"CVE-\d{4}-\d{4,5}", one) for one in change.cve), change.id
        for one in (*change.stable, *change.reverted):
            assert re.fullmatch(r"\d+\.\d+\.\d+", one), change.id
        series = [one.rpartition(".")[0] for one in change.stable]
        assert len(series) == len(set(series)), change.id


def test_mainline_order() -> None:
    order = [numbers(change.since) for change in CHANGES]
    assert order == sorted(order)


def test_a_stable_update_is_older_than_the_mainline_release() -> None:
    for change in CHANGES:
        for one in change.stable:
            assert numbers(one)[:2] < numbers(change.since)[:2], change.id


def test_the_newest_updates_hold_every_boundary() -> None:
    for change in CHANGES:
        for one in (*change.stable, *change.reverted):
            series, _, update = one.rpartition(".")
            assert int(update) <= abi.NEWEST[series], (change.id, one)


@pytest.mark.parametrize(
    ("change", "without", "first"),
    [
        ("sregs-efer", "6.12.111", "6.12.112"),
        ("vmmcall-intercepted", "6.12.85", "6.12.86"),
        ("pages-retried", "6.12.116", "6.12.117"),
        ("pages-retried", "7.2.9", "7.2.10"),
        ("lma-without-lme", "6.12.117", "6.12.118"),
        ("lma-without-lme", "7.2.13", "7.3.2"),
        ("nested-migration-null", "5.15.24", "5.15.25"),
        ("nested-migration-null", "5.16.10", "5.16.11"),
        ("shadow-synced", "5.10.257", "5.10.258"),
        ("cs-checked", "6.1.174", "6.1.175"),
        ("cs-checked", "6.17.13", "6.18.27"),
        ("ncr3-checked", "6.12.43", "6.12.86"),
        ("controls-cached-first", "5.10.27", "5.10.28"),
        ("ncr3-low-bits", "5.10.228", "5.10.229"),
    ],
)
def test_boundaries(change: str, without: str, first: str) -> None:
    assert not BY_ID[change].is_in(parse(without))
    assert BY_ID[change].is_in(parse(first))


@pytest.mark.parametrize(
    ("release", "has"),
    [
        ("5.14.21", False), ("5.15.209", False), ("5.16.0", True), ("6.0.19", True),
        ("6.1.0", True), ("6.1.75", True), ("6.1.76", False), ("6.2.16", True), ("6.6.13", True),
        ("6.6.14", False), ("6.7.1", True), ("6.7.2", False), ("6.8.0", False), ("6.12", False),
    ],
)  # fmt: skip
def test_the_check_of_tlb_control_came_and_went(release: str, has: bool) -> None:
    assert BY_ID["tlb-control"].is_in(parse(release)) is has


@given(st.sampled_from(CHANGES), st.sampled_from(list(abi.NEWEST)), st.integers(0, 300))
def test_an_update_keeps_what_the_one_before_had(change: object, series: str, update: int) -> None:
    assert isinstance(change, type(CHANGES[0]))
    if change.until or change.reverted:
        return
    major, minor, _ = numbers(series)
    if change.is_in(Release(major, minor, update)):
        assert change.is_in(Release(major, minor, update + 1))


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("CVE-2021-29657", "controls-cached-first"),
        ("cve-2026-99345", "lma-without-lme"),
        ("2026-45987", "shadow-synced"),
        ("5d291ef0585e", "l1-cr3-triple-fault"),
        ("5d291ef", "l1-cr3-triple-fault"),
        ("5D291EF0585E0123456789ab", "l1-cr3-triple-fault"),
        ("tlb-control", "tlb-control"),
    ],
)
def test_look_up(word: str, change: str) -> None:
    assert [one.id for one in find(word)] == [change]


@pytest.mark.parametrize("word", ["", "5d291", "CVE-1999-0001", "fffffffffff", "x"])
def test_look_up_of_what_is_not_there(word: str) -> None:
    assert find(word) == ()
