"""Items of work: whoever does them, each has its result, and what is missing is said."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qemu_svm import errors
from qemu_svm.errors import (
    AddressError,
    CommandRefused,
    EnvironmentFault,
    LabError,
    OutputExists,
    PathError,
    StreamRefused,
    SvmStreamError,
    Truncated,
)
from qemu_svm.work import cluster as cluster_module
from qemu_svm.work.cluster import Cluster
from qemu_svm.work.items import Here, Lost
from qemu_svm.work.processes import Processes
from tests.support.dask import Dask, dask

pytest.importorskip("distributed")


def squared(number: int) -> int:
    return number * number


def deadly(number: int, folder: str) -> int:
    """Die of the fourth item; if there is a folder, only the first time."""
    if number == 3 and not os.path.exists(f"{folder}/died"):
        if folder:
            Path(folder, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def where_there_is(number: int, name: str) -> int:
    """Work on workers whose environment has a variable."""
    if name not in os.environ:
        raise LabError("the worker has no box", hint="svmstream lab build --kernel 6.1")
    return number


def nowhere(number: int) -> int:
    raise PathError(f"{number} is nowhere", near=("here",))


def mistaken(number: int) -> int:
    return 1 // number


@pytest.fixture(scope="module")
def cluster() -> Iterator[Dask]:
    """Two workers; the second one has no box."""
    with dask(0) as made:
        made.work(THE_BOX="there")
        made.work()
        yield made


@pytest.fixture
def runner(cluster: Dask) -> Iterator[Cluster]:
    made = Cluster(cluster.address, timeout=30)
    made._client.wait_for_workers(2, timeout=60)
    yield made
    made.close()


@pytest.mark.parametrize("where", ["here", "processes", "cluster"])
def test_every_item_has_its_result(where: str, request: pytest.FixtureRequest) -> None:
    made: Any = {"here": Here, "processes": lambda: Processes(2)}.get(where)
    runner = made() if made else request.getfixturevalue("runner")
    found = dict(runner.results(squared, range(40)))
    assert found == {number: number * number for number in range(40)}


def test_an_item_that_kills_its_process_is_lost_and_the_others_are_not() -> None:
    found = dict(Processes(2).results(partial(deadly, folder=""), range(8)))
    lost = found.pop(3)
    assert isinstance(lost, Lost)
    assert "killed" in lost.why
    assert found == {number: number for number in range(8) if number != 3}


def test_a_worker_that_lacks_something_is_named_and_another_does_its_work(
    cluster: Dask, runner: Cluster
) -> None:
    said: list[str] = []
    runner._say = said.append
    found = dict(runner.results(partial(where_there_is, name="THE_BOX"), range(12)))
    assert found == {number: number for number in range(12)}
    (words,) = said
    assert words.startswith("tcp://127.0.0.1:")
    assert words.endswith(" does nothing: the worker has no box (svmstream lab build --kernel 6.1)")


def test_an_error_of_every_worker_is_the_answer(runner: Cluster) -> None:
    with pytest.raises(PathError, match="nowhere") as caught:
        dict(runner.results(nowhere, range(5)))
    assert caught.value.near == ("here",)
    assert caught.value.hint == "near it: here"


def test_a_mistake_loses_its_item_alone(runner: Cluster) -> None:
    found = dict(runner.results(mistaken, range(3)))
    assert found[2] == 0
    assert isinstance(found[0], Lost)
    assert "division" in found[0].why


def test_a_worker_of_another_version_does_nothing(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "__version__", "9.9")
    with pytest.raises(EnvironmentFault, match=r"it has svmstream .*, and here is 9\.9"):
        dict(runner.results(squared, range(3)))


def test_no_scheduler() -> None:
    with pytest.raises(EnvironmentFault, match="no Dask scheduler answers") as caught:
        Cluster("tcp://127.0.0.1:9", timeout=1)
    assert caught.value.hint == "start one: dask scheduler; and workers: dask worker ADDRESS"


def test_errors_arrive_from_other_processes_as_they_were_raised() -> None:
    raised = [
        LabError("a", hint="b"), OutputExists("x"), PathError("p", near=("q",)),
        Truncated("t", offset=3, section="s", expected="e"), AddressError("n", address=16),
        CommandRefused("c", command="d", error_class="G", reason="r"),
        StreamRefused("c", reason="r"),
    ]  # fmt: skip
    for error in raised:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    kinds = {one for one in vars(errors).values() if isinstance(one, type)}
    assert {type(one).__mro__[1] for one in raised} < kinds | {SvmStreamError}


def test_work_of_a_worker_that_dies_is_done_by_another_or_by_one_that_comes(
    cluster: Dask, runner: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_PATIENCE_SECONDS", 0.2)
    said: list[str] = []
    runner._say = said.append
    found = dict(runner.results(partial(deadly, folder=str(tmp_path)), range(6)))
    assert found == {number: number for number in range(6)}
    assert (tmp_path / "died").exists()
    for worker in cluster.workers:
        worker.kill()
        worker.wait()
    later = threading.Timer(2, cluster.work)
    later.start()
    found = dict(runner.results(squared, range(3)))
    later.join()
    assert found == {0: 0, 1: 1, 2: 4}
    assert said == [f"no worker is there: dask worker {cluster.address}"]
    results = runner.results(squared, range(1000))
    next(results)
    cluster.scheduler.kill()
    with pytest.raises(EnvironmentFault, match=r"the Dask scheduler at 'tcp://.*' is gone"):
        list(results)
