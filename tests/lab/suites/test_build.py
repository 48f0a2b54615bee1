"""Building a suite, against a mirror in small that behaves well or badly."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest

from qemu_svm.errors import LabError
from qemu_svm.lab.progress import Progress
from qemu_svm.lab.suites import apt, build, cache
from qemu_svm.lab.suites import catalogue as suites
from tests.lab.processes import SVMSTREAM, until

from .mirror import Key, Mirror

BOOKWORM = suites.of_kernel("6.1")
FORKY = suites.of_kernel("7.2")


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.notes: list[str] = []

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        self.steps.append((what, done, total))

    def note(self, what: str) -> None:
        self.notes.append(what)


def strangers(home: Path) -> list[str]:
    """What lies in the cache besides locks."""
    return sorted(path.name for path in home.iterdir() if path.name != "lock")


def test_a_build_has_files_and_exact_versions(mirror: Mirror, home: Path) -> None:
    mirror.add("bookworm", "6.1", "7.2")
    told = Told()
    built = build.need(BOOKWORM, mirror=mirror.url, progress=told)
    assert built.path == home / "bookworm"
    assert built.manifest.kernel == "6.1.50-1"
    assert built.manifest.qemu == "1:7.2+dfsg-7"
    assert built.manifest.release == "6.1.0-9-amd64"
    assert built.manifest.packages["seabios"] == "1.16.2-1"
    assert built.manifest.remarks == ()
    assert built.vmlinuz.read_text() == "kernel"
    root = built.root
    # Where packages say /bin, it is /usr/bin on every suite.
    assert (root / "usr/bin/bash").read_text() == "bash"
    assert os.readlink(root / "bin") == "usr/bin"
    # Applets of busybox, but not where a package has its own.
    assert os.readlink(root / "usr/bin/sh") == "busybox"
    assert (root / "usr/bin/vi").read_text() == "its own vi"
    assert not list(root.rglob("README"))
    assert not list(root.rglob("System.map*"))
    assert not list(root.rglob("drm.ko"))
    assert strangers(home) == ["bookworm"]
    assert ("bookworm: extracting", 9, 9) in told.steps


def test_what_is_built_is_not_fetched_again(mirror: Mirror) -> None:
    mirror.add("bookworm", "6.1", "7.2")
    first = build.need(BOOKWORM, mirror=mirror.url)
    mirror.asked.clear()
    assert build.need(BOOKWORM, mirror=mirror.url) == first
    assert mirror.asked == []


def test_an_expired_release_file_is_used_and_told(mirror: Mirror) -> None:
    mirror.add("forky", "7.2", "11.1", valid=timedelta(days=-3))
    told = Told()
    built = build.need(FORKY, mirror=mirror.url, progress=told)
    assert len(built.manifest.remarks) == 1
    assert "expired 3d" in built.manifest.remarks[0]
    assert told.notes == list(built.manifest.remarks)


def test_testing_that_has_moved_on(mirror: Mirror, home: Path) -> None:
    mirror.add("forky", "7.9", "11.1")
    with pytest.raises(LabError, match=r"has kernel 7\.9\.50-1 now, not 7\.2") as caught:
        build.need(FORKY, mirror=mirror.url)
    assert "snapshot.debian.org" in str(caught.value)
    assert strangers(home) == []


def test_a_suite_that_went_to_the_archive(
    mirror: Mirror, tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Mirror(tmp_path / "archive", key).served() as archive:
        archive.add("bookworm", "6.1", "7.2")
        monkeypatch.setattr(apt, "ARCHIVE", archive.url)
        built = build.need(BOOKWORM, mirror=mirror.url)
    assert built.manifest.mirror == archive.url
    assert "does not have bookworm" in built.manifest.remarks[0]


def test_a_suite_that_is_nowhere(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "ARCHIVE", mirror.url)
    with pytest.raises(apt.Gone, match="the mirror does not have bookworm"):
        build.need(BOOKWORM, mirror=mirror.url)


def test_a_signature_of_someone_else(
    mirror: Mirror, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.add("bookworm", "6.1", "7.2")
    monkeypatch.delenv("SVMSTREAM_KEYRING")
    with pytest.raises(LabError, match=r"the signature of bookworm from .* cannot be verified"):
        build.need(BOOKWORM, mirror=mirror.url)
    assert strangers(home) == []


def test_no_network(home: Path) -> None:
    result = _svmstream("lab", "build", "--mirror", "http://127.0.0.1:1")
    assert result.returncode == 4
    assert b"no network: bookworm from http://127.0.0.1:1" in result.stderr
    assert b"--mirror" in result.stderr
    assert strangers(home) == []


def test_no_space(home: Path, mirror: Mirror) -> None:
    """On a file system of 8 MiB, in a mount namespace of its own."""
    home.mkdir(parents=True)
    script = (
        f"mount -t tmpfs -o size=8m none {home} && exec {SVMSTREAM} lab build --mirror {mirror.url}"
    )
    result = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 4
    assert b"no space to build bookworm" in result.stderr
    assert b"XDG_CACHE_HOME" in result.stderr


def test_a_missing_tool(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/apt-get").symlink_to("/usr/bin/apt-get")
    (tmp_path / "bin/tar").symlink_to("/bin/tar")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(LabError, match="the build are not installed: dpkg") as caught:
        build.need(BOOKWORM, mirror="http://127.0.0.1:1")
    assert "apt-get install dpkg" in str(caught.value)


def test_a_cache_that_cannot_be_made(home: Path) -> None:
    home.parent.write_text("a file where the folder should be")
    with pytest.raises(LabError, match=r"cannot use the cache directory"):
        build.need(BOOKWORM, mirror="http://127.0.0.1:1")


def test_two_builds_at_once_fetch_once(mirror: Mirror, home: Path, tmp_path: Path) -> None:
    mirror.add("bookworm", "6.1", "7.2")
    mirror.flowing.clear()
    both = [Started(tmp_path, "lab", "build", "--mirror", mirror.url) for _process in range(2)]
    until(lambda: _debs(mirror) > 0)
    until(lambda: any("waiting for bookworm" in started.errors() for started in both))
    mirror.flowing.set()
    for started in both:
        assert started.ended() == (0, b"bookworm: Linux 6.1.50-1, QEMU 1:7.2+dfsg-7\n")
    assert len(mirror.asked) == len(set(mirror.asked))
    assert strangers(home) == ["bookworm"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_a_signal_ends(
    mirror: Mirror, home: Path, tmp_path: Path, number: signal.Signals
) -> None:
    mirror.add("bookworm", "6.1", "7.2")
    mirror.flowing.clear()
    started = Started(tmp_path, "lab", "build", "--mirror", mirror.url)
    until(lambda: _debs(mirror) > 0)
    started.process.send_signal(number)
    assert started.ended()[0] == (-number if number == signal.SIGKILL else 130)
    until(lambda: not _uses(home))
    if number != signal.SIGKILL:
        assert strangers(home) == []
    mirror.flowing.set()
    build.need(BOOKWORM, mirror=mirror.url)
    assert strangers(home) == ["bookworm"]


def test_clean_removes_what_was_made_and_nothing_else(mirror: Mirror, home: Path) -> None:
    mirror.add("bookworm", "6.1", "7.2")
    mirror.add("forky", "7.2", "11.1")
    build.need(BOOKWORM, mirror=mirror.url)
    build.need(FORKY, mirror=mirror.url)
    (home / "boot").mkdir()
    for name in ("boot/bookworm-1.initrd", "boot/forky-1.initrd", "mine"):
        (home / name).touch()
    (home / ".bookworm.left").mkdir()
    gone = cache.clean((BOOKWORM,))
    assert gone == [home / ".bookworm.left", home / "bookworm", home / "boot/bookworm-1.initrd"]
    assert strangers(home) == ["boot", "forky", "mine"]
    assert [path.name for path in (home / "boot").iterdir()] == ["forky-1.initrd"]


def test_clean_waits_for_those_who_use_a_suite(mirror: Mirror, home: Path, tmp_path: Path) -> None:
    mirror.add("bookworm", "6.1", "7.2")
    with build.using(BOOKWORM, mirror=mirror.url) as built:
        started = Started(tmp_path, "lab", "clean", "bookworm")
        until(lambda: "waiting for bookworm" in started.errors())
        assert built.vmlinuz.exists()
    assert started.ended() == (0, b"")
    assert strangers(home) == []


@pytest.mark.parametrize(
    ("version", "line", "is_of"),
    [
        ("1:7.2+dfsg-7", "7.2", True),
        ("6.1.176-1", "6.1", True),
        ("6.12.3-1", "6.1", False),
        ("1:10.0.13+ds-0", "10.0", True),
        ("1:5.2+dfsg-11", "11.1", False),
    ],
)
def test_lines_of_versions(version: str, line: str, is_of: bool) -> None:
    assert suites.is_of_line(version, line) is is_of


def _svmstream(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([SVMSTREAM, *arguments], capture_output=True, timeout=60, check=False)


class Started:
    """The command in a process of its own, with what it says on standard error in a file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._errors = folder / f"errors{time.monotonic_ns()}"
        with self._errors.open("wb") as file:
            self.process = subprocess.Popen(
                [SVMSTREAM, *arguments], stdout=subprocess.PIPE, stderr=file
            )

    def errors(self) -> str:
        """What it has said so far."""
        return self._errors.read_text()

    def ended(self) -> tuple[int, bytes]:
        """Wait for its end; status and output."""
        out, _errors = self.process.communicate(timeout=60)
        return self.process.returncode, out


def _debs(mirror: Mirror) -> int:
    return sum(path.endswith(".deb") for path in mirror.asked)


def _uses(home: Path) -> list[str]:
    # Processes that have a word about this cache on their command line or in their environment.
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:
            continue
        if str(home).encode() in words:
            found.append(path.name)
    return found
