"""Dumps of -dump-vmstate: a real one of the installed QEMU, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import LimitExceeded, Malformed, StreamError
from qemu_svm.limits import Limits
from qemu_svm.stream.vmstate.dump import Dump, parse_dump

pytestmark = pytest.mark.qemu


def made(*fields: dict[str, Any], **more: Any) -> bytes:
    layout = {"name": "dev", "version_id": 2, "minimum_version_id": 1, "Fields": list(fields)}
    layout |= more
    return json.dumps({"vmschkmachine": {"Name": "pc"}, "dev": {"Description": layout}}).encode()


def test_a_real_dump(dump: Dump) -> None:
    assert dump.machine == "pc-q35-7.2"
    assert len(dump.layouts) > 100
    (rtc,) = dump.layouts["mc146818rtc"]
    assert (rtc.version, rtc.minimum) == (3, 1)
    assert rtc.fields[0].name == "cmos_data"
    assert (rtc.fields[0].size, rtc.fields[0].since) == (128, 0)
    assert [field.since for field in rtc.fields if field.name == "base_rtc"] == [3]


def test_classes_that_share_a_name(dump: Dump) -> None:
    assert {layout.version for layout in dump.layouts["ne2000"]} == {2, 3}


def test_nested_layouts_and_subsections(dump: Dump) -> None:
    (pm,) = dump.layouts["piix4_pm"]
    parent = pm.fields[0].layout
    assert parent is not None
    assert parent.name == "PCIDevice"
    assert [field.name for field in parent.fields][1:3] == ["config[0]", "config[1]"]
    assert parent.fields[1].conditional
    assert "piix4_pm/memhp" in {layout.name for layout in pm.subsections}


def test_repeated_names_are_numbered_as_in_streams() -> None:
    field = {"field": "x", "version_id": 0, "field_exists": False, "size": 1}
    (layout,) = parse_dump(made(field, field | {"field": "y"}, field)).layouts["dev"]
    assert [one.name for one in layout.fields] == ["x[0]", "y", "x[1]"]


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff{", b"[]", b"{}", b'{"vmschkmachine": 1}', made({"field": 1})]
    + [made({"field": "x", "size": "1"}), made(Fields={}), made(name=None)]
    + [made(version_id=1 << 50), made(Subsections=[1])],
)
def test_what_is_no_dump(text: bytes) -> None:
    with pytest.raises(Malformed):
        parse_dump(text)


def test_limits(text: bytes) -> None:
    with pytest.raises(LimitExceeded):
        parse_dump(text, Limits(description_bytes=len(text) - 1))
    with pytest.raises(LimitExceeded):
        parse_dump(text, Limits(description_depth=1))
    with pytest.raises(StreamError):
        parse_dump(b'{"vmschkmachine":' * 200_000)


def test_a_dump_cut_anywhere(text: bytes, tmp_path: Path) -> None:
    for end in range(0, len(text) - 2, 50_001):
        with pytest.raises(Malformed):
            parse_dump(text[:end])
