"""``svmstream trace`` as a user has it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.conftest import STREAMS, Run
from tests.trace.logs import (
    CREATION,
    LOGS,
    PUT,
    REAL,
    never_again,
    qemu_log,
    strace,
    text_of,
)

LOG = STREAMS / "qemu10.0-linux6.12-nested.restore-ioctls.log.zst"
_UTF8 = {**os.environ, "PYTHONIOENCODING": "utf-8"}


@pytest.mark.parametrize("entry", LOGS, ids=lambda entry: entry["file"])
def test_every_log(entry: dict[str, object], command: Run) -> None:
    done = command("trace", "--json", STREAMS / str(entry["file"]))
    assert (done.returncode, done.stderr) == (0, b"")
    made = json.loads(done.stdout)
    assert (made["schema_version"], made["verdict"]) == (1, "ok")
    assert made["log"]["complete"] is True
    assert made["source"]["compression"] == "zstd"


def test_the_report(command: Run) -> None:
    done = command("trace", LOG, env=_UTF8)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert all(len(line) <= 80 for line in text.splitlines()[1:])
    assert all(line == line.rstrip() for line in text.splitlines())
    assert re.search(r"QEMU +8\.1 to 11\.0 \(a guess from the order\)", text)
    assert re.search(r"45-56 +full put +12 +the migrated state", text)
    assert "line 46, full put, the migrated state: ok, runs at line 58" in text
    assert "    SREGS2→NESTED→TSC_KHZ→REGS→XSAVE→XCRS→MSRS→EVENTS→MP_STATE→MSRS→DEBUGREGS\n" in text
    assert "EFER in SREGS and MSRS: whether SVME is set (O-01, O-08, O-12)" in text


def test_without_unicode(svmstream: Run) -> None:
    done = svmstream("trace", LOG, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"SREGS2>NESTED>TSC_KHZ>REGS>" in done.stdout


def test_verbose_lists_every_ioctl(command: Run) -> None:
    log = REAL / "qemu7.2-smp2-restore.strace.zst"
    text = command("trace", "-v", log, env=_UTF8).stdout.decode()
    names = set(re.findall(r"KVM_(?!CAP_|MEM_)[A-Z0-9_]+", text_of(log)))
    assert len(names) > 40
    for name in names:
        assert re.search(rf"^ .*\b{name}\b", text, re.MULTILINE), name
    assert "GET_XSAVE2 is used" in text


def test_a_refusal(command: Run) -> None:
    done = command("trace", REAL / "refused.strace", env=_UTF8)
    assert done.returncode == 1
    text = " ".join(done.stdout.decode().split())
    assert "SREGS→NESTED(EINVAL)→REGS" in text
    assert "error T-01" in text
    assert "the vCPU then runs L2's code in L1's context" in text
    assert "whether an ioctl failed" not in text


def test_a_rule_says_what_happens_and_what_to_do(tmp_path: Path, command: Run) -> None:
    log = tmp_path / "broken.log"
    log.write_text(qemu_log([*CREATION, *PUT, "SET_CPUID2", "RUN"]))
    done = command("trace", log, env=_UTF8)
    assert done.returncode == 1
    text = " ".join(done.stdout.decode().split())
    assert "1 against the rules" in text
    assert "error O-04 no CPUID2 after NESTED_STATE" in text
    assert "KVM_RUN fails with EFAULT on 6.1" in text
    assert "Do: set CPUID2 once, before any state." in text
    assert "Linux 6.1, 6.12" in text


def test_a_rule_is_explained_once(command: Run) -> None:
    log = qemu_log([*CREATION, *[*PUT, "SET_CPUID2", "RUN"] * 3])
    text = command("trace", "-", input=log.encode()).stdout.decode()
    assert text.count("error O-04") == 3
    assert text.count("Do: set CPUID2") == 1


def test_what_cannot_be_judged_is_said(command: Run) -> None:
    done = command("trace", "-v", "-", input=qemu_log([*PUT, "RUN"]).encode(), env=_UTF8)
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "line 2, reset put: cannot be judged, runs at line 11" in text
    assert "unknown O-03" in text
    assert "depends O-28" in text
    assert json.loads(
        command("trace", "--json", "-", input=qemu_log([*PUT, "RUN"]).encode()).stdout
    )["verdict"] == ("cannot be judged")


def test_a_long_put_is_broken_at_the_arrows(command: Run) -> None:
    log = strace([*CREATION, *PUT, *PUT[2:-1], "SET_DEBUGREGS=EINVAL", "RUN"])
    done = command("trace", "-", input=log.encode(), env=_UTF8)
    text = done.stdout.decode()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "→\n    " in text
    assert "DEBUGREGS(EINVAL)" in text


def test_a_long_life_is_shown_in_brief(command: Run) -> None:
    body = [name for at in never_again(60) for name in ("RUN", ("SMI", "NMI", "INTERRUPT")[at])]
    log = qemu_log([*CREATION, *PUT, *body, *["GET_REGS", "RUN"] * 9]).encode()
    text = command("trace", "-", input=log, env=_UTF8).stdout.decode()
    assert re.search(r"\.\.\. +\d+ phases +\(-v lists them\)", text)
    assert "9 times in turn" in text
    assert len(text.splitlines()) < 40


def test_what_else_a_log_knows_is_in_the_list(command: Run) -> None:
    log = qemu_log(["RUN", "exit=17"]) + strace(["SET_SREGS:efer:0x1500"])
    text = command("trace", "-v", "-", input=log.encode()).stdout.decode()
    assert "line 1 exit reason 17" in text
    assert "line 3 = 0 EFER 0x1500" in text


def test_a_log_of_too_many_puts_is_cut(command: Run) -> None:
    log = qemu_log(["SET_SREGS", "SET_NESTED_STATE", "RUN"] * 10_001)
    done = command("trace", "--json", "-", input=log.encode())
    assert done.returncode == 3
    assert b"-: line 30002: too many" in done.stderr
    made = json.loads(done.stdout)
    assert made["log"]["complete"] is False
    assert len(made["vcpus"][0]["puts"]) == 10_001


def test_the_document(command: Run) -> None:
    made = json.loads(command("trace", "--json", REAL / "refused.ftrace").stdout)
    assert made["log"] == {
        "lines": 88,
        "used": 42,
        "ignored": 46,
        "formats": [{"name": "trace-cmd", "lines": 42}],
        "ioctls": 21,
        "results": 21,
        "complete": True,
    }
    assert made["verdict"] == "violates"
    assert made["qemu"] == {"guess": "not QEMU's order", "low": None, "high": None, "clues": []}
    (vcpu,) = made["vcpus"]
    assert (vcpu["index"], vcpu["fd"], vcpu["runs"], vcpu["migrated"]) == (0, 5, 3, None)
    (put,) = vcpu["puts"]
    assert vcpu["phases"][put["phase"]]["kind"] == "reset put"
    assert put["order"][:2] == ["KVM_SET_SREGS", "KVM_SET_NESTED_STATE"]
    (bad,) = (one for one in put["rules"] if one["outcome"] == "violated")
    assert (bad["id"], bad["severity"], bad["line"]) == ("T-01", "error", put["line"])
    assert set(made["rules"]) == {one["id"] for one in put["rules"]}
    assert made["rules"]["T-01"]["advice"]
    refused = [
        ioctl for phase in vcpu["phases"] for ioctl in phase["ioctls"] if ioctl["error"] is not None
    ]
    assert [(one["name"], one["number"], one["value"]) for one in refused] == [
        ("KVM_SET_NESTED_STATE", "0x4080aebf", -22)
    ]
    assert {one["name"] for one in made["others"]} >= {"KVM_CREATE_VM", "KVM_CREATE_VCPU"}
    assert made["not_shown"]


def test_the_document_is_documented(command: Run) -> None:
    page = (STREAMS.parent / "docs" / "trace.md").read_text()
    made = json.loads(command("trace", "--json", LOG).stdout)
    vcpu = made["vcpus"][0]
    parts = (
        *(made, made["source"], made["log"], made["qemu"], vcpu, vcpu["phases"][0]),
        *(vcpu["phases"][0]["ioctls"][0], vcpu["puts"][0], vcpu["puts"][0]["rules"][0]),
        *(made["rules"]["O-01"], made["not_shown"][0]),
    )
    for part in parts:
        for key in part:
            assert f"`{key}`" in page, key


def test_the_rules_are_documented() -> None:
    from qemu_svm.trace.rules import ORDERS

    page = (STREAMS.parent / "docs" / "trace.md").read_text()
    for rule in ORDERS:
        row = f"| {rule.id} | {rule.trace_severity.value} | {rule.requires} | {rule.scope} |"
        assert row in page


def test_hostile_names_are_escaped(command: Run) -> None:
    log = "ioctl(9, KVM_\u202eEVIL, 0) = 0\nioctl(9, KVM_X\u0301\u200d, 1) = 0\n" + strace(["RUN"])
    done = command("trace", "-v", "-", input=log.encode(), env=_UTF8)
    text = done.stdout.decode()
    assert all(char.isprintable() or char == "\n" for char in text)
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize("as_json", [True, False])
def test_a_damaged_file_is_read_as_far_as_it_goes(
    as_json: bool, tmp_path: Path, command: Run
) -> None:
    import gzip
    import random

    noise = random.Random(7)
    lines = [f"{noise.random()}:{line}" for line in qemu_log([*CREATION, *PUT, "RUN"]).split("\n")]
    packed = gzip.compress("\n".join(lines * 40).encode())
    path = tmp_path / "cut.log.gz"
    path.write_bytes(packed[: len(packed) // 2])
    done = command("trace", *(["--json"] if as_json else []), path)
    assert done.returncode == 3
    assert b"is truncated" in done.stderr
    if as_json:
        assert json.loads(done.stdout)["log"]["complete"] is False
    else:
        assert b"NOT READ TO THE END" in done.stdout
    path.write_bytes(packed[:30])
    done = command("trace", path)
    assert (done.returncode, done.stdout) == (3, b"")


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["trace"], 2, b"Missing argument"),
        (["trace", "/no/such/file"], 3, b"No such file"),
        (["trace", "/etc/passwd"], 3, b"no ioctl of a known kind of log"),
        (["trace", STREAMS / "manifest.json"], 3, b"strace -f"),
    ],
)
def test_wrong_arguments(args: list[str], status: int, words: bytes, command: Run) -> None:
    done = command(*args)
    assert (done.returncode, done.stdout) == (status, b"")
    assert words in done.stderr
    assert b"Traceback" not in done.stderr
