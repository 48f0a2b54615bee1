"""Kernels by their exact version, from a mirror in small."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from click import UsageError
from click.testing import CliRunner

from qemu_svm.cli import cli
from qemu_svm.errors import LabError, PlanError
from qemu_svm.lab.suites import apt, build, cache, kernels
from qemu_svm.lab.suites.catalogue import Suite, of_kernel
from qemu_svm.lab.suites.kernels import Wanted
from tests.conftest import STREAMS
from tests.lab.processes import SVMSTREAM

from .mirror import Mirror

DEB13 = "+deb13-amd64"
STREAM = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"


@pytest.fixture(autouse=True)
def _fewer_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the tests put on a mirror: each that is not there takes a moment too."""
    names = {
        "trixie-security",
        "trixie",
        "bookworm-security",
        "bookworm",
        "trixie-backports",
        "sid",
    }
    few = tuple(one for one in kernels.ARCHIVES if one.name in names)
    monkeypatch.setattr(kernels, "ARCHIVES", few)


def wanted(text: str) -> Wanted:
    found = kernels.wanted(text)
    assert isinstance(found, Wanted)
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("6.12.105", "6.12.105"),
        ("6.12.105+deb13-amd64", "6.12.105+deb13-amd64"),
        ("6.1.170-3", "6.1.170-3"),
        ("6.12.100-1~deb12u1", "6.12.100-1~deb12u1"),
        ("6.18", "6.18"),
        ("7.3-rc7", "7.3-rc7"),
        ("7.3~rc7", "7.3-rc7"),
        ("6.1.0", "6.1.0"),
        ("5.15.0-91-generic", "5.15.131"),
        ("6.8.12-4-pve", "6.8.12"),
    ],
)
def test_names_of_kernels(text: str, words: str) -> None:
    assert wanted(text).words == words


def test_a_line_is_its_suite() -> None:
    assert kernels.wanted("6.12") == of_kernel("6.12")


@pytest.mark.parametrize("text", ["", "new", "6", "../6.1"])
def test_what_is_no_kernel(text: str) -> None:
    with pytest.raises(PlanError, match="unknown kernel"):
        kernels.wanted(text)


@pytest.mark.parametrize(
    ("text", "qemu"),
    [
        ("5.8.1", "5.2"),
        ("5.10.251", "5.2"),
        ("6.1.170", "7.2"),
        ("6.18", "10.0"),
        ("7.3.4", "11.1"),
    ],
)
def test_the_user_land_of_a_kernel(text: str, qemu: str) -> None:
    assert kernels.user_land(kernels.wanted(text)).qemu == qemu


def test_a_release_candidate_comes_before_its_release() -> None:
    versions = ["7.3.4-1", "7.3-1", "7.3~rc7-1~exp1", "7.2.13-1"]
    assert sorted(versions, key=kernels.sorting) == versions[::-1]


def test_debian_revisions_are_ordered_by_debians_rules() -> None:
    versions = ["6.12.90-1~bpo12+1", "6.12.90-1", "6.12.90-2~bpo12+1", "6.12.90-2"]
    assert sorted(set(versions), key=kernels.sorting) == versions


def test_an_exact_kernel_is_fetched_and_kept(mirror: Mirror, home: Path) -> None:
    mirror.add_kernels(
        "trixie-security", ("6.12.105-1", f"6.12.105{DEB13}"), ("6.12.107-1", f"6.12.107{DEB13}")
    )
    built = build.need(wanted("6.12.105"), mirror=mirror.url)
    assert built.path == home / "linux-6.12.105-1"
    assert built.manifest.kernel == "6.12.105-1"
    assert built.manifest.suite == "trixie-security"
    assert built.vmlinuz.read_text() == "kernel 6.12.105-1"
    assert sum(path.endswith(".deb") for path in mirror.asked) == 1
    mirror.asked.clear()
    for text in ("6.12.105", f"6.12.105{DEB13}", "6.12.105-1"):
        assert build.need(wanted(text), mirror=mirror.url) == built
    assert mirror.asked == []
    assert [one.manifest.kernel for one in cache.kernels()] == ["6.12.105-1"]


def test_a_kernel_in_three_packages(mirror: Mirror) -> None:
    mirror.add_kernels("trixie-backports", ("7.3.4-1~bpo13+1", f"7.3.4{DEB13}"))
    built = build.need(wanted("7.3.4"), mirror=mirror.url)
    assert built.vmlinuz.read_text() == "kernel 7.3.4-1~bpo13+1"
    assert (built.modules / "kernel/arch/x86/kvm/kvm.ko").exists()


