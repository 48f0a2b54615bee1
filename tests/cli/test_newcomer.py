"""What somebody meets who tries the command for the first time, with wrong files and words."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from qemu_svm.findings.refusal import explain_refusal
from qemu_svm.findings.rules import RULES, explained
from qemu_svm.lab.restore import _REGISTERS
from qemu_svm.machine import Machine, read_machine
from qemu_svm.machine.paths import find
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS, Run

FILE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
PLAIN = STREAMS / "kinds" / "qemu10.0-postcopy.mig.zst"


def with_window(log: int, data: bytes) -> bytes:
    """A frame of zstd that declares a window, in case its content is smaller: ``--long=LOG``."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, window_log=log, write_content_size=False
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush()


def test_the_default_window_is_that_of_zstd(sample: bytes, tmp_path: Path, command: Run) -> None:
    path = tmp_path / "long27.zst"
    path.write_bytes(with_window(27, sample))
    assert command("inspect", path).returncode == 0


@pytest.mark.parametrize("verb", ["inspect", "check", "ram", "show", "simulate"])
def test_a_window_over_the_limit(verb: str, sample: bytes, tmp_path: Path, command: Run) -> None:
    path = tmp_path / "long28.zst"
    path.write_bytes(with_window(28, sample))
    done = command(verb, path, *(["header"] if verb == "show" else []))
    assert done.returncode == 3
    assert f"'{path}' needs a window of more than 128 MiB".encode() in done.stderr
    assert b"--limit window_bytes=SIZE" in done.stderr
    raised = command(
        verb, path, *(["header"] if verb == "show" else []), "--limit", "window_bytes=256M"
    )
    assert raised.returncode == 0


@pytest.mark.parametrize(
    ("suffix", "pack", "words"),
    [
        ("gz", "gzip", b"the gzip data of"),
        ("xz", "xz", b"the xz data of"),
        ("bz2", "bzip2", b"the bzip2 data of"),
        ("zst", "zstd", b"the zstd data of"),
    ],
)
def test_compressed_data_that_ends_before_the_header(
    suffix: str, pack: str, words: bytes, tmp_path: Path, command: Run
) -> None:
    import bz2
    import gzip
    import lzma

    made = {
        "gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }[pack](os.urandom(4000))  # fmt: skip
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(made[:20])
    done = command("inspect", path)
    assert done.returncode == 3
    assert words in done.stderr
    assert str(path).encode() in done.stderr
    assert b"truncated" in done.stderr


@pytest.mark.parametrize("verb", ["inspect", "check", "simulate", "ram", "vmruns", "trace"])
def test_an_error_names_the_file(verb: str, tmp_path: Path, command: Run) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("nothing of the kind\n" * 9)
    done = command(verb, path)
    assert done.returncode == 3
    assert str(path).encode() in done.stderr
    assert b"b'" not in done.stderr


def test_an_error_names_the_right_one_of_two_files(tmp_path: Path, command: Run) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("nothing of the kind\n" * 9)
    for pair in ((FILE, path), (path, FILE)):
        done = command("diff", *pair)
        assert done.returncode == 3
        assert done.stderr.startswith(f"svmstream: {path}: offset 0x0: ".encode())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("inspekt", "inspect"),
        ("simulat", "simulate"),
        ("chek", "check"),
        ("vmrun", "vmruns"),
        ("Inspect", "inspect"),
        ("lab wittness", "witness"),
        ("mem raed", "read"),
    ],
)
def test_did_you_mean(words: str, meant: str, command: Run) -> None:
    done = command(*words.split())
    assert (done.returncode, done.stdout) == (2, b"")
    assert re.search(rf"unknown verb '.*'\. Did you mean (\w+ or )*{meant}\b", done.stderr.decode())


def test_a_word_that_resembles_nothing(command: Run) -> None:
    done = command("xyzzy")
    assert done.returncode == 2
    assert b"unknown verb 'xyzzy'." in done.stderr
    assert b"Did you mean" not in done.stderr


