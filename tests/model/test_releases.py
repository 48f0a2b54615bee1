"""Which profile a kernel's release gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.model.profiles import PROFILES, RELEASED
from qemu_svm.model.releases import Release, profile, release

DEBIAN = "#1 SMP PREEMPT_DYNAMIC Debian {}-1 (2026-09-01)"


@pytest.mark.parametrize(
    ("name", "version", "signature", "found", "kernel"),
    [
        ("6.1.0-50-amd64", DEBIAN.format("6.1.176"), "", "6.1.176", "6.1"),
        ("5.10.0-32-amd64", DEBIAN.format("5.10.223"), "", "5.10.223", "5.10"),
        ("5.10.0-46-amd64", DEBIAN.format("5.10.262"), "", "5.10.262", "5.10.262"),
        ("6.12.117+deb13-amd64", DEBIAN.format("6.12.117"), "", "6.12.117", "6.12.117"),
        ("6.12.107+deb13-amd64", "#1 SMP", "", "6.12.107", "6.12"),
        ("6.18.44", "#1 SMP", "", "6.18.44", "6.12"),
        ("5.15.0-91-generic", "#101-Ubuntu", "Ubuntu 5.15.0-91.101-generic 5.15.131",
         "5.15.131", "5.15"),
        ("7.2.12+deb14-amd64", "#1", "", "7.2.12", "7.2"),
        ("5.14.0-362.el9.x86_64", "#1 SMP", "", "5.14", "5.15"),
        ("6.0.0", "", "", "6.0", "5.17"),
        ("5.9.16", "", "", "5.9.16", "5.8"),
    ],
)  # fmt: skip
def test_releases(name: str, version: str, signature: str, found: str, kernel: str) -> None:
    told = release(name, version, signature)
    assert told is not None
    assert str(told) == found
    best = profile(told)
    assert best is not None
    assert best.name == kernel


def test_before_nested_state() -> None:
    assert profile(Release(5, 7, 3)) is None
    assert profile(Release(4, 19)) is None
    assert release("unknown") is None


@pytest.mark.parametrize("name", RELEASED)
def test_each_profile_stands_for_its_own_release(name: str) -> None:
    # 5.15's and 6.6's names are inside the span that they stand for.
    told = release(name)
    assert told is not None
    found = profile(told)
    assert found is PROFILES[name]
    for one in PROFILES[name].measured:
        measured = release(one)
        assert measured is not None
        assert measured.measured(PROFILES[name])


@given(st.text(), st.text(), st.text())
def test_any_text(name: str, version: str, signature: str) -> None:
    told = release(name, version, signature)
    if told is not None:
        profile(told)
