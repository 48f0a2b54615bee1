"""``lab bisect`` on the kernels that ``make test`` fetches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qemu_svm.lab.suites import cache, kernels
from qemu_svm.lab.suites.catalogue import of_kernel
from tests.conftest import STREAMS, Run

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
