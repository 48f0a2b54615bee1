"""Streams that describe nothing, with and without footers: the vCPUs are found all the same.

Made of real captures by taking away what is not there in streams of old machine
types or with ``suppress-vmdesc=on``, and saved by a real QEMU.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import StreamError, Truncated
from qemu_svm.findings.inspection import findings
from qemu_svm.machine import Machine, read_machine
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import Kind, Stream, Walk, read_stream
from qemu_svm.stream.resync import footer_bytes
from tests.conftest import STREAMS, capture_bytes
from tests.stream.test_qemu import save
from tests.support import builders
from tests.support.builders import Section

_WITH_FOOTER = (Kind.START, Kind.PART, Kind.END, Kind.FULL)


def bare(whole: bytes, *, footers: bool) -> bytes:
    """The same stream without its description, and without footers."""
    stream = read_stream(BytesSource(whole), walk=Walk.RAM)
    out = [whole[:8]]
    for record in stream.records:
        end = record.end
        if record.kind is Kind.DESCRIPTION:
            break
        if not footers and record.kind in _WITH_FOOTER:
            end = record.payload + record.payload_size
        out.append(whole[record.offset : end])
    return b"".join(out)


def of(data: bytes, walk: Walk = Walk.QUICK) -> Machine:
    return read_machine(read_stream(BytesSource(data), walk=walk))


def names(stream: Stream) -> list[tuple[str | None, int | None, int]]:
    return [(s.name, s.instance_id, s.payload_size) for s in stream.sections()]


@pytest.mark.parametrize("footers", [True, False])
def test_nested_state_of_every_capture(capture: dict[str, Any], footers: bool) -> None:
    whole = capture_bytes(capture["file"])
    full, found = of(whole), of(bare(whole, footers=footers))
    assert found.stream.complete
    assert found.stream.problems == ()
    assert names(found.stream) == names(full.stream)
    assert found.stream.footers is footers
    assert len(found.vcpus) == len(full.vcpus) > 0
    for ours, theirs in zip(found.vcpus, full.vcpus, strict=True):
        assert ours.described == "builtin"
        assert (ours.nested is None) is (theirs.nested is None)
        if ours.nested and theirs.nested:
            assert ours.nested.vmcb == theirs.nested.vmcb
            assert ours.nested.flags == theirs.nested.flags
        assert {k: v.value for k, v in ours.registers.items()} == {
            k: v.value for k, v in theirs.registers.items()
        }
    (warning,) = findings(found)
    assert warning.rule == "no-description"
    assert ("are a guess" in warning.message) is not footers


def many(whole: bytes, count: int) -> bytes:
    """A capture with its ``cpu`` and ``cpu_common`` sections repeated for more vCPUs."""
    stream = read_stream(BytesSource(whole), walk=Walk.RAM)
    out, at = [], 0
    for record in stream.records:
        if record.name in ("cpu", "cpu_common"):
            out.append(whole[at : record.offset])
            at = record.end
            section = whole[record.offset : record.end]
            place = len(section) - record.payload_size - 5 - 8
            out += [
                section[:place] + number.to_bytes(4, "big") + section[place + 4 :]
                for number in range(count)
            ]
    return b"".join(out) + whole[at:]


@pytest.mark.parametrize("footers", [True, False])
@pytest.mark.parametrize("linux", ["qemu5.2-linux5.10", "qemu7.2-linux6.1",
                                   "qemu10.0-linux6.12", "qemu11.1-linux7.2"])  # fmt: skip
def test_nested_state_of_every_vcpu(linux: str, footers: bool) -> None:
    whole = capture_bytes(f"{linux}-nested-npt.mig.zst")
    found = of(bare(many(bare(whole, footers=True), 5), footers=footers))
    assert found.stream.complete
    assert [vcpu.index for vcpu in found.vcpus] == [0, 1, 2, 3, 4]
    assert all(vcpu.nested is not None and vcpu.guest_mode for vcpu in found.vcpus)
    assert len({vcpu.nested.vmcb for vcpu in found.vcpus if vcpu.nested}) == 1


@pytest.mark.parametrize("linux", ["qemu5.2-linux5.10", "qemu11.1-linux7.2"])
def test_cut_without_footers(linux: str) -> None:
    data = bare(capture_bytes(f"{linux}-nested.mig.zst"), footers=False)
    stream = read_stream(BytesSource(data))
    first = next(stream.sections()).offset
    cpu = next(record for record in stream.sections() if record.name == "cpu")
    rng = random.Random(linux)
    for cut in [*rng.sample(range(first, len(data)), 40), cpu.offset + 30, cpu.end]:
        found = of(data[:cut])
        for problem in found.stream.problems:
            assert isinstance(problem, StreamError)
            assert problem.offset <= cut
        # A cut that leaves a zero byte looks like an EOF; any other does not.
        assert found.stream.complete is (data[cut - 1] == 0) or found.stream.problems
        if cut > cpu.end:
            assert found.vcpus[0].nested is not None


@pytest.mark.parametrize("after", ["timer", "cpu"])
def test_damage_without_footers_is_stepped_over(after: str) -> None:
    data = bytearray(bare(capture_bytes("qemu7.2-linux6.1-nested.mig.zst"), footers=False))
    stream = read_stream(BytesSource(bytes(data)))
    end = next(record for record in stream.sections() if record.name == after).end
    data[end] = 0x55
    found = of(bytes(data))
    assert [problem.offset for problem in found.stream.problems] == [end]
    assert found.vcpus[0].nested is not None
    assert any(record.kind is Kind.LOST for record in found.stream.records)


@pytest.mark.parametrize("footers", [True, False])
def test_a_newer_subsection_behind_the_nested_state(footers: bool) -> None:
    whole = bare(capture_bytes("qemu11.1-linux7.2-nested.mig.zst"), footers=footers)
    cpu = next(r for r in read_stream(BytesSource(whole)).sections() if r.name == "cpu")
    end = cpu.payload + cpu.payload_size
    newer = builders.subsection("cpu/of_tomorrow", 1, b"\1\2\3")
    found = of(whole[:end] + newer + whole[end:])
    assert found.vcpus[0].nested is not None
    assert bool(found.stream.problems) is not footers


def test_a_header_inside_a_section_is_not_believed_where_a_layout_fits() -> None:
    # The clock's fields spell a header; the layout of `timer` is known.
    fake = b"\4\0\0\0\x20\2ab" + bytes(8) + b"\1"
    timer = Section("timer", fake.ljust(24, b"\1"), [])
    other = Section("other", b"\4\0\0\0\x20\2a", [])
    stream = read_stream(
        BytesSource(builders.stream([timer, other], describe=False, footers=False))
    )
    assert names(stream) == [("timer", 0, 24), ("other", 0, 7)]
    assert [s.described for s in stream.sections()] == ["builtin", "none"]


def test_the_end_is_missing() -> None:
    other = Section("other", b"abc", [])
    data = builders.stream([other], describe=False, footers=False)[:-1]
    (problem,) = read_stream(BytesSource(data)).problems
    assert isinstance(problem, Truncated)
    assert problem.section == "other"


SAVED = {
    "plain": ["-M", "pc-i440fx-2.2", "-nodefaults"],
    "smp": ["-M", "pc-q35-2.4", "-smp", "3", "-cpu", "EPYC,+svm", "-device", "virtio-net-pci"],
}


@pytest.mark.qemu
@pytest.mark.parametrize("footers", [True, False])
@pytest.mark.parametrize("name", SAVED)
def test_a_real_qemu_that_describes_nothing(name: str, footers: bool, tmp_path: Path) -> None:
    switch = "on" if footers else "off"
    arguments = [*SAVED[name], "-m", "16", "-global", f"migration.send-section-footer={switch}"]
    found = {}
    for described in ("off", "on"):
        path = tmp_path / described
        save([*arguments, "-machine", f"suppress-vmdesc={described}"], path)
        with open_source(str(path)) as source:
            machine = read_machine(read_stream(source))
        assert machine.stream.complete
        assert machine.stream.problems == ()
        assert len(machine.vcpus) == (3 if name == "smp" else 1)
        found[described] = machine
    assert found["on"].stream.description is None
    # Some sections are as long as the clock says, but all begin in the same order.
    assert [n[:2] for n in names(found["on"].stream)] == [n[:2] for n in names(found["off"].stream)]
    assert names(found["on"].stream) == names(found["off"].stream)


def test_the_sample_without_description_has_its_vcpu() -> None:
    with open_source(str(STREAMS / "kinds" / "qemu10.0-no-description.mig.zst")) as source:
        whole = source.read_at(0, source.size())
    machine = of(bare(whole, footers=False))
    assert machine.stream.complete
    assert [vcpu.described for vcpu in machine.vcpus] == ["builtin"]


FAKES = {
    "the end": b"\0\0\0\0",
    "a section": b"\4\0\0\0\7\3abc" + bytes(3) + b"\0\0\0\0\1",
    "the same again": b"\2\0\0\0\2",
}


def test_ticks_that_look_like_a_footer(capture: dict[str, Any]) -> None:
    # The timer is section 0, and behind its ticks, whose last byte may well be 7e, are zeros.
    data = bare(capture_bytes(capture["file"]), footers=True)
    (timer,) = [r for r in of(data).stream.sections() if r.name == "timer"]
    ticks = timer.payload + 7
    if timer.section_id != 0:
        at = timer.payload + 24  # its footer
        zero = bytes(4)
        data = (
            data[: timer.offset + 1]
            + zero
            + data[timer.offset + 5 : at + 1]
            + zero
            + data[at + 5 :]
        )
    found = of(data[:ticks] + b"\x7e" + data[ticks + 1 :])
    assert found.stream.problems == ()
    assert names(found.stream) == names(of(data).stream)


@pytest.mark.parametrize("fake", FAKES)
def test_registers_that_look_like_a_footer(fake: str) -> None:
    data = bare(capture_bytes("qemu7.2-linux6.1-nested.mig.zst"), footers=True)
    (cpu,) = [r for r in of(data).stream.sections() if r.name == "cpu"]
    at, forged = cpu.payload + 560, footer_bytes(cpu.section_id or 0) + FAKES[fake]
    found = of(data[:at] + forged + data[at + len(forged) :])
    assert found.stream.problems == ()
    assert names(found.stream) == names(of(data).stream)
    assert found.vcpus[0].nested is not None
