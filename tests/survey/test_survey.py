"""Many streams at once: the same rows however they are judged, and nothing stops the others."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from qemu_svm.errors import EnvironmentFault, PlanError, Refused, SourceError
from qemu_svm.render.tables import COLUMNS, write
from qemu_svm.survey import run as run_module
from qemu_svm.survey.find import inputs
from qemu_svm.survey.judge import Judged, judge
from qemu_svm.survey.row import Question, Row, State, Summary, Survey
from qemu_svm.survey.run import survey
from qemu_svm.survey.store import Store
from qemu_svm.work.cluster import Cluster
from qemu_svm.work.items import Here
from qemu_svm.work.processes import Processes
from tests.conftest import STREAMS, Run
from tests.support.dask import dask

NESTED = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"
NPT = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
SAVE = Path(__file__).parent.parent / "source/data/libvirt9.0-raw.save.zst"
TO = Question(kernels=("6.1.170",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Streams of several kinds, with broken ones among them."""
    made = tmp_path_factory.mktemp("fleet")
    for number in range(6):
        shutil.copy(NESTED, made / f"a{number}.mig.zst")
    shutil.copy(SAVE, made / "saved.save.zst")
    below = made / "below"
    below.mkdir()
    shutil.copy(NPT, below / "npt.mig.zst")
    data = NESTED.read_bytes()
    (made / "cut.mig.zst").write_bytes(data[: len(data) // 2])
    (made / "empty").write_bytes(b"")
    (made / "=cmd|'calc'!A0").write_bytes(b"text")
    (made / os.fsdecode(b"\xff\x1b[31m.mig")).write_bytes(b"QEVM\0\0\0\3")
    (made / ".left.part").write_bytes(b"QEVM")
    (made / "loop").symlink_to(made)
    return made


def rows(question: Question = TO, *paths: Path | str, **options: Any) -> list[dict[str, Any]]:
    with Store(question) as store:
        return list(survey(inputs(map(str, paths)), question, store, **options).rows())


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, Any]]:
    return rows(TO, folder, runner=Here())


def test_what_a_row_says(folder: Path, expected: list[dict[str, Any]]) -> None:
    by_name = {os.path.basename(row["path"]): row for row in expected}
    assert len(expected) == 12  # neither what a capture left nor the link in a circle
    first = by_name["a0.mig.zst"]
    assert first["state"] == "right"
    assert first["machine"].startswith("pc-i440fx-7.2")
    assert (first["qemu"], first["vcpus"], first["l2"]) == ("7.2", 1, [0])
    assert first["verdicts"] == {"6.1.170": "right"}
    assert by_name["saved.save.zst"]["domain"] == "svmstream-test"
    assert by_name["cut.mig.zst"]["state"] == "incomplete"
    assert "ends inside" in by_name["cut.mig.zst"]["error"]
    assert by_name["empty"]["state"] == "unreadable"
    assert by_name["=cmd|'calc'!A0"]["state"] == "no stream"
    states = [State(row["state"]) for row in expected]
    assert states == sorted(states, key=list(State).index)  # the worst first


def test_a_verdict_is_that_of_check(command: Run) -> None:
    for path in (NESTED, NPT):
        (row,) = rows(Question(kernels=("5.10", "6.1.170")), path, runner=Here())
        done = command("check", path, "--kernel", "5.10", "--kernel", "6.1.170", "--json")
        (vcpu,) = json.loads(done.stdout)["vcpus"]
        assert row["verdicts"] == {name: one["verdict"] for name, one in vcpu["kernels"].items()}


def test_processes_give_the_same_rows(folder: Path, expected: list[dict[str, Any]]) -> None:
    assert rows(TO, folder, runner=Processes(2)) == expected


def deadly(paths: list[str], question: Question, folder: str) -> Judged:
    """Judge, but die of one file."""
    if any(path.endswith("a3.mig.zst") for path in paths):
        os.kill(os.getpid(), signal.SIGKILL)
    return judge(paths, question)


def test_an_input_that_kills_a_process_has_a_row(
    folder: Path, expected: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "judge", deadly)
    monkeypatch.setattr(run_module, "CHUNK", 3)
    found = rows(TO, folder, runner=Processes(2))
    (dead,) = [row for row in found if row["state"] == "unreadable" and "killed" in row["error"]]
    assert dead["path"].endswith("a3.mig.zst")
    assert [row for row in found if row != dead] == [
        row for row in expected if not row["path"].endswith("a3.mig.zst")
    ]


