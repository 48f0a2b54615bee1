"""Every kind of stream, cut and flipped: only our errors, always with an offset."""

from __future__ import annotations

import random
from functools import cache

import pytest

from qemu_svm.errors import StreamError, Truncated
from qemu_svm.findings.inspection import findings
from qemu_svm.machine import read_machine
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import Kind, Walk, read_stream
from tests.conftest import STREAMS
from tests.stream.test_kinds import KINDS


@cache
def whole(name: str) -> bytes:
    with open_source(str(STREAMS / "kinds" / f"{name}.mig.zst")) as source:
        return source.read_at(0, source.size())


def places(data: bytes, name: str, count: int) -> list[int]:
    """Offsets all over, and more of them where there is no RAM."""
    rng = random.Random(name)
    devices = data.rfind(b"\x05timer")
    areas = [(8, 400), (devices, len(data)), (8, len(data))]
    return [rng.randrange(*rng.choice(areas)) for _ in range(count)]


@pytest.mark.parametrize("name", KINDS)
def test_cuts(name: str) -> None:
    data = whole(name)
    eof = next(r for r in read_stream(BytesSource(data)).records if r.kind is Kind.EOF)
    for cut in places(data, name, 14):
        if cut == eof.end:
            continue
        stream = read_stream(BytesSource(data[:cut]))
        assert not stream.complete, hex(cut)
        assert [type(problem) for problem in stream.problems] == [Truncated], hex(cut)
        assert stream.problems[0].offset == cut


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("walk", [Walk.QUICK, Walk.RAM])
def test_flips(name: str, walk: Walk) -> None:
    data = bytearray(whole(name))
    rng = random.Random(name)
    offsets = []
    for at in places(data, name, 14):
        old = data[at]
        data[at] = rng.choice([old ^ 1 << rng.randrange(8), 0, 0xFF, 0x7E, 4])
        try:
            machine = read_machine(read_stream(BytesSource(bytes(data)), walk=walk))
            for finding in findings(machine):
                assert finding.offset is None or 0 <= finding.offset <= len(data)
            for record in machine.stream.sections():
                assert record.end <= len(data)
        except StreamError as error:
            offsets.append(error.offset)
        data[at] = old
    assert all(0 <= offset <= len(data) for offset in offsets)
