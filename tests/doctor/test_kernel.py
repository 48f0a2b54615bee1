"""Which profile a kernel's release gets."""

from __future__ import annotations

import pytest

from qemu_svm.doctor.kernel import known_bugs, profile_of, version_of
from qemu_svm.restore.kernels import KERNELS


@pytest.mark.parametrize(
    ("release", "version", "signature", "numbers", "profile"),
    [
        ("6.1.0-50-amd64", "#1 SMP Debian 6.1.192-1 (2026-09-01)", None, (6, 1, 192), "6.1"),
        ("5.10.0-32-amd64", "#1 SMP Debian 5.10.223-1", None, (5, 10, 223), "5.10"),
        ("5.10.0-46-amd64", "#1 SMP Debian 5.10.262-1", None, (5, 10, 262), "5.10.262"),
        ("6.12.117+deb13-amd64", "#1 SMP Debian 6.12.117-1", None, (6, 12, 117), "6.12.117"),
        ("6.12.107+deb13-amd64", "#1 SMP", None, (6, 12, 107), "6.12"),
        ("5.15.0-91-generic", "#101-Ubuntu SMP", "Ubuntu 5.15.0-91.101-generic 5.15.131",
         (5, 15, 131), "5.15"),
        ("7.2.12+deb14-amd64", "#1", None, (7, 2, 12), "7.2"),
        ("5.14.0-362.el9.x86_64", "#1 SMP", None, (5, 14, None), "5.15"),
        ("6.0.0", "", None, (6, 0, None), "5.17"),
    ],
)  # fmt: skip
def test_releases(
    release: str, version: str, signature: str | None, numbers: object, profile: str
) -> None:
    found = version_of(release, version, signature)
    assert found == numbers
    assert found is not None
    best = profile_of(found)
    assert best is not None
    assert best.kernel.name == profile


def test_before_nested_state() -> None:
    assert profile_of((5, 7, 3)) is None
    assert profile_of((4, 19, None)) is None
    assert version_of("unknown") is None


def test_bugs_that_profiles_have_are_told() -> None:
    assert {"O-19", "O-21", "O-28"} <= {rule.id for rule in known_bugs(KERNELS["5.10"])}
    assert "O-28" not in {rule.id for rule in known_bugs(KERNELS["6.1"])}
