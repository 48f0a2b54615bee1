"""Where headers and source of a kernel are to be had, and what is said if they are not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import LabError
from qemu_svm.lab.progress import SILENT
from qemu_svm.lab.suites import apt
from qemu_svm.lab.suites.cache import Manifest
from qemu_svm.lab.trial.packages import base_suite, fetched

RELEASES = {"6.1.170-3": "47", "6.1.174-1": "49", "6.1.176-1": "50", "6.1.190-1": "53"}


class Suite:
    """A suite's lists, as apt has them."""

    def __init__(self, folder: Path, suite: str, packages: Mapping[str, str]) -> None:
        self.suite = suite
        self._list = folder / suite
        self._list.write_text("".join(
            f"Package: {name}\nArchitecture: amd64\nVersion: {version}\n\n"
            for name, version in packages.items()
        ))  # fmt: skip

    def lists(self) -> list[Path]:
        return [self._list]

    def download(self, packages: tuple[str, ...], _progress: object) -> dict[str, Path]:
        return {"headers": Path(packages[0])}

    def download_only(self, names: list[str], version: str, _progress: object) -> dict[str, Path]:
        return {names[0]: Path(f"{names[0]}={version}")}


def headers(*versions: str) -> dict[str, str]:
    return {f"linux-headers-6.1.0-{RELEASES[one]}-amd64": one for one in versions}


@pytest.fixture
def suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """Packages by suite; what is not there, is no suite of the mirror."""
    found: dict[str, dict[str, str]] = {}

    def updated(suite: str, *_: Any, **options: Any) -> tuple[Suite, list[str]]:
        if suite not in found:
            raise apt.Gone("not there")
        packages = dict(found[suite])
        for beside, _mirror in options.get("beside", ()):
            packages |= found[beside]
        return Suite(tmp_path, suite, packages), []

    monkeypatch.setattr(apt, "updated", updated)
    for name in ("host_mirror", "security_mirror"):  # they ask apt
        monkeypatch.setattr(apt, name, lambda *_: "mirror")
    return found


def manifest(version: str) -> Manifest:
    release = f"6.1.0-{RELEASES[version]}-amd64"
    packages = {f"linux-image-{release}": version}
    return Manifest("bookworm-security", "mirror", "now", release, packages)


def test_the_source_may_be_in_another_suite(
    suites: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    suites["bookworm"] = {}
    suites["bookworm-security"] = headers("6.1.174-1", "6.1.176-1")
    suites["bullseye-security"] = {"linux-source-6.1": "6.1.174-1~deb11u1"}
    found = fetched(manifest("6.1.174-1"), ("make",), tmp_path, SILENT)
    assert found.tools == [Path("linux-headers-6.1.0-49-amd64=6.1.174-1")]
    assert found.origin == "linux-source-6.1 6.1.174-1~deb11u1 of bullseye-security"


def test_without_headers_or_source_the_nearest_with_both_are_named(
    suites: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    suites["bookworm"] = {"linux-source-6.1": "6.1.176-1"}
    suites["bookworm-security"] = headers("6.1.170-3", "6.1.176-1", "6.1.190-1")
    suites["bullseye-security"] = {"linux-source-6.1": "6.1.190-1~deb11u1"}
    with pytest.raises(LabError) as caught:
        fetched(manifest("6.1.174-1"), (), tmp_path, SILENT)
    assert caught.value.what == ("bookworm-security no longer has the headers of Linux 6.1.174-1")
    # Of 6.1.170 there are headers only.
    assert caught.value.hint == "nearest with headers and source: 6.1.176 (source in bookworm)"
    with pytest.raises(LabError, match=r"^no suite has the source of Linux 6\.1\.170 ") as caught:
        fetched(manifest("6.1.170-3"), (), tmp_path, SILENT)
    suites["bookworm"] = suites["bullseye-security"] = {}
    with pytest.raises(LabError, match="no other update of this series has both"):
        fetched(manifest("6.1.170-3"), (), tmp_path, SILENT)


@pytest.mark.parametrize(
    ("suite", "base"),
    [("bookworm", "bookworm"), ("bookworm-security", "bookworm"), ("sid", "forky"),
     ("trixie-backports", "trixie")],
)  # fmt: skip
def test_whose_compiler_it_is(suite: str, base: str) -> None:
    assert base_suite(suite) == base
