"""What input may ask of us: every limit holds, says its name, and can be set."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from qemu_svm.errors import LimitExceeded, StreamError
from qemu_svm.limits import DEFAULT, Limits, changed
from qemu_svm.machine import Machine, read_machine
from qemu_svm.machine.paths import section_label
from qemu_svm.source import BytesSource
from qemu_svm.stream import Kind, Walk, read_stream
from qemu_svm.stream.constants import RecordType
from tests.conftest import ROOT, Run
from tests.support import builders
from tests.support.builders import EOS, Section

FIELD = [{"name": "a", "type": "uint8", "size": 1}]


def limited(data: bytes, **values: int) -> tuple[Machine, list[LimitExceeded]]:
    stream = read_stream(BytesSource(data), Limits(**values), Walk.LINEAR)
    machine = read_machine(stream)
    found = [p for p in stream.problems + machine.problems if isinstance(p, LimitExceeded)]
    assert all(0 <= problem.offset <= len(data) for problem in found)
    return machine, found


def in_ram(*records: bytes) -> bytes:
    """A stream with records between those of RAM, and nothing described."""
    data = builders.stream([], [], describe=False)
    at = data.index(builders.referring(RecordType.END, 2, EOS))
    return data[:at] + b"".join(records) + data[at:]


def test_the_size_of_the_description(sample: bytes) -> None:
    machine, (problem,) = limited(sample, description_bytes=5000)
    assert problem.hint is not None
    assert "description_bytes" in problem.hint
    assert machine.vcpus[0].nested is not None  # by the built-in layout


@pytest.mark.parametrize(
    "text",
    [
        b'{"devices": [' + b"{}," * 5000 + b"{}]}",
        b"[" * 5000,
        b'{"page_size": ' + b'{"a":' * 5000,
        b'{"devices": ' + b"[" * 5000,
    ],
)
def test_a_description_that_is_a_bomb(text: bytes) -> None:
    data = builders.stream([], [], describe=False)
    data += b"\6" + len(text).to_bytes(4, "big") + text
    for limit in (1000, 1 << 20):
        stream = read_stream(BytesSource(data), Limits(description_items=limit))
        assert stream.problems
        assert all(isinstance(problem, StreamError) for problem in stream.problems)
        assert stream.problems[0].offset > 8


def test_values_and_bytes_of_a_section(sample: bytes) -> None:
    machine, found = limited(sample, section_values=50)
    assert found
    assert machine.vcpus == ()
    machine, found = limited(sample, section_bytes=1000)
    assert {problem.section for problem in found} == {"cpu"}


def test_more_sections_than_the_limit() -> None:
    many = [Section(f"dev{number}", b"x", FIELD) for number in range(50)]
    data = builders.stream(many)
    machine, (problem,) = limited(data, records=20)
    assert sum(1 for _ in machine.stream.sections()) == 19  # and RAM
    assert "records" in (problem.hint or "")
    assert not machine.stream.complete
    assert limited(data, records=100)[1] == []


def test_commands_beyond_the_limit_are_folded() -> None:
    machine, found = limited(in_ram(*[builders.command(2, b"\0\0\0\1")] * 100), records=20)
    assert found == []
    assert machine.stream.complete
    (folded,) = [record for record in machine.stream.records if record.kind is Kind.SKIPPED]
    listed = sum(record.kind is Kind.COMMAND for record in machine.stream.records)
    assert folded.count + listed == 100


def test_more_damage_than_the_limit() -> None:
    start = builders.named(RecordType.START, 7, "dirty-bitmap", 0, 1, b"\1")
    bad = [builders.referring(RecordType.PART, 7, b"\xff" * 7 + bytes((n,))) for n in range(99)]
    machine, found = limited(in_ram(start, *bad), recoveries=5)
    assert len(machine.stream.problems) <= 7
    assert "recoveries" in (found[-1].hint or "")


def test_more_vcpus_than_the_limit(sample: bytes) -> None:
    machine, (problem,) = limited(sample, vcpus=0)
    assert machine.vcpus == ()
    assert "vcpus" in (problem.hint or "")


def test_labels_of_sections_that_share_a_name() -> None:
    two = [Section("dev", b"x", FIELD, instance=n) for n in (0, 3)]
    machine, _ = limited(builders.stream([*two, Section("other", b"x", FIELD)]))
    labels = [section_label(machine, record) for record in machine.stream.sections()]
    assert labels == ["dev[0]", "dev[3]", "other"]


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), ("0x10", 16), ("3K", 3072), ("2m", 2 << 20), ("1G", 1 << 30)]
)
def test_limits_as_a_user_gives_them(text: str, value: int) -> None:
    assert changed(DEFAULT, [f"records={text}"]) == Limits(records=value)


@pytest.mark.parametrize("text", ["records", "records=", "records=x", "nothing=1", "records=-1"])
def test_limits_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"limit|number"):
        changed(DEFAULT, [text])


def test_the_option(command: Run, sample_file: Path) -> None:
    done = command("inspect", "--limit", "vcpus=0", "--json", sample_file)
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert document["vcpus"] == []
    assert [problem["rule"] for problem in document["problems"]] == ["limit"]


@pytest.mark.parametrize(
    "verb",
    ["check", "compat", "diff", "inspect", "lab conform", "lab restore", "lab witness", "ram",
     "replay", "restore", "roundtrip", "show", "simulate", "trace", "vmruns"],
)  # fmt: skip
def test_every_verb_that_reads_a_stream_has_the_option(
    command: Run, sample_file: Path, verb: str
) -> None:
    done = command(*verb.split(), "--limit", "nonsense=1", sample_file)
    assert done.returncode == 2
    assert b"description_bytes" in done.stderr


def test_the_page_lists_every_limit_with_its_default() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    units = {"K": 10, "M": 20, "G": 30}
    for field in fields(Limits):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{field.name}` "))
        text = row.split("|")[2].strip()
        value = int(text.rstrip("KMG")) << units.get(text[-1], 0)
        assert value == getattr(DEFAULT, field.name), field.name