def test_the_newest_package_of_an_update_is_taken(mirror: Mirror) -> None:
    mirror.add_kernels("trixie", ("6.12.90-1", f"6.12.90{DEB13}"))
    mirror.add_kernels(
        "trixie-security", ("6.12.90-1", f"6.12.90{DEB13}"), ("6.12.90-2", "6.12.90+deb13.1-amd64")
    )
    assert kernels.find(wanted("6.12.90"), mirror=mirror.url).version == "6.12.90-2"
    assert kernels.find(wanted("6.12.90-1"), mirror=mirror.url).version == "6.12.90-1"
    named = kernels.find(wanted(f"6.12.90{DEB13}"), mirror=mirror.url)
    assert (named.version, named.suite) == ("6.12.90-1", "trixie-security")


def test_a_series_is_its_newest_update(mirror: Mirror, home: Path) -> None:
    mirror.add_kernels(
        "trixie-backports",
        ("6.18.9-1~bpo13+1", f"6.18.9{DEB13}"), ("6.18.15-1~bpo13+1", f"6.18.15{DEB13}"),
    )  # fmt: skip
    newest = build.need(wanted("6.18"), mirror=mirror.url)
    assert newest.manifest.release == f"6.18.15{DEB13}"
    # What is in the cache will do without a network.
    assert build.need(wanted("6.18"), mirror="http://127.0.0.1:1") == newest


def test_the_kernel_of_a_suite_in_the_cache_is_not_fetched_again(mirror: Mirror) -> None:
    mirror.add("bookworm", "6.1", "7.2")
    suite = build.need(of_kernel("6.1"), mirror=mirror.url)
    assert isinstance(of_kernel("6.1"), Suite)
    mirror.asked.clear()
    assert build.need(wanted("6.1.50"), mirror=mirror.url) == suite
    assert mirror.asked == []


def test_a_kernel_that_cannot_be_had(mirror: Mirror) -> None:
    mirror.add_kernels(
        "trixie-security", ("6.12.105-1", f"6.12.105{DEB13}"), ("6.12.107-1", f"6.12.107{DEB13}")
    )
    mirror.add_kernels("bookworm", ("6.1.170-3", "6.1.0-47-amd64"))
    with pytest.raises(LabError, match=r"Linux 6\.12\.106 cannot be had") as caught:
        build.need(wanted("6.12.106"), mirror=mirror.url)
    hint = caught.value.hint or ""
    assert "nearest: 6.12.105 (trixie-security) and 6.12.107 (trixie-security)" in hint
    assert "lab list --available" in hint
    assert "snapshot.debian.org" in hint
    with pytest.raises(LabError) as caught:
        build.need(wanted("5.15"), mirror=mirror.url)
    assert "nearest: 6.1.170 (bookworm)" in (caught.value.hint or "")


def test_a_kernel_of_which_a_part_is_gone(mirror: Mirror) -> None:
    mirror.add_kernels(
        "trixie-backports",
        ("7.0.4-1~bpo13+1", f"7.0.4{DEB13}"),
        gone=[f"linux-modules-7.0.4{DEB13}"],
    )
    with pytest.raises(LabError, match=r"has no package linux-modules-7\.0\.4\+deb13-amd64"):
        build.need(wanted("7.0.4"), mirror=mirror.url)
    (listed,) = kernels.available(mirror=mirror.url)
    assert not listed.complete


def test_a_part_that_a_box_does_not_need(mirror: Mirror) -> None:
    mirror.add_kernels(
        "trixie-backports", ("7.0.4-1~bpo13+1", f"7.0.4{DEB13}"), gone=[f"linux-base-7.0.4{DEB13}"]
    )
    assert build.need(wanted("7.0.4"), mirror=mirror.url).vmlinuz.exists()


def test_a_snapshot_has_security_beside_it(mirror: Mirror) -> None:
    """Laid out like snapshot.debian.org: of a day, expired, with series that moved on."""
    day = "20240101T000000Z"
    expired = timedelta(days=-300)
    mirror.add_kernels(
        "sid", ("6.6.9-1", "6.6.9-amd64"), under=f"archive/debian/{day}", valid=expired
    )
    mirror.add_kernels(
        "bookworm-security", ("6.1.69-1", "6.1.0-17-amd64"),
        under=f"archive/debian-security/{day}", valid=expired,
    )  # fmt: skip
    url = f"{mirror.url}/archive/debian/{day}"
    assert [one.version for one in kernels.available(mirror=url)] == ["6.1.69-1", "6.6.9-1"]
    old = build.need(wanted("6.6.9"), mirror=url)
    assert old.manifest.mirror == url
    assert "expired" in old.manifest.remarks[0]
    secure = build.need(wanted("6.1.0-17-amd64"), mirror=f"{url}/")
    assert secure.manifest.mirror == f"{mirror.url}/archive/debian-security/{day}"


