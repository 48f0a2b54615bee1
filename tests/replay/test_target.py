"""What the agent answers is read with care: the kernel beside it may be damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qemu_svm.errors import EnvironmentFault
from qemu_svm.replay.target import Results


def test_lines_are_read_as_they_arrive(tmp_path: Path) -> None:
    path = tmp_path / "results"
    results = Results(path)
    assert results.more() == (False, [])
    step, end = {"id": "7", "step": 1, "state": {}}, {"id": "7", "end": "done"}
    path.write_text(json.dumps(step) + "\n" + json.dumps(end)[:9])
    assert results.more() == (True, [])
    path.write_text(json.dumps(step) + "\n" + json.dumps(end) + "\n")
    _, (job,) = results.more()
    assert (job.id, job.end, job.steps) == ("7", "done", [step])


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "7", "{}", '{"id": 7, "end": "done"}', '{"id": "7"}', '{"id": "7", "state": 3}',
     '{"id": "7", "end": null}', '{"id": "7", "state": {}, "step": "x"}', "\x00\xff"],
)  # fmt: skip
def test_what_is_no_answer(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results"
    path.write_bytes(text.encode("latin-1") + b"\n")
    with pytest.raises(EnvironmentFault, match="the agent's answer cannot be read"):
        Results(path).more()
