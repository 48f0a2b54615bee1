"""``lab bisect`` on the kernels that ``make test`` fetches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import LabError
from qemu_svm.lab import bisect
from qemu_svm.lab.progress import SILENT
from qemu_svm.lab.suites import cache, kernels
from qemu_svm.lab.suites.catalogue import of_kernel
from qemu_svm.lab.suites.kernels import Kernel
from qemu_svm.lab.trial.patches import PatchRefused, read_patch
from qemu_svm.lab.trial.subject import Subject
from qemu_svm.render.text.lab_bisect import render
from tests.conftest import ROOT, STREAMS, Run

STREAM = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
NOWHERE = "http://127.0.0.1:1"  # so that only kernels in the cache are tried
LINES = ("6.1", "6.12")
# KVM_SET_SREGS checks EFER against CPUID since 6.12.112.
PLAN = "cpuid:nosvm,sregs"


@pytest.fixture
def two_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with the suites of the two lines only: each further kernel would be tried too."""
    cached = tmp_path / "qemu-svm"
    cached.mkdir()
    for name in ("boot", *(of_kernel(line).name for line in LINES)):
        (cached / name).symlink_to(cache.folder() / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.xdist_group("box")
@pytest.mark.usefixtures("two_kernels")
def test_the_update_that_changed_an_answer(svmstream: Run) -> None:
    done = svmstream("lab", "bisect", STREAM, "--plan", PLAN, "--good", LINES[0], "--bad", LINES[1],
                     "--mirror", NOWHERE, "--json", timeout=400)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    versions = []
    for line in LINES:
        built = cache.find(of_kernel(line))
        assert built is not None
        versions.append(built.manifest.kernel)
    assert [found["good"]["version"], found["bad"]["version"]] == versions
    first, last = found["tried"][0], found["tried"][-1]
    assert [step["errno"] for step in first["answer"]["steps"]] == [None, None]
    assert [step["errno"] for step in last["answer"]["steps"]] == [None, "EINVAL"]
    assert [one["version"] for one in (first, last)] == versions
    (change,) = found["changes"]
    assert change["differences"] == [
        {"number": 2, "step": "sregs", "name": "errno", "before": None, "after": "EINVAL"}
    ]
    assert [one["id"] for one in change["table"] if one["explains"]] == ["sregs-efer"]
    # The kernels on both sides have that update between them.
    before, after = (kernels.order_of(change[side]) for side in ("after", "until"))
    assert before < kernels.order_of("6.12.112") <= after


def test_the_same_kernel_twice(svmstream: Run) -> None:
    done = svmstream("lab", "bisect", STREAM, "--good", "6.1", "--bad", "6.1", "--mirror", NOWHERE)
    assert done.returncode == 2
    assert b"are the same kernel" in done.stderr


def test_a_kernel_that_is_none(svmstream: Run) -> None:
    done = svmstream("lab", "bisect", STREAM, "--good", "new", "--bad", "6.1")
    assert done.returncode == 2
    assert b"unknown kernel 'new'" in done.stderr


def test_a_file_that_is_none(svmstream: Run, tmp_path: object) -> None:
    done = svmstream("lab", "bisect", f"{tmp_path}/none", "--good", "6.1", "--bad", "6.12")
    assert done.returncode == 3


def test_a_patch_is_built_for_each_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel between the two that cannot be built is left out, with the reason."""
    row = [
        Kernel(f"6.1.{update}-1", f"6.1.0-{update}-amd64", "bookworm", NOWHERE, ())
        for update in (176, 177, 190)
    ]
    patch = read_patch((ROOT / "docs/patches/v3.patch").read_bytes(), "v3.patch")
    wish = bisect.Wish("6.1.176", "6.1.190", patch=Subject("v3.patch", patch))
    asked: list[tuple[str, object]] = []

    def none(kernel: str, subject: Subject, **_options: object) -> object:
        asked.append((kernel, subject))
        if kernel.startswith("6.1.177"):
            raise PatchRefused("the patch does not apply")
        raise LabError("no suite has the source")

    monkeypatch.setattr(bisect, "modules_for", none)
    nothing: Any = None
    attempt = bisect._Attempt(row, nothing, nothing, wish, SILENT)
    assert attempt(1) is None
    assert attempt.words == {1: "the patch does not apply"}
    with pytest.raises(LabError, match="no suite has the source"):
        attempt(2)
    assert asked == [(one.version, wish.patch) for one in row[1:]]


def test_an_answer_with_a_patch_names_it() -> None:
    ends = [
        Kernel(f"6.1.{update}-1", f"6.1.0-{update}-amd64", "bookworm", NOWHERE, ())
        for update in (176, 190)
    ]
    found = bisect.Bisection("dump", "qemu", *ends, (), (), (), "v3.patch")
    assert found.to_json()["patch"] == "v3.patch"
    first = next(iter(render(found)))
    assert first.plain == "dump: plan qemu, with v3.patch"