def test_simulate_on_several_kernels(command: Run) -> None:
    args = ("simulate", FILE, "--kernel", "6.1", "--kernel", "5.10")
    made = json.loads(command(*args, "--json").stdout)
    assert [one["kernel"]["row"] for one in made["simulations"]] == ["6.1", "5.10.262"]
    assert b"6.1" in command(*args).stdout
    assert b"5.10" in command(*args).stdout


def test_a_proposal_is_no_release(command: Run) -> None:
    done = command("simulate", FILE, "--kernel", "all", "--json")
    for one in json.loads(done.stdout)["simulations"]:
        proposal = one["kernel"]["name"] in ("v3", "review")
        assert (one["kernel"]["release"] == "") is proposal


def test_check_of_one_file_is_as_before(command: Run) -> None:
    made = json.loads(command("check", "--json", FILE).stdout)
    assert set(made) >= {"schema_version", "source", "complete", "findings", "vcpus"}
    assert "files" not in made


def test_check_of_several_files(sample: bytes, tmp_path: Path, command: Run) -> None:
    notes, cut, gone = tmp_path / "notes.txt", tmp_path / "cut.bin", tmp_path / "gone.bin"
    notes.write_text("nothing of the kind\n" * 9)
    cut.write_bytes(sample[:0x98D00])
    good = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"
    done = command("check", "--json", good, notes, cut, gone, FILE)
    made = json.loads(done.stdout)
    assert done.returncode == 3
    assert [one["source"]["path"] for one in made["files"]] == [
        str(one) for one in (good, notes, cut, gone, FILE)
    ]
    assert ["error" in one for one in made["files"]] == [False, True, False, True, False]
    assert made["files"][0] == json.loads(command("check", "--json", good).stdout)
    text = command("check", good, notes, FILE)
    assert text.returncode == 3
    assert text.stdout.count(b"vCPU 0 (in guest mode)") == 2
    assert str(notes).encode() in text.stderr
    assert command("check", good, FILE).returncode == 0
    old = ("--kernel", "5.10.100", "--fail-on", "warning")
    assert command("check", good, FILE, *old).returncode == 1
    twice = command("check", "-", "-")
    assert twice.returncode == 2
    wrong = command("check", good, FILE, "--kernel", "6.x")
    assert (wrong.returncode, wrong.stderr.count(b"unknown kernel")) == (2, 1)


@pytest.mark.parametrize("word", ["O-28", "o-28", "O28", "o28", " o-28"])
def test_ids_of_rules_in_any_spelling(word: str) -> None:
    assert explained(word).rules == (RULES["O-28"],)


def test_ids_of_rules_without_zeros() -> None:
    assert explained("sv-3").rules == (RULES["SV-03"],)
    for rule in RULES.values():
        assert explained(rule.id.lower()).rules == (rule,)


def test_a_cut_file_is_not_without_findings(sample: bytes, command: Run) -> None:
    done = command("check", "-", input=sample[:400_000])
    assert b"No findings.\n" not in done.stdout
    assert b"No findings in the part that can be read" in done.stdout


def test_a_guest_without_nested_state_is_not_accepted(command: Run) -> None:
    done = command("check", PLAIN)
    assert b"no nested state, so there is nothing for a kernel to refuse" in done.stdout
    assert b"accepted" not in done.stdout


def test_a_kernel_that_crashes_does_not_merely_accept(command: Run) -> None:
    (vcpu,) = json.loads(command("check", "--json", FILE).stdout)["vcpus"]
    with_rule, _, without = vcpu["summary"].partition("; ")
    assert with_rule.startswith("accepted with O-28 by 5.8 to 5.12")
    assert without.startswith("accepted by 5.13")


@pytest.fixture
def nested() -> Iterator[Machine]:
    with open_source(str(FILE)) as source:
        yield read_machine(read_stream(source))


