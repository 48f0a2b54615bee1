"""``simulate --against``: the first step where two plans part, on one screen."""

from __future__ import annotations

import json

import pytest

import qemu_svm as svm
from tests.conftest import STREAMS, Run

FILE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
RIGHT = "cpuid,sregs,nested,regs,msrs,run"


@pytest.mark.parametrize(
    ("other", "words", "status"),
    [
        ("cpuid,sregs:l1,nested,regs,msrs,run",
         "They part at step 2 of A (sregs) and step 2 of B (sregs:l1)", 1),
        ("cpuid,nested,sregs,regs,msrs,run",
         "They part at step 2 of A (sregs) and step 2 of B (nested, EINVAL [SV-03])", 1),
        ("cpuid,lapic,sregs,tsc_khz,nested,xsave,regs,xcrs,msrs,mpstate,run",
         "The plans do not part", 0),
        (RIGHT, "The plans do not part", 0),
        ("cpuid,sregs", "They part at step 3 of A (nested) and the end of B", 0),
    ],
)  # fmt: skip
def test_where_they_part(other: str, words: str, status: int, command: Run) -> None:
    done = command("simulate", FILE, "--plan", RIGHT, "--against", other)
    text = done.stdout.decode()
    assert done.returncode == status
    assert words in text
    assert len(text.splitlines()) <= 24


def test_what_becomes_of_it(command: Run) -> None:
    other = "cpuid,sregs:l1,nested,regs,msrs,run"
    made = json.loads(
        command("simulate", FILE, "--plan", RIGHT, "--against", other, "--json").stdout
    )
    found = made["against"]
    assert (found["plan"], found["verdict"]) == (other, "wrong")
    assert (found["part"]["step"], found["part"]["step_against"]) == (2, 2)
    (entered,) = (
        one for one in found["run"] if (one["where"], one["register"]) == ("entry", "cr3")
    )
    assert (entered["value"], entered["against"]) == ("0x104000", "0x101000")
    assert (entered["written_by_step"], entered["against_written_by_step"]) == (2, 2)
    alone = json.loads(command("simulate", FILE, "--plan", RIGHT, "--json").stdout)
    del made["against"]
    assert made == alone


def test_in_python() -> None:
    with svm.open(FILE) as dump:
        report = dump.simulate(RIGHT, against="cpuid,nested,regs,run")
        assert report.against is not None
        assert report.against.part
        assert report.verdict == "wrong"
        with pytest.raises(svm.PlanError, match="on one kernel"):
            dump.simulate(RIGHT, kernel="all", against=RIGHT)


def test_several_kernels_are_refused(command: Run) -> None:
    done = command("simulate", FILE, "--against", RIGHT, "--kernel", "all")
    assert done.returncode == 2
    assert b"two plans are compared on one kernel" in done.stderr
