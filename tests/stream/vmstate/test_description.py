"""The JSON description as a tree."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.errors import LimitExceeded, Malformed, StreamError
from qemu_svm.limits import Limits
from qemu_svm.stream.vmstate import description as vmdesc


def parse(document: Any, **options: Any) -> vmdesc.Description:
    text = document if isinstance(document, str) else json.dumps(document)
    return vmdesc.parse(text.encode(), 100, **options)


def device(*fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    base = {"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": list(fields)}
    return {"page_size": 4096, "devices": [base | more]}


def test_sizes_count_arrays_and_subsection_headers() -> None:
    found = parse(
        device(
            {"name": "a", "type": "uint32", "size": 4},
            {"name": "b", "array_len": 3, "type": "uint16", "size": 2},
            subsections=[
                {
                    "vmsd_name": "d/more",
                    "version": 1,
                    "fields": [{"name": "c", "type": "bool", "size": 1}],
                }
            ],
        )
    ).devices[0]
    assert found.payload_size == 4 + 6 + (1 + 1 + 6 + 4 + 1)
    assert found.layout.subsections[0].name == "d/more"


def test_duplicate_keys_are_groups() -> None:
    group = '"vmsd_name": "e", "version": 2, "fields": [{"name": "x", "type": "uint8", "size": 1}]'
    text = (
        '{"page_size": 4096, "devices": [{"name": "d", "instance_id": 0, "vmsd_name": "d", '
        '"version": 1, "fields": [{"name": "q", "type": "qtailq", '
        + ", ".join([group] * 3)
        + ', "size": 7}]}]}'
    )
    field = parse(text).devices[0].layout.fields[0]
    assert [(g.name, g.version, len(g.fields)) for g in field.groups] == [("e", 2, 1)] * 3


def test_old_style_handlers_have_no_vmsd() -> None:
    # slirp in real streams: no vmsd_name, no version, one buffer.
    text = (
        '{"devices": [{"name": "slirp", "instance_id": 0, "size": 9, '
        '"fields": [{"name": "data", "size": 9, "type": "buffer"}]}]}'
    )
    found = parse(text)
    assert (found.page_size, found.devices[0].payload_size) == (None, 9)


@pytest.mark.parametrize(
    "document",
    [
        [],
        1,
        {"devices": {}},
        {"devices": [[]]},
        {"devices": [{}]},
        {"devices": [{"name": 1, "instance_id": 0, "fields": []}]},
        {"devices": [{"name": "d", "instance_id": "0", "fields": []}]},
        {"devices": [{"name": "d", "instance_id": True, "fields": []}]},
        {"devices": [{"name": "d", "instance_id": 0, "subsections": []}]},
        {"devices": [{"name": "d", "instance_id": 0}]},
        {"page_size": -1},
        {"page_size": 1.5},
        device({"name": "a", "type": "uint8"}),
        device({"name": "a", "type": 3, "size": 1}),
        device({"name": "a", "type": "uint8", "size": 1 << 60}),
        device({"name": "a", "type": "uint8", "size": 1, "array_len": -1}),
        device({"name": "a", "type": "struct", "struct": [], "size": 1}),
        device(subsections=[{"vmsd_name": "x", "version": 1}]),
        "{",
        '{"page_size": NaN}',
        '{"page_size": 1e999}',
        "9" * 10_000,
        "\ufffd",
    ],
)
def test_what_is_no_description(document: Any) -> None:
    with pytest.raises(Malformed) as caught:
        parse(document)
    assert caught.value.offset >= 100


def test_not_even_text() -> None:
    with pytest.raises(Malformed, match="not UTF-8"):
        vmdesc.parse(b"\xff\xfe", 0)


def test_depth_is_limited() -> None:
    document: dict[str, Any] = {"vmsd_name": "x", "version": 1, "fields": []}
    for _ in range(20):
        document = {
            "vmsd_name": "x",
            "version": 1,
            "fields": [{"name": "s", "type": "struct", "struct": document, "size": 0}],
        }
    top = {"devices": [{"name": "d", "instance_id": 0} | document]}
    assert parse(top).devices[0].payload_size == 0
    with pytest.raises(LimitExceeded):
        parse(top, limits=Limits(description_depth=10))
    with pytest.raises(LimitExceeded):
        parse("[" * 100_000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "fields", "devices", "size", "type", "struct", "version"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_gives_a_tree_or_our_error(document: Any) -> None:
    with contextlib.suppress(StreamError):
        vmdesc.parse(json.dumps(document).encode(), 0)


def test_devices_of_one_name_that_differ_are_told_apart() -> None:
    one, two = ({"name": name, "type": "uint32", "size": 4} for name in "ab")
    devices = [
        device(field)["devices"][0] | {"instance_id": number}
        for number, field in enumerate((one, one, two, one))
    ]
    found = parse({"page_size": 4096, "devices": devices}).devices
    assert [each.layout.fields[0].name for each in found] == ["a", "a", "b", "a"]
    assert [each.instance_id for each in found] == [0, 1, 2, 3]
    assert found[0].layout is found[1].layout