@pytest.mark.parametrize(
    "line",
    [
        "error while loading state for instance 0x0 of device 'ram'",
        "error while loading state for instance 0x0 of device 'cpu'",
        "error while loading state for instance 0x0 of device 'apic'",
        "Failed to load apic:id",
        "Failed to load cpu:env.xcr0",
        "Failed to load pckbd state",
    ],
)
def test_what_a_hint_names_can_be_shown(line: str, nested: Machine, command: Run) -> None:
    hints = [one for one in explain_refusal(nested, [line]) if "svmstream show" in one.do]
    for one in hints:
        words = shlex.split(one.do.partition(" prints")[0])
        assert words[:3] == ["svmstream", "show", str(FILE)]
        assert find(nested, words[3])
        assert command(*words[1:]).returncode == 0
    assert hints or "svmstream show" not in line


def test_ram_can_be_shown(command: Run) -> None:
    made = json.loads(command("show", "--json", FILE, "section:ram").stdout)
    assert made["children"][0]["name"] == "pc.ram"
    assert made["children"][0]["value"] == "0x2000000"
    one = json.loads(command("show", "--json", FILE, "section:ram.pc.ram").stdout)
    assert bytes.fromhex(one["raw"])[1:7] == b"pc.ram"
    near = command("show", FILE, "section:rm")
    assert b"near it: section:ram" in near.stderr


@pytest.mark.parametrize(
    ("given", "added"),
    [((), True), (("-display", "gtk"), False), (("-vnc", ":1"), False), (("-nographic",), False)],
)
def test_a_restore_opens_no_display(
    given: tuple[str, ...], added: bool, tmp_path: Path, command: Run
) -> None:
    qemu, log = tmp_path / "qemu", tmp_path / "args"
    qemu.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {log}\nexit 1\n')
    qemu.chmod(0o755)
    done = command("restore", "--check", FILE, "--qemu", qemu, "--", "-M", "pc", *given)
    assert done.returncode == 5
    words = log.read_text().split()
    assert ("-display none" in " ".join(words)) is added


def test_the_wording_about_other_guests() -> None:
    assert "project" not in _REGISTERS


def test_a_descriptor_table_has_no_selector(command: Run) -> None:
    done = command("simulate", FILE, "--plan", "cpuid,sregs:l1,nested,regs,run")
    assert b"L1's IDT: base 0x0 limit 0x3ff instead of base 0x0 limit 0x0" in done.stdout
    for line in done.stdout.decode().splitlines():
        if re.match(r" +[gi]dtr ", line):
            assert line.split()[1] == "base"


def test_no_description_is_no_defect(command: Run) -> None:
    for name in ("qemu10.0-postcopy.mig.zst", "qemu10.0-no-description.mig.zst"):
        path = STREAMS / "kinds" / name
        done = command("inspect", "--json", path)
        assert done.returncode == 0
        (problem,) = json.loads(done.stdout)["problems"]
        assert (problem["rule"], problem["severity"]) == ("no-description", "info")
        assert command("ram", path).returncode == 0


def test_the_verdict_of_simulate_is_on_the_first_screen(command: Run) -> None:
    done = command("simulate", FILE, "--plan", "cpuid,sregs:l1,nested,regs,run")
    lines = done.stdout.decode().splitlines()
    assert any(line.startswith("verdict: wrong") for line in lines[:6])


def test_damage_of_a_channel_names_the_channel(tmp_path: Path, command: Run) -> None:
    stem = str(STREAMS / "kinds" / "qemu10.0-multifd")
    cut = tmp_path / "cut.channel0"
    with open_source(f"{stem}.channel0.zst") as source:
        cut.write_bytes(source.read_at(0, 50_000))
    done = command("ram", f"{stem}.mig.zst", "--channel", cut, "--channel", f"{stem}.channel1.zst")
    assert done.returncode == 3
    assert done.stderr.startswith(f"svmstream: {cut}: offset 0x".encode())


def test_words_that_resemble_a_name(command: Run) -> None:
    block = command("ram", FILE, "--block", "nope")
    assert (block.returncode, b"near it: pc.ram" in block.stderr) == (2, True)
    limit = command("ram", FILE, "--limit", "windowbytes=3")
    assert b"unknown limit 'windowbytes'; known are window_bytes" in limit.stderr
