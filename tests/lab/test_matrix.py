"""The matrix of saves and restores, on one host of it, and how its table reads."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import LabError
from qemu_svm.findings.rules import RULES
from qemu_svm.lab import Box, matrix
from qemu_svm.lab.guests import find
from qemu_svm.lab.matrix import Cell, Host, Matrix
from qemu_svm.lab.restore import Outcome, Verdict
from qemu_svm.lab.suites.build import require_for_box
from qemu_svm.render.text.lab_matrix import render
from qemu_svm.work.items import Here, Lost
from tests.conftest import ROOT, Run

BOOKWORM = Host("6.1", "7.2")
BULLSEYE = Host("5.10", "5.2")


class Elsewhere(Here):
    """Does items as another process would: they and their results are pickled."""

    def results(self, work: Any, items: Any) -> Iterator[Any]:
        for item in items:
            there, given = pickle.loads(pickle.dumps((work, item)))
            yield item, pickle.loads(pickle.dumps(there(given)))


@pytest.fixture
def elsewhere(box: Box, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """Whose only box is the one that is up."""
    monkeypatch.setattr(matrix, "_booting", lambda *_how: lambda _host: nullcontext(box))
    return Elsewhere()


def test_saved_and_restored_on_the_same_host(box: Box, elsewhere: Elsewhere) -> None:
    result = matrix.spread([BOOKWORM], [find("nested-npt")], elsewhere)
    (cell,) = result.cells
    assert cell.outcome.verdict is Verdict.GOES_ON, cell
    assert cell.machine == "pc-i440fx-7.2"
    assert {"exits", "l2"} <= set(cell.outcome.moved)
    assert result.versions[BOOKWORM] == box.versions


def test_a_guest_that_cannot_be_saved_is_an_answer(
    box: Box, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU 7.2 does not know a machine type of QEMU 10.0."""
    monkeypatch.setattr(matrix, "MACHINES", {"7.2": "pc-i440fx-10.0"})
    result = matrix.run([BOOKWORM], [find("nested")], boot=lambda _host: nullcontext(box))
    (cell,) = result.cells
    assert cell.outcome.verdict is Verdict.NOT_SAVED
    assert "unsupported machine type" in cell.outcome.reason
    spread = matrix.spread([BOOKWORM], [find("nested")], elsewhere)
    assert (spread.cells, spread.versions) == (result.cells, result.versions)


def test_a_host_that_nobody_could_do() -> None:
    class Nobody(Here):
        def results(self, work: Any, items: Any) -> Iterator[Any]:
            yield from ((item, Lost("its workers died")) for item in items)

    with pytest.raises(LabError, match=r"6\.1/7\.2: its workers died"):
        matrix.spread([BOOKWORM], [find("nested")], Nobody())


def test_a_worker_says_what_its_box_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lacking = [
        (("6.1",), {}, "svmstream lab build --kernel 6.1"),
        (("6.1",), {"qemu": "10.0"}, "svmstream lab build --kernel 6.1 --qemu 10.0"),
        (("6.12.105",), {}, "svmstream lab build --kernel 6.12.105 --qemu 10.0"),
    ]
    for kernel, options, command in lacking:
        with pytest.raises(LabError, match="lacks what the box needs") as caught:
            require_for_box(*kernel, **options)
        assert caught.value.hint == command
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="qemu-system-x86_64") as caught:
        require_for_box("6.1")
    assert str(caught.value.hint).startswith("apt-get install qemu-system-x86")


def test_the_machine_type_is_that_of_the_older_qemu() -> None:
    for source, target in ((BOOKWORM, BULLSEYE), (BULLSEYE, BOOKWORM)):
        assert matrix.machine_of(source, target) == "pc-i440fx-5.2"
    new, newer = Host("6.1", "10.0"), Host("6.1", "11.1")
    assert matrix.machine_of(newer, new) == "pc-i440fx-10.0"


def test_hosts() -> None:
    assert len(matrix.SAME_SUITE) == 4
    assert len(set(matrix.EVERY_PAIRING)) == 16
    assert set(matrix.SAME_SUITE) < set(matrix.EVERY_PAIRING)


def some_result() -> Matrix:
    crash = Outcome(Verdict.CRASH, "BUG: kernel NULL pointer dereference")
    good = Outcome(Verdict.GOES_ON, "L2 counts and L1 gets its exits", "npt-mmio", ("exits", "l2"))
    why = (RULES["O-28"].finding("vCPU 0: L1 uses nested paging for L2", kernels=("5.10",)),)
    cells = [
        Cell(
            "npt-mmio",
            source,
            target,
            matrix.machine_of(source, target),
            crash if target == BULLSEYE else good,
            why if target == BULLSEYE else (),
        )
        for target in (BULLSEYE, BOOKWORM)
        for source in (BULLSEYE, BOOKWORM)
    ]
    versions = {"kernel": "5.10.223-1", "qemu": "1:5.2"}
    return Matrix(cells, {BULLSEYE: versions, BOOKWORM: {**versions, "kernel": "6.1"}})


def test_the_table_names_the_rule_once() -> None:
    lines = [line.plain for line in render(some_result())]
    assert lines[0] == "npt-mmio: 2 of 4 continue"
    assert [line.split() for line in lines[1:4]] == [
        ["a", "b"],
        ["a", "5.10/5.2", "1", "ok"],
        ["b", "6.1/7.2", "1", "ok"],
    ]
    assert "1  host crashed: BUG: kernel NULL pointer dereference" in lines
    assert sum("O-28" in line for line in lines) == 1


def test_a_table_of_what_there_is() -> None:
    result = some_result()
    del result.cells[-1]
    lines = [line.plain for line in render(result)]
    assert lines[0] == "npt-mmio: 1 of 3 continue"
    assert [line.split()[-1] for line in lines[2:4]] == ["ok", "-"]


def test_sixteen_hosts_fit_a_terminal() -> None:
    good = Outcome(Verdict.GOES_ON, "")
    cells = [
        Cell("nested", source, target, "pc", good)
        for source in matrix.EVERY_PAIRING
        for target in matrix.EVERY_PAIRING
    ]
    versions = {"kernel": "6.1", "qemu": "7.2"}
    result = Matrix(cells, dict.fromkeys(matrix.EVERY_PAIRING, versions))
    assert max(len(line.plain) for line in render(result)) <= 80


def test_the_document_has_every_cell() -> None:
    document = some_result().to_json()
    assert set(document["hosts"]) == {"5.10/5.2", "6.1/7.2"}
    assert len(document["cells"]) == 4
    assert document["cells"][0]["verdict"] == "host crashed"
    assert document["cells"][0]["rules"][0]["rule"] == "O-28"


def test_a_matrix_with_a_patch_names_it(svmstream: Run) -> None:
    made = Matrix(foreign="v3.patch")
    assert made.to_json()["foreign"] == "v3.patch"
    words = "\n".join(line.plain for line in render(made))
    assert "Saved on (rows), restored on (columns), with v3.patch" in words
    patch = ROOT / "docs/patches/v3.patch"
    done = svmstream("lab", "matrix", "--host", "6.1/7.2", "--patch", patch, "--module", patch)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--patch builds the modules, --module has them: give one" in done.stderr
    done = svmstream("lab", "matrix", "--host", "6.1/7.2", "--module", patch)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"is no kernel module" in done.stderr
