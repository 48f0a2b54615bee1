"""The profile that a release gets."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.errors import PlanError
from qemu_svm.findings.advisories import known_bugs
from qemu_svm.model.kernels import abi
from qemu_svm.model.kernels.changes import Evidence, numbers
from qemu_svm.model.kernels.derive import MEASURED, evidence, profile_of, span_of, spans
from qemu_svm.model.kernels.release import Release, parse, parse_if_any
from qemu_svm.model.profile import Profile
from qemu_svm.model.profiles import PROFILES, RELEASED, profiles, ranges

DEBIAN = "#1 SMP PREEMPT_DYNAMIC Debian {}-1 (2026-09-01)"
_WORDS = {"name", "about", "measured", "read", "numbers", "row"}


def behaviour(profile: Profile | None) -> dict[str, object]:
    assert profile is not None
    return {one.name: getattr(profile, one.name) for one in fields(profile)} | dict.fromkeys(_WORDS)


@pytest.mark.parametrize(
    ("name", "version", "signature", "found", "row"),
    [
        ("6.1.0-50-amd64", DEBIAN.format("6.1.176"), "", "6.1.176", "6.1"),
        ("5.10.0-32-amd64", DEBIAN.format("5.10.223"), "", "5.10.223", "5.10"),
        ("5.10.0-46-amd64", DEBIAN.format("5.10.262"), "", "5.10.262", "5.10.262"),
        ("6.12.117+deb13-amd64", DEBIAN.format("6.12.117"), "", "6.12.117", "6.12.117"),
        ("6.12.107+deb13-amd64", "#1 SMP", "", "6.12.107", "6.12"),
        ("6.18.44", "#1 SMP", "", "6.18.44", "6.18.27"),
        ("5.15.0-91-generic", "#101-Ubuntu", "Ubuntu 5.15.0-91.101-generic 5.15.131",
         "5.15.131", "5.15.124"),
        ("7.2.12+deb14-amd64", "#1", "", "7.2.12", "7.2"),
        ("5.14.0-362.el9.x86_64", "#1 SMP", "", "5.14", "6.1.76"),
        ("6.0.0", "", "", "6.0.0", "6.0.0"),
        ("5.9.16", "", "", "5.9.16", "5.8"),
    ],
)  # fmt: skip
def test_releases(name: str, version: str, signature: str, found: str, row: str) -> None:
    read = parse(name, version, signature)
    assert str(read) == found
    best = profile_of(read)
    assert best is not None
    assert best.row == row
    assert best.name == name


def test_before_nested_state() -> None:
    assert profile_of(Release(5, 7, 3)) is None
    assert profile_of(Release(4, 19, 0)) is None
    assert parse_if_any("unknown") is None


@pytest.mark.parametrize("name", RELEASED)
def test_a_row_behaves_as_its_first_and_last_release(name: str) -> None:
    span = next(one for one in spans() if one.name == name)
    for version in (span.first, span.last):
        assert span_of(version) == span
        assert behaviour(profile_of(Release(*version))) == behaviour(PROFILES[name])


def test_rows_follow_each_other() -> None:
    for one, following in zip(spans(), spans()[1:], strict=False):
        assert one.first <= one.last < following.first


@given(st.sampled_from(list(abi.NEWEST)), st.integers(0, 300))
def test_every_release_behaves_as_its_row(series: str, update: int) -> None:
    if update > abi.NEWEST[series]:
        return
    release = parse(f"{series}.{update}")
    found = profile_of(release)
    assert found is not None
    assert behaviour(found) == behaviour(PROFILES[found.row])


@pytest.mark.parametrize("version", MEASURED)
def test_what_was_measured_says_so(version: str) -> None:
    assert evidence(parse(version)) is Evidence.MEASURED
    found = profile_of(parse(version))
    assert found is not None
    assert version in found.measured


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("6.12.118", Evidence.READ),
        ("6.9.3", Evidence.DERIVED),
        ("5.14.0-427.el9", Evidence.DERIVED),
    ],
)
def test_what_was_not_measured_says_so(text: str, known: Evidence) -> None:
    assert evidence(parse(text)) is known


@pytest.mark.parametrize(
    ("release", "has", "lacks"),
    [
        ("6.12.118", {"SV-18", "R-05", "C-03b", "S-09", "C-07"}, {"C-06", "C-08"}),
        ("6.12.111", {"C-03b", "S-09"}, {"R-05", "SV-18"}),
        ("6.12.43", {"C-07"}, {"C-03b", "S-09", "R-05"}),
        ("6.16.12", {"C-07"}, {"C-03b", "S-09"}),
        ("6.18.15", {"C-03"}, {"C-03b", "S-09"}),
        ("6.18.27", {"C-03b", "S-09"}, {"C-03"}),
        ("6.1.0", {"C-06"}, {"R-04", "C-03b"}),
        ("6.1.100", {"R-04"}, {"C-06", "C-03b"}),
        ("6.6.100", {"C-07", "R-04"}, {"C-06"}),
        ("5.15.131", {"R-04"}, {"C-06"}),
        ("7.2.13", {"C-08", "SV-17", "R-05"}, {"C-03", "SV-18"}),
        ("7.3.4", {"SV-18"}, {"C-03"}),
        ("5.14.0-427.el9.x86_64", {"SV-16"}, {"C-06"}),
    ],
)
def test_checks_of_releases(release: str, has: set[str], lacks: set[str]) -> None:
    (profile,) = profiles(release)
    assert has <= profile.checks
    assert not lacks & profile.checks


def test_faults_of_releases() -> None:
    assert {"O-19", "O-21", "O-28"} <= {rule.id for rule in known_bugs(PROFILES["5.10"])}
    for fixed in ("6.1", "5.15.0-91-generic", "5.14.0-427.el9.x86_64", "5.16.11", "4.18.0-553.el8"):
        assert "O-28" not in {rule.id for rule in known_bugs(profiles(fixed)[0])}, fixed
    for broken in ("5.15.24", "5.16.10", "5.14.21", "5.10.262"):
        assert "O-28" in {rule.id for rule in known_bugs(profiles(broken)[0])}, broken


def test_a_series_is_its_newest_update_and_says_which() -> None:
    (profile,) = profiles("6.1")
    assert profile.name == "6.1"
    assert "6.1.192, the newest update" in profile.about
    assert profiles("6.12")[0].name == "6.12.118"
    assert profiles("6.1.0")[0].numbers == (6, 1, 0)


def test_a_distribution_kernel_says_what_it_is_judged_as() -> None:
    (profile,) = profiles("5.14.0-427.el9.x86_64")
    assert "judged as 6.6.14 because" in profile.about


@pytest.mark.parametrize("name", ["v3", "review", "all", "auto", *RELEASED])
def test_names_that_are_accepted(name: str) -> None:
    assert profiles(name)


@pytest.mark.parametrize(
    ("name", "near"), [("6.2x", "6.2"), ("my-6.12", "6.12"), ("", "7.3"), ("5.4", "5.8")]
)
def test_names_that_are_not(name: str, near: str) -> None:
    with pytest.raises(PlanError) as caught:
        profiles(name)
    assert near in caught.value.near


def test_ranges() -> None:
    assert ranges(RELEASED) == "5.8 to 7.3"
    assert ranges(["6.1", "5.8"]) == "5.8 to 5.9, 6.1.175 to 6.1.192"
    assert ranges(["6.8.12-4-pve", "5.13"]) == "5.13, 6.8.12-4-pve"
    assert ranges(["6.1.0", "6.1.43"]) == "6.1 to 6.1.75"
    assert ranges(["6.6", "6.6.14", "6.6.51", "6.6.140"]) == "6.4.8 to 6.6"
    assert ranges([]) == ""


def test_measured_kernels_are_in_series_that_are_known() -> None:
    for version in MEASURED:
        assert numbers(version)[2] <= abi.NEWEST[version.rpartition(".")[0]]


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("8.0.1", "Linux 8.0.1; the table of changes ends at 7.3.4"),
        ("6.12.9999", "the table of changes ends at 6.12.118 for this series"),
        ("7.3.0-rc7", "a release candidate of 7.3; judged as 7.3.0"),
        ("7.4.0-rc1", "a release candidate of 7.4; judged as 7.4.0; the table of changes ends at"),
        ("5.10.0-136.12.0.86.oe2203sp1.x86_64", "an openEuler kernel; judged as 5.10.0"),
        ("4.18.0-553.rt7.342.el8_10.x86_64", "a RHEL kernel; judged as 5.17.0"),
        ("4.18.0-553.16.1.lve.el8.x86_64", "a RHEL kernel; judged as 5.17.0"),
        ("6.17.8-1.el9.elrepo.x86_64", "Linux 6.17.8"),
    ],
)
def test_what_the_answer_says_of_a_release(name: str, about: str) -> None:
    assert about in profiles(name)[0].about


@pytest.mark.parametrize("name", ["4.18.0-193.el8.x86_64", "5.4.300-1.el8.elrepo.x86_64"])
def test_kernels_that_do_not_restore_nested_state(name: str) -> None:
    with pytest.raises(PlanError, match="does not restore nested SVM state"):
        profiles(name)