@pytest.mark.parametrize(
    ("main", "security"),
    [
        ("http://deb.debian.org/debian", "http://deb.debian.org/debian-security"),
        (
            "http://snapshot.debian.org/archive/debian/20250101T000000Z",
            "http://snapshot.debian.org/archive/debian-security/20250101T000000Z",
        ),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://debian/debian/debian/", "http://debian/debian/debian-security"),
    ],
)
def test_the_mirror_of_security_suites(main: str, security: str) -> None:
    assert apt.security_mirror(main) == security


def test_a_signature_of_someone_else(
    mirror: Mirror, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.add_kernels("trixie-security", ("6.12.105-1", f"6.12.105{DEB13}"))
    monkeypatch.delenv("SVMSTREAM_KEYRING")
    with pytest.raises(LabError, match=r"the signature of trixie-security from .* cannot be verif"):
        build.need(wanted("6.12.105"), mirror=mirror.url)
    assert not home.exists() or not list(home.glob("linux-*"))


def test_a_package_that_was_changed(mirror: Mirror, home: Path) -> None:
    mirror.add_kernels("trixie-security", ("6.12.105-1", f"6.12.105{DEB13}"))
    (deb,) = mirror.top.rglob("*.deb")
    deb.write_bytes(deb.read_bytes()[:-1] + b"!")
    with pytest.raises(LabError, match="trixie-security"):
        build.need(wanted("6.12.105"), mirror=mirror.url)
    assert not list(home.glob("linux-*"))
    assert not list(home.glob(".linux-*"))


def _run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([SVMSTREAM, *arguments], capture_output=True, timeout=60, check=False)


def test_what_can_be_had_is_listed(mirror: Mirror) -> None:
    mirror.add_kernels("trixie-security", ("6.12.105-1", f"6.12.105{DEB13}"))
    mirror.add_kernels(
        "trixie-backports",
        ("7.0.4-1~bpo13+1", f"7.0.4{DEB13}"),
        gone=[f"linux-modules-7.0.4{DEB13}"],
    )
    fetched = _run("lab", "build", "--kernel", "6.12.105", "--mirror", mirror.url)
    assert fetched.stdout == b"linux-6.12.105-1: Linux 6.12.105-1 from trixie-security\n"
    done = _run("lab", "list", "--available", "--json", "--mirror", mirror.url)
    first, second = json.loads(done.stdout)["available"]
    assert first["kernel"] == "6.12.105"
    assert first["release"] == f"6.12.105{DEB13}"
    assert first["cached"]
    assert not first["missing"]
    assert second["missing"] == [f"linux-modules-7.0.4{DEB13}"]
    (kept,) = json.loads(_run("lab", "list", "--json").stdout)["kernels"]
    assert (kept["name"], kept["release"]) == ("linux-6.12.105-1", f"6.12.105{DEB13}")
    assert b"from trixie-security" in _run("lab", "list").stdout
    removed = _run("lab", "clean", "linux-6.12.105-1")
    assert removed.returncode == 0
    assert b"linux-6.12.105-1" in removed.stderr
    assert json.loads(_run("lab", "list", "--json").stdout)["kernels"] == []
    unknown = _run("lab", "clean", "linux-6.12.105-1")
    assert unknown.returncode == 2
    assert b"is not in the cache" in unknown.stderr


def test_clean_removes_a_kernel(mirror: Mirror, home: Path) -> None:
    mirror.add_kernels("trixie-security", ("6.12.105-1", f"6.12.105{DEB13}"))
    built = build.need(wanted("6.12.105"), mirror=mirror.url)
    assert cache.clean((cache.Named(built.name),)) == [home / "linux-6.12.105-1"]
    assert cache.kernels() == []


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("lab", "run", "--kernel", "6.12.105x", "true"), UsageError, "unknown kernel '6.12.105x'"),
        (("lab", "run", "--kernel", "6.12.106", "true"), LabError, "nearest: 6.12.105 (trixie-sec"),
        (("lab", "matrix", "--host", "6.12.106/10.0"), LabError, "nearest: 6.12.105 (trixie-sec"),
        (("lab", "matrix", "--host", "old/10.0"), UsageError, "unknown kernel 'old'"),
        (("lab", "conform", "--kernel", "6.12.106", STREAM), LabError, "6.12.106 cannot be had"),
        (("replay", "--lab", "6.12.106", STREAM), LabError, "6.12.106 cannot be had"),
        (("lab", "witness", "--kernel", "old", STREAM), UsageError, "unknown kernel 'old'"),
        (
            ("lab", "list", "--mirror", "http://127.0.0.1"),
            UsageError,
            "--mirror is for --available",
        ),
    ],
)
def test_verbs_say_what_is_wrong(
    mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str | Path, ...],
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setenv("SVMSTREAM_MIRROR", mirror.url)
    mirror.add_kernels("trixie-security", ("6.12.105-1", f"6.12.105{DEB13}"))
    done = CliRunner().invoke(cli, [*map(str, arguments)], standalone_mode=False)
    assert isinstance(done.exception, error)
    assert words in str(done.exception)
