"""The agent's jobs and children, without a KVM: each ends as it should, and the rest goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.kvm import agent
from tests.inside.images import open_descriptors

Json = dict[str, Any]


def result(line: Json) -> str:
    return str(line.get("end") or line.get("error") or line.get("step"))


@pytest.fixture
def performed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Performs jobs by name; what a name does is below.  Returns the status and the answers."""
    (tmp_path / "ram").write_bytes(bytes(4096) + b"page" + bytes(4092))

    def sequence(job: Json, host: Any, answers: Any) -> None:
        memory = [(one.address, one.mapped()) for one in host.memory]
        assert agent.read(memory, 0x1000, 4) == b"page"  # no job sees what another wrote
        agent.patch(memory, 0x1000, b"mine")
        assert agent.read(memory, 0x1000, 4) == b"mine"
        answers.add({"id": job["id"], "step": 1})
        if "run" in job["id"]:
            answers.before_run()
        answers.add({"id": job["id"], "step": 2})
        if "raise" in job["id"]:
            raise ValueError("no such thing")
        if "kill" in job["id"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in job["id"]:
            time.sleep(60)

    monkeypatch.setattr(agent, "_sequence", sequence)

    def perform(*names: str, quick: bool = False, extents: bool = True) -> Any:
        region = {"address": 0, "size": 8192, "file": str(tmp_path / "ram"), "offset": 0}
        first = {"memory": [region | ({"extents": [[4096, 4096]]} if extents else {})]}
        jobs = [{"id": name, "timeout": 0.3 if "hang" in name else 20, "quick": quick}
                for name in names]  # fmt: skip
        given, back = tmp_path / "jobs", tmp_path / "results"
        given.write_text("".join(json.dumps(line) + "\n" for line in (first, *jobs)))
        back.unlink(missing_ok=True)
        status = agent.perform(str(given), str(back))
        lines = [json.loads(line) for line in back.read_text().splitlines()]
        return status, [(line["id"], result(line)) for line in lines]

    return perform


@pytest.mark.parametrize("extents", [True, False])
@pytest.mark.parametrize("quick", [True, False])
def test_each_job_has_memory_of_its_own(
    performed: Callable[..., Any], *, quick: bool, extents: bool
) -> None:
    before = open_descriptors()
    assert performed("a", "b", quick=quick, extents=extents) == (
        0,
        [("a", "1"), ("a", "2"), ("a", "done"), ("b", "1"), ("b", "2"), ("b", "done")],
    )
    assert open_descriptors() == before


def test_a_job_that_fails_or_hangs_costs_that_job(performed: Callable[..., Any]) -> None:
    status, answers = performed("raise", "a", "hang", "b")
    assert status == 0
    assert [one for one in answers if one[1] not in "12"] == [
        ("raise", "ValueError: no such thing"), ("raise", "failed"), ("a", "done"),
        ("hang", "timeout"), ("b", "done"),
    ]  # fmt: skip


def test_a_job_that_is_killed_may_have_damaged_the_kernel(performed: Callable[..., Any]) -> None:
    assert performed("a", "kill", "b") == (
        agent.CRASHED,
        [("a", "1"), ("a", "2"), ("a", "done"), ("kill", "1"), ("kill", "2"),
         ("kill", "signal 9")],
    )  # fmt: skip


def test_quick_answers_are_there_before_a_run(performed: Callable[..., Any]) -> None:
    assert performed("kill,run", quick=True)[1] == [("kill,run", "1"), ("kill,run", "signal 9")]
    assert performed("kill", quick=True)[1] == [("kill", "signal 9")]


def test_jobs_that_cannot_be_read(performed: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text('{"memory": []}\nno JSON\n')
    with pytest.raises(RuntimeError, match="before its first job"):
        agent.perform(str(tmp_path / "jobs"), str(tmp_path / "results"))
