"""``check --explain`` with a CVE number or a commit; ``--from`` and ``--to``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from qemu_svm.cli.check import command
from qemu_svm.errors import PlanError

FILE = str(Path(__file__).parents[2] / "streams" / "qemu7.2-linux6.1-nested.mig.zst")


def run(*arguments: str) -> str:
    done = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    return done.output


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("CVE-2021-29657", ["a58d9166a756", "5.10.28, 5.11.12, 5.12", "K-13"]),
        ("5d291ef0585e", ["CVE-2026-46032", "6.1.191, 6.12.114, 7.0.4, 7.1", "K-10"]),
        ("CVE-2026-99345", ["SV-18", "6.12.118"]),
        ("174a921b6975", ["C-06", "reverted in", "6.1.76, 6.6.14, 6.7.2, 6.8"]),
        ("e1779c2714c3", ["O-28", "5.15.25, 5.16.11, 5.17"]),
    ],
)
def test_explain(word: str, words: list[str]) -> None:
    text = run("--explain", word)
    for one in words:
        assert one in text
    document = json.loads(run("--explain", word, "--json"))
    assert document["changes"]
    assert document["rules"]


def test_explain_a_rule_is_as_before() -> None:
    assert "changes" not in json.loads(run("--explain", "SV-03", "--json"))


def test_explain_what_is_not_known() -> None:
    with pytest.raises(PlanError, match="no rule, CVE or commit"):
        run("--explain", "CVE-1999-0001")


def test_from_and_to() -> None:
    both = json.loads(run(FILE, "--from", "6.1.0-44-amd64", "--to", "6.12.118", "--json"))
    assert list(both["vcpus"][0]["kernels"]) == ["6.12.118"]
    assert both["releases"] == {"6.12.118": "6.12.118"}


def test_to_and_kernel_are_one_thing() -> None:
    import click

    with pytest.raises(click.UsageError, match="--to and --kernel"):
        run(FILE, "--kernel", "6.1", "--to", "6.12.118")
