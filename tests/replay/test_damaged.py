"""Answers of an agent that a kernel under test has damaged, or that a box has made up."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.layout import Layout
from qemu_svm.lab.kvm import InBox
from qemu_svm.lab.trial.differ import Tally, difference
from qemu_svm.model import plans
from qemu_svm.replay import target as targets
from qemu_svm.replay.conform import Guest
from qemu_svm.replay.job import ReplayJob, ReplayOptions, decode, encode
from qemu_svm.replay.target import JobResult, Results, read_probe, take

JOB = {"id": "7"}
WRONG = [
    *(None, True, 0, -1, 4096, 10**30, 1.5, "", "zz", "00", "errno", [], [[]], {}, {"a": 1}),
    "\x1b[2Jred", [1, 2, 3], "00" * 5000,
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value[:3]))
    return [at, *(one for key, part in inner for one in places(part, (*at, key)))]


@pytest.fixture(scope="module")
def real(in_box: InBox, plain: Guest) -> tuple[ReplayJob, JobResult, Layout]:
    """A job and what a real kernel answered, with looks inside."""
    options = ReplayOptions(seconds=5, shorten=True, emulated=True)
    job = ReplayJob("7", plain.saved, plans.parse("cpuid,sregs,nested,msrs,run"), options)
    encoded = [encode(job, plain.ram, in_box.probe())]
    (performed,) = in_box.perform(plain.ram, encoded, in_box.layout())
    return job, performed, in_box.layout()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damage_is_told_or_is_a_difference(
    real: tuple[ReplayJob, JobResult, Layout], plain: Guest, data: st.DataObject
) -> None:
    job, performed, layout = real
    sound = decode(job, performed, layout)
    steps = copy.deepcopy(performed.steps)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(steps)[1:]))
        holder = steps
        for key in place[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()) or not isinstance(holder, dict):
            holder[place[-1]] = copy.deepcopy(data.draw(st.sampled_from(WRONG)))
        else:
            del holder[place[-1]]
        if not isinstance(steps, list) or not all(isinstance(one, dict) for one in steps):
            return  # what is no object is refused where lines are read
    try:
        found = decode(job, JobResult("7", steps, "done"), layout)
    except EnvironmentFault:
        return
    difference(plain, job, sound, found, Tally())


def read_all(results: Results) -> list[JobResult]:
    """The jobs that ended, in all parts."""
    ended = []
    while (part := results.more())[0]:
        ended += part[1]
    return ended


def lines(tmp_path: Path, *texts: bytes) -> Results:
    path = tmp_path / "results"
    path.write_bytes(b"".join(text + b"\n" for text in texts))
    return Results(path)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000, b"9" * 100_000, b'{"id": "7", "end": "\\u001b[2J"}',
        b'{"id": "7", "end": "signal 9; and more"}', b'{"id": ["7"], "end": "done"}',
    ],
    ids=range(5),
)  # fmt: skip
def test_what_is_no_line(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        lines(tmp_path, text).more()


def test_a_job_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_CHUNK", 1000)
    monkeypatch.setattr(targets, "_ANSWER", 5000)
    step = json.dumps({"id": "7", "state": {}, "x": "y" * 900}).encode()
    end = b'{"id": "7", "end": "done"}'
    for texts, fails in (((step, end) * 20, False), ((step,) * 20, True), ((b"x" * 9000,), True)):
        results = lines(tmp_path, *texts)
        if fails:
            with pytest.raises(EnvironmentFault, match="answered more than"):
                read_all(results)
        else:
            assert len(read_all(results)) == 20


def test_what_is_no_file(tmp_path: Path) -> None:
    """A box may make anything of the file of results, which the host must not wait for."""
    with pytest.raises(EnvironmentFault, match="Is a directory"):
        Results(tmp_path).more()
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    results = Results(tmp_path / "sparse")
    with pytest.raises(EnvironmentFault, match="answered more than 16 MiB"):
        read_all(results)


def test_an_end_of_a_job_that_was_not_given() -> None:
    remaining: list[dict[str, Any]] = [dict(JOB)]
    for wrong in ("8", ""):
        with pytest.raises(EnvironmentFault, match="another job"):
            take(remaining, JobResult(wrong))
    take(remaining, JobResult("7"))
    with pytest.raises(EnvironmentFault, match="another job"):
        take(remaining, JobResult("7"))


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b"[" * 100_000, b"\xff", b'{"release": 1, "version": 2}',
     b'{"release": "", "version": "", "nested_state": "x", "sregs2": 0, "cpuid": "00"}',
     b'{"release": "", "version": "", "nested_state": 1, "sregs2": 0, "cpuid": "ffffffff00"}',
     b'{"release": "", "version": "", "nested_state": 1, "sregs2": 0, "cpuid": 5}'],
    ids=range(9),
)  # fmt: skip
def test_what_is_no_description_of_a_kvm(text: bytes) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        read_probe(text)
