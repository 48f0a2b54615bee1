"""What ``uname -r`` says, for every distribution that is known."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qemu_svm.model.kernels import abi
from qemu_svm.model.kernels.release import (
    Distribution,
    Known,
    Release,
    ReleaseError,
    parse,
    parse_if_any,
)


@pytest.mark.parametrize(
    ("text", "version", "distribution", "known"),
    [
        ("6.12.118", "6.12.118", "mainline", "stated"),
        ("v6.12.118", "6.12.118", "mainline", "stated"),
        ("6.1.0", "6.1.0", "mainline", "stated"),
        ("6.1", "6.1.192", "mainline", "newest known"),
        ("6.12.y", "6.12.118", "mainline", "newest known"),
        ("7.3.0-rc7", "7.3.0", "mainline", "release candidate"),
        ("7.3-rc7", "7.3.0", "mainline", "release candidate"),
        ("7.3~rc7-amd64", "7.3.0", "mainline", "release candidate"),
        ("6.12.0-rc3-00012-g1234567890ab", "6.12.0", "mainline", "release candidate"),
        ("6.18.0-0.rc5.39.fc44.x86_64", "6.18.0", "Fedora", "release candidate"),
        ("6.12.0-061200rc3-generic", "6.12.0", "Ubuntu", "release candidate"),
        ("6.12.58-061258-generic", "6.12.58", "Ubuntu", "stated"),
        ("6.8.0-060800-generic", "6.8.0", "Ubuntu", "stated"),
        ("6.12.58-00123-gabcdef123456", "6.12.58", "another distribution", "stated"),
        ("6.17.0-7.1-liquorix-amd64", "6.17.7", "Liquorix", "mapped"),
        ("6.17.7-1-liquorix-amd64", "6.17.7", "Liquorix", "stated"),
        ("6.17.8-1.el9.elrepo.x86_64", "6.17.8", "ELRepo", "stated"),
        ("6.1.0-1.el8.elrepo.x86_64", "6.1.0", "ELRepo", "at least"),
        ("6.6.52-1.el9.x86_64", "6.6.52", "another distribution", "stated"),
        ("4.18.0-553.rt7.342.el8_10.x86_64", "4.18.0", "RHEL", "at least"),
        ("5.10.0-136.12.0.86.oe2203sp1.x86_64", "5.10.0", "openEuler", "at least"),
        ("6.6.119_1", "6.6.119", "another distribution", "stated"),
        ("linux-image-6.1.0-44-amd64", "6.1.164", "Debian", "mapped"),
        ("kernel-core-5.14.0-427.el9.x86_64", "5.14.0", "RHEL", "at least"),
        ("vmlinuz-6.8.12-4-pve", "6.8.12", "Proxmox", "stated"),
        ("Linux host 6.1.0-44-amd64 #1 SMP Debian 6.1.164-1 x86_64", "6.1.164", "Debian", "stated"),
        (
            "Linux version 6.12.118+deb13-amd64 (debian-kernel@lists.debian.org) (gcc) #1 SMP",
            "6.12.118",
            "Debian",
            "stated",
        ),
        ("6.1.0-44-amd64", "6.1.164", "Debian", "mapped"),
        ("6.1.0-50-cloud-amd64", "6.1.176", "Debian", "mapped"),
        ("6.1.0-0.deb11.50-amd64", "6.1.176", "Debian", "mapped"),
        ("6.1.0-10-amd64", "6.1.37", "Debian", "at least"),
        ("6.1.0-99-amd64", "6.1.192", "Debian", "at least"),
        ("5.10.0-32-amd64", "5.10.223", "Debian", "mapped"),
        ("6.5.0-1-amd64", "6.5.0", "Debian", "at least"),
        ("6.12.118+deb13-amd64", "6.12.118", "Debian", "stated"),
        ("6.12.48+deb13-cloud-amd64", "6.12.48", "Debian", "stated"),
        ("6.11.2-amd64", "6.11.2", "Debian", "stated"),
        ("5.15.0-91-generic", "5.15.131", "Ubuntu", "mapped"),
        ("5.15.0-94-generic", "5.15.131", "Ubuntu", "at least"),
        ("6.8.0-45-generic", "6.8.12", "Ubuntu", "at least"),
        ("6.8.0-1015-aws", "6.8.1", "Ubuntu", "at least"),
        ("6.8.12-4-pve", "6.8.12", "Proxmox", "stated"),
        ("5.14.0-427.el9.x86_64", "5.14.0", "RHEL", "at least"),
        ("4.18.0-553.el8_10.x86_64", "4.18.0", "RHEL", "at least"),
        ("6.12.0-55.9.1.el10_0.x86_64", "6.12.0", "RHEL", "at least"),
        ("6.1.112-122.189.amzn2023.x86_64", "6.1.112", "Amazon", "stated"),
        ("5.15.0-206.153.7.el8uek.x86_64", "5.15.153", "Oracle UEK", "mapped"),
        ("5.14.21-150500.55.39-default", "5.14.21", "SUSE", "stated"),
        ("6.11.3-1-default", "6.11.3", "SUSE", "stated"),
        ("6.11.4-301.fc41.x86_64", "6.11.4", "Fedora", "stated"),
        ("6.11.5-arch1-1", "6.11.5", "Arch", "stated"),
        ("6.6.58-1-lts", "6.6.58", "Arch", "stated"),
        ("5.15.167.4-microsoft-standard-WSL2", "5.15.167", "another distribution", "stated"),
        ("6.1.49-Unraid", "6.1.49", "another distribution", "stated"),
        ("6.8.0-something", "6.8.0", "another distribution", "at least"),
    ],
)
def test_releases(text: str, version: str, distribution: str, known: str) -> None:
    found = parse(text)
    assert (found.version, found.distribution, found.known) == (version, distribution, known)
    assert found.text in text


@pytest.mark.parametrize(
    ("text", "version", "signature", "found"),
    [
        ("6.1.0-50-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-09-01)", "", "6.1.176"),
        ("5.15.0-94-generic", "#104", "Ubuntu 5.15.0-94.104-generic 5.15.136", "5.15.136"),
        ("6.1.0-10-amd64", "#1 SMP Debian 6.1.38-1", "", "6.1.38"),
        ("6.12.107+deb13-amd64", "#1 SMP", "", "6.12.107"),
    ],
)
def test_what_else_names_the_update(text: str, version: str, signature: str, found: str) -> None:
    assert str(parse(text, version, signature)) == found
    assert parse(text, version, signature).known is Known.STATED


@pytest.mark.parametrize(
    "text", ["5.14.0-427.el9.x86_64", "4.18.0-553.el8", "6.4.0-150600.23-default"]
)
def test_trees_whose_number_says_where_they_began(text: str) -> None:
    assert parse(text).vendor_tree


def test_a_candidate_that_only_the_version_names() -> None:
    # Debian's 7.3~rc7 calls itself 7.3-amd64.
    found = parse("7.3-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 7.3~rc7-1~exp1 (2026-11-22)")
    assert (found.version, found.known) == ("7.3.0", Known.CANDIDATE)
    assert str(found) == "a release candidate of 7.3"
    assert parse("7.3-amd64").known is Known.AT_LEAST


def test_tumbleweed_is_what_it_says() -> None:
    assert not parse("6.11.3-1-default").vendor_tree


@pytest.mark.parametrize(
    "text", ["", "six", "6", "6.", "tux-6.1", "6.1-\x1b[31m", "6.1.12345", "61.1234.1"]
)
def test_what_is_not_a_release(text: str) -> None:
    with pytest.raises(ReleaseError) as caught:
        parse(text)
    assert "is not the release of a kernel" in caught.value.what
    assert caught.value.near
    assert parse_if_any(text) is None


def test_near_releases_resemble_what_was_given() -> None:
    with pytest.raises(ReleaseError) as caught:
        parse("my-6.12")
    assert "6.12" in caught.value.near


@given(st.integers(0, 99), st.integers(0, 999), st.integers(0, 9999))
def test_three_numbers_are_a_release(major: int, minor: int, update: int) -> None:
    found = parse(f"{major}.{minor}.{update}")
    assert found.numbers == (major, minor, update)
    assert found.distribution is Distribution.MAINLINE
    assert found.known is Known.STATED
    assert parse(found.version) == Release(major, minor, update, text=found.version)


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
@example("6.1.0-²-amd64", "", "")
@example("6.12.118\n", "", "")
def test_any_text(text: str, version: str, signature: str) -> None:
    found = parse_if_any(text, version, signature)
    if found is not None:
        assert parse(found.version).numbers == found.numbers


@given(st.sampled_from(list(abi.NEWEST)), st.text("0123456789.-abcdelpu_+", max_size=30))
def test_what_follows_a_version_never_changes_the_series(series: str, rest: str) -> None:
    found = parse_if_any(f"{series}.7-{rest}")
    if found is not None:
        assert found.series == series


@given(st.sampled_from(["5.10", "6.1"]), st.integers(1, 200))
def test_debian_numbers_only_rise(series: str, number: int) -> None:
    first, last = abi.debian(series, number)
    following, _ = abi.debian(series, number + 1)
    assert first <= last
    assert following >= first


@given(st.sampled_from(["5.15", "6.8", "6.5", "6.14"]), st.integers(1, 400))
def test_ubuntu_numbers_only_rise(series: str, number: int) -> None:
    assert abi.ubuntu(series, number + 1)[1] >= abi.ubuntu(series, number)[1]