def test_an_interrupted_survey_is_continued(
    folder: Path, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    class Interrupted(Here):
        def results(self, work: Any, items: Any) -> Iterator[Any]:
            for number, judged in enumerate(super().results(work, items)):
                if number == 4:
                    raise KeyboardInterrupt
                yield judged

    partial = str(tmp_path / ".x.csv.part")
    with pytest.raises(KeyboardInterrupt), Store(TO, partial) as store:
        survey(inputs([str(folder)]), TO, store, runner=Interrupted())
    assert os.stat(partial).st_mode & 0o777 == 0o600
    with pytest.raises(Refused, match="other options"):
        Store(Question(kernels=("5.10",)), partial)
    seen: list[str] = []

    class Rest(Here):
        def results(self, work: Any, items: Any) -> Iterator[Any]:
            for paths, judged in super().results(work, items):
                seen.extend(paths)
                yield paths, judged

    with Store(TO, partial) as store:
        found = survey(inputs([str(folder)]), TO, store, runner=Rest())
        assert list(found.rows()) == expected
        assert found.continued == 4
        assert len(seen) == len(expected) - 4
        store.finish()
    assert not os.path.exists(partial)


def test_files_that_changed_or_went_are_judged_anew(tmp_path: Path) -> None:
    one, two = tmp_path / "one.mig.zst", tmp_path / "two.mig.zst"
    shutil.copy(NESTED, one)
    shutil.copy(NESTED, two)
    partial = str(tmp_path / ".x.csv.part")
    with Store(TO, partial) as store:
        survey(inputs([str(one), str(two)]), TO, store, runner=Here())
    one.write_bytes(b"QEVM")
    with Store(TO, partial) as store:
        (row,) = survey(inputs([str(one)]), TO, store, runner=Here()).rows()
        assert row["state"] != "right"


def test_relative_names_are_of_the_folder_in_which_they_were_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    names = ["a0.mig.zst", "none", "cut.mig.zst", "below"]
    expected = rows(TO, *names, runner=Here())
    assert [row["state"] for row in expected] == ["unreadable", "incomplete", "right", "right"]
    paths = list(inputs(names))
    monkeypatch.chdir("/")
    with Store(TO) as store:
        found = survey(paths, TO, store, runner=Here(), folder=str(folder))
        assert list(found.rows()) == expected


def test_snapshots_of_an_image_are_rows(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    packed = (SAVE.parent / "qemu7.2-two-snapshots.qcow2.zst").read_bytes()
    data = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    image.write_bytes(data)
    found = rows(TO, image, runner=Here())
    assert len(found) == 2
    assert all(row["path"].startswith(f"{image}#") for row in found)
    assert {row["container"] for row in found} == {"qcow2"}
    image.write_bytes(data[:80])
    (row,) = rows(TO, image, runner=Here())
    assert row["state"] == "unreadable"


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing matches"):
        list(inputs([f"{tmp_path}/*.mig"]))
    (row,) = rows(TO, tmp_path / "none", runner=Here())
    assert (row["state"], row["size"]) == ("unreadable", None)
    for wrong in (
        Question(kernels=("x",)), Question(cpu="x"), Question(qemu="x"), Question(source="x"),
    ):  # fmt: skip
        with pytest.raises(PlanError):
            wrong.check()


def test_urls_are_read_by_fsspec(expected: list[dict[str, Any]]) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/fleet/a.mig.zst", NESTED.read_bytes())
    memory.pipe("/fleet/deep/b.mig.zst", b"text")
    found = rows(TO, "memory://fleet", runner=Here())
    assert [(row["path"], row["state"]) for row in found] == [
        ("memory:///fleet/a.mig.zst", "right"), ("memory:///fleet/deep/b.mig.zst", "no stream"),
    ]  # fmt: skip
    assert [row["path"] for row in rows(TO, "memory://fleet/*.zst", runner=Here())] == [
        "memory:///fleet/a.mig.zst"
    ]
    with pytest.raises((SourceError, EnvironmentFault)):
        list(inputs(["nosuchprotocol://x/y"]))


@pytest.fixture(scope="module")
def result(expected: list[dict[str, Any]]) -> Survey:
    summary = Summary()
    for row in expected:
        summary.add(row)
    return Survey(TO, summary, lambda: iter(expected))


def test_tables(result: Survey, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    for kind in ("csv", "sqlite", "html", "parquet"):
        write(result, kind, str(tmp_path / kind))
    with open(tmp_path / "csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    assert len(table) == len(expected)
    text = (tmp_path / "csv").read_text()
    assert not [cell for row in table for cell in row.values() if cell[:1] in {*"=+-@\t\r"}]
    assert "\x1b" not in text
    base = sqlite3.connect(tmp_path / "sqlite")
    assert base.execute("SELECT count(*), sum(vcpus) FROM streams").fetchone() == (
        len(expected), sum(row["vcpus"] for row in expected),
    )  # fmt: skip
    base.close()
    page = (tmp_path / "html").read_text()
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert not re.search(r"(src|href)=", page)
    assert "\x1b" not in page
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(tmp_path / "parquet").num_rows == len(expected)


def test_formulas_are_neutralised(tmp_path: Path) -> None:
    row = Row("=1+1", State.RIGHT, machine="@x", error="-2").to_json()
    summary = Summary()
    summary.add(row)
    write(Survey(TO, summary, lambda: iter([row])), "csv", str(tmp_path / "x"))
    (cells,) = list(csv.DictReader((tmp_path / "x").open(newline="")))
    assert (cells["path"], cells["machine"], cells["error"]) == ("'=1+1", "'@x", "'-2")


def test_the_command(command: Run, folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "fleet.csv"
    words = ("survey", folder, "--to", "6.1.170", "-o", table, "-j", "2")
    done = command(*words)
    assert done.returncode == 3, done.stderr  # one is cut
    assert done.stdout.startswith(b"12 streams: ")
    assert table.exists()
    assert not list(tmp_path.glob(".*"))
    again = command(*words)
    assert (again.returncode, again.stdout) == (2, b"")
    assert b"-f replaces it" in again.stderr
    document = json.loads(command("survey", folder / "below", "--json").stdout)
    assert document["summary"]["states"] == {"right": 1}
    assert len(document["streams"][0]["verdicts"]) > 20  # all releases
    lines = command("survey", folder / "below", "--to", "6.1", "--jsonl").stdout.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["right"]
    fields = command("survey", folder / "below", "--to", "6.1", "--fields", "state,verdicts")
    assert fields.stdout == b'right\t{"6.1": "right"}\n'
    names = tmp_path / "names"
    names.write_text(f"{NESTED}\n\n{NPT}\n")
    listed = command("survey", "--list", names, "--to", "6.1", "--jsonl")
    assert (listed.returncode, len(listed.stdout.splitlines())) == (0, 2)
    assert command("survey").returncode == 2
    assert command("survey", folder, "-o", "x.txt").returncode == 2
    assert command("survey", folder, "--to", "x").returncode == 2


def test_what_lies_beside_streams_is_no_error_but_what_was_named_is(
    tmp_path: Path, command: Run
) -> None:
    shutil.copy(NESTED, tmp_path / "a.mig.zst")
    (tmp_path / "notes").write_bytes(b"text")
    table = tmp_path / "t.csv"
    words = ("--to", "6.1", "-j", "1")
    beside = command("survey", tmp_path, *words, "-o", table)
    assert (beside.returncode, beside.stderr) == (0, b"")
    assert table.stat().st_mode & 0o777 == 0o600
    named = command("survey", tmp_path / "notes", *words)
    assert (named.returncode, named.stderr) == (3, b"")


def test_ctrl_c_and_the_same_command_again(tmp_path: Path, svmstream: Run) -> None:
    fleet, table = tmp_path / "fleet", tmp_path / "t.sqlite"
    fleet.mkdir()
    for number in range(150):
        os.link(shutil.copy(NESTED, tmp_path / "one"), fleet / f"{number}.mig.zst")
    words = [sys.executable, "-m", "qemu_svm", "survey", str(fleet), "-o", str(table)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True)
    partial = tmp_path / ".t.sqlite.part"
    for _ in range(200):
        time.sleep(0.1)
        if partial.exists():
            break
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"the same command continues" in errors
    assert partial.exists()
    assert not table.exists()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        raise AssertionError("a process is left")
    shutil.rmtree(fleet)
    fleet.mkdir()
    os.link(tmp_path / "one", fleet / "0.mig.zst")
    assert svmstream("survey", fleet, "-o", table, timeout=120).returncode == 0
    assert not partial.exists()


def test_a_cluster_gives_the_same_rows_when_a_worker_dies(
    folder: Path, expected: list[dict[str, Any]]
) -> None:
    pytest.importorskip("distributed")
    with dask(2) as made:
        cluster = Cluster(made.address, timeout=30)
        try:
            cluster._client.wait_for_workers(2, timeout=60)
            killed = False

            def kill_one(done: int, _total: int) -> None:
                nonlocal killed
                if done >= 1 and not killed:
                    made.workers[1].kill()
                    killed = True

            found = rows(TO, folder, runner=cluster, progress=kill_one)
            assert killed
            assert json.dumps(found) == json.dumps(expected)
        finally:
            cluster.close()
