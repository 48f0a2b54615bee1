"""One real stream of every kind (``tools/make_streams.py`` made them)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qemu_svm.findings.inspection import findings
from qemu_svm.machine import read_machine
from qemu_svm.source import open_source
from qemu_svm.stream import Kind, Walk, read_stream
from tests.conftest import STREAMS

KINDS: dict[str, dict[str, Any]] = json.loads((STREAMS / "kinds" / "kinds.json").read_text())
PAGES = 4096  # of the guest's 16 MiB


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("walk", Walk)
def test_every_kind_is_read_whole(name: str, walk: Walk) -> None:
    entry = KINDS[name]
    with open_source(str(STREAMS / "kinds" / f"{name}.mig.zst")) as source:
        stream = read_stream(source, walk=walk)
        machine = read_machine(stream)
        assert source.size() == entry["size"]
        assert stream.complete
        assert stream.problems == ()
        if entry["emulator"] == "x86_64":
            assert machine.blocks[0].name == "pc.ram"
            assert machine.blocks[0].used_length == PAGES * 4096
            (vcpu,) = machine.vcpus
            assert vcpu.get("rip") >= 0x7C00
        else:
            assert "ram" in machine.blocks[0].name
            assert machine.vcpus == ()
        at = 8
        for record in stream.records:
            assert record.offset == at
            at = record.end
        described = stream.description is not None
        assert described is not entry["kind"].startswith(("no-description", "postcopy"))
        warned = [finding.rule for finding in findings(machine)]
        assert warned == ([] if described else ["no-description"])


@pytest.mark.parametrize("name", KINDS)
def test_page_records_of_every_kind(name: str) -> None:
    kind = KINDS[name]["kind"]
    with open_source(str(STREAMS / "kinds" / f"{name}.mig.zst")) as source:
        pages = read_stream(source, walk=Walk.RAM).pages
    assert pages is not None
    total = pages.normal + pages.zero + pages.xbzrle + pages.compressed
    assert bool(pages.xbzrle) is (kind == "xbzrle" and name.startswith("qemu10"))
    assert bool(pages.compressed) is (kind == "compress")
    if kind.startswith("multifd"):
        assert pages.normal == 0  # they travelled on the other channels
    elif kind != "ignore-shared":
        assert total >= PAGES


def test_postcopy_has_its_devices_in_a_package() -> None:
    with open_source(str(STREAMS / "kinds" / "qemu10.0-postcopy.mig.zst")) as source:
        records = read_stream(source).records
    names = [record.name for record in records]
    for command in ("POSTCOPY_ADVISE", "POSTCOPY_LISTEN", "PACKAGED", "POSTCOPY_RUN"):
        assert command in names
    run = names.index("POSTCOPY_RUN")
    assert names.index("PACKAGED") < names.index("cpu") < run
    assert records[-1].kind is Kind.EOF
    assert "ram" in names[run:]
