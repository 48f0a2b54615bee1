"""Values out of payloads, for every type and quirk."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.errors import LimitExceeded, Malformed, Truncated
from qemu_svm.limits import Limits
from qemu_svm.source import BytesSource
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.vmstate import description as vmdesc
from qemu_svm.stream.vmstate import types
from qemu_svm.stream.vmstate.decode import decode
from qemu_svm.stream.vmstate.values import Value
from tests.support.builders import subsection


def layout(fields: list[Any] | str, subsections: list[Any] | None = None) -> vmdesc.Fields:
    text = fields if isinstance(fields, str) else json.dumps(fields)
    more = f', "subsections": {json.dumps(subsections)}' if subsections else ""
    document = (
        '{"devices": [{"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, '
        f'"fields": {text}{more}}}]}}'
    )
    return vmdesc.parse(document.encode(), 0).devices[0].layout


def read(payload: bytes, fields: Any, subsections: Any = None, **options: Any) -> Value:
    reader = Reader(BytesSource(b"\xee" * 7 + payload), 7)
    value = decode(reader, layout(fields, subsections), "d", **options)
    assert value.offset == 7
    return value


def field(name: str, kind: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "size": size} | more


@pytest.mark.parametrize("kind", types.SCALARS)
@given(data=st.data())
def test_scalars(kind: str, data: st.DataObject) -> None:
    scalar = types.SCALARS[kind]
    payload = data.draw(st.binary(min_size=scalar.size, max_size=scalar.size))
    leaf = read(payload, [field("x", kind, scalar.size)]).children[0]
    number = int.from_bytes(payload, "big", signed=scalar.signed)
    assert leaf.value == (bool(number) if kind == "bool" else number)
    assert (leaf.offset, leaf.size) == (7, scalar.size)


def test_traps_in_type_names() -> None:
    ones = read(b"\xff" * 12, [field("a", "int64 equal", 8), field("b", "int32 le", 4)])
    assert [c.value for c in ones.children] == [2**64 - 1, -1]


def test_a_size_that_contradicts_the_type_wins() -> None:
    # Up to 9.x a NULL pointer is called uint64 and takes one byte.
    assert read(b"0", [field("p", "uint64", 1)]).children[0].value == b"0"


def test_unknown_types_are_raw_bytes() -> None:
    value = read(b"abcde", [field("x", "no such type", 5)]).children[0]
    assert (value.value, value.type) == (b"abcde", "no such type")


def test_arrays() -> None:
    value = read(
        b"\1\2\3" + b"\0\5\0\6" + b"\7\x08",
        [
            field("bytes", "uint8", 1, array_len=3),
            field("words", "uint16", 2, array_len=2),
            field("s", "uint8", 1, index=0),
            field("s", "uint8", 1),  # the last one lacks its index in 10.x
        ],
    )
    assert [c.value for c in value.children] == [b"\1\2\3", (5, 6), None]
    assert [(c.name, c.value) for c in value.children[2].children] == [("[0]", 7), ("[1]", 8)]
    found = value.resolve("s[1]")
    assert found is not None
    assert (found.value, found.offset) == (8, 15)


def test_arrays_of_structures_and_dotted_names() -> None:
    inner = {"vmsd_name": "e", "version": 1, "fields": [field("a.b[0]", "uint8", 1)]}
    value = read(b"\1\2", [field("env.x[1]", "struct", 1, array_len=2, struct=inner)])
    found = value.resolve("env.x[1][1].a.b[0]")
    assert found is not None
    assert found.value == 2
    assert value.resolve("env.x[1][2]") is None
    assert [path for path, _ in value.walk()][-1] == "env.x[1][1].a.b[0]"


def test_flattened_structures() -> None:
    nested = {"vmsd_name": "t", "version": 0, "fields": [field("m", "uint16", 2)]}
    for kind in ("tmp", "vstruct"):
        value = read(b"\1\2", [field("t", kind, 2) | nested])
        found = value.resolve("t.m")
        assert found is not None
        assert found.value == 0x102


def test_counted_strings_vary_in_size() -> None:
    # array_len 2 and the size of the first: the wire knows better.
    value = read(b"\x03abc\x01z", [field("caps", "capability", 4, array_len=2)]).children[0]
    assert [c.value for c in value.children] == ["abc", "z"]
    assert value.size == 6


def test_counted_bytes() -> None:
    value = read(b"\0\0\0\2hi", [field("g", "GByteArray", 6)]).children[0]
    assert value.value == b"hi"


GROUP = '"vmsd_name": "e", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}]'


def listed(kind: str, groups: int, size: int) -> str:
    inner = ", ".join([GROUP] * groups)
    return f'[{{"name": "q", "type": "{kind}", {inner}, "size": {size}}}]'


def test_lists() -> None:
    value = read(b"\1\x0a\1\x0b\0", listed("qtailq", 2, 5)).children[0]
    assert [(c.name, c.children[0].value) for c in value.children] == [("[0]", 10), ("[1]", 11)]


def test_trees_with_direct_and_described_keys() -> None:
    direct = b"\0\0\0\1" + b"\1" + bytes(7) + b"\x09" + b"\x0a" + b"\0"
    pair = read(direct, listed("gtree", 1, len(direct))).children[0].children[0]
    assert [c.name for c in pair.children] == ["key", "value"]
    assert (pair.children[0].value, pair.children[1].children[0].value) == (9, 10)
    described = b"\0\0\0\1" + b"\1\x09\x0a\0"
    pair = read(described, listed("gtree", 2, len(described))).children[0].children[0]
    assert (pair.children[0].children[0].value, pair.children[1].children[0].value) == (9, 10)


def test_a_list_that_is_not_as_described_is_raw() -> None:
    value = read(b"\2\x0a\1\x0b\0", listed("qlist", 2, 5)).children[0]
    assert value.value == b"\2\x0a\1\x0b\0"


@pytest.mark.parametrize(
    ("entries", "payload", "sizes"),
    [
        # s390_css of QEMU 10: NULLs in front are counted for themselves.
        ([("nullptr", 1, 2), ("uint32", 4, None), ("nullptr", 1, None)], b"00abcd0", [1, 1, 4, 1]),
        # A first element that is not NULL bears the length of the whole array.
        ([("uint32", 4, 3), ("nullptr", 1, None)], b"abcdefgh0", [4, 4, 1]),
        # 11.x: a marker before every element.
        ([("ptr-marker", 1, None), ("uint32", 4, None)], b"1abcd", [1, 4]),
    ],
)
def test_arrays_of_pointers(entries: Any, payload: bytes, sizes: list[int]) -> None:
    fields = [
        field("p", kind, size) | ({} if count is None else {"array_len": count})
        for kind, size, count in entries
    ]
    value = read(payload, fields).children[0]
    assert [child.size for child in value.children] == sizes


def test_null_pointer_to_a_structure() -> None:
    assert read(b"0", [field("p", "struct", 1, struct={})]).children[0].value == b"0"


def test_subsections_of_structures_come_first() -> None:
    inner = {
        "vmsd_name": "e",
        "version": 1,
        "fields": [field("a", "uint8", 1)],
        "subsections": [{"vmsd_name": "e/x", "version": 2, "fields": [field("b", "uint8", 1)]}],
    }
    outer = [{"vmsd_name": "d/y", "version": 1, "fields": [field("c", "uint8", 1)]}]
    body = b"\1" + subsection("e/x", 2, b"\2")
    payload = body + subsection("d/y", 1, b"\3")
    value = read(payload, [field("s", "struct", len(body), struct=inner)], outer)
    for path, number in (("s.a", 1), ("s.e/x.b", 2), ("d/y.c", 3)):
        found = value.resolve(path)
        assert found is not None, path
        assert found.value == number
    assert value.size == len(payload)


def test_a_missing_subsection_is_told() -> None:
    with pytest.raises(Malformed, match="subsection") as caught:
        read(
            b"\1" + bytes(30),
            [field("a", "uint8", 1)],
            [{"vmsd_name": "d/x", "version": 1, "fields": []}],
        )
    assert caught.value.offset == 8
    assert caught.value.field == "d/x"


def test_truncation_names_the_field() -> None:
    with pytest.raises(Truncated) as caught:
        read(b"\1\2", [field("a", "uint8", 1), field("b", "uint32", 4)])
    assert (caught.value.offset, caught.value.section, caught.value.field) == (9, "d", "b")


def test_amplification_is_limited() -> None:
    inner = {
        "vmsd_name": "e",
        "version": 1,
        "fields": [field(f"z{i}", "buffer", 0) for i in range(50)],
    }
    fields = [field("s", "struct", 1, array_len=10_000, struct=inner)]
    with pytest.raises(LimitExceeded):
        read(b"\0" * 20_000, fields, limits=Limits(section_values=1000))
    huge = [field("s", "nothing", 0, array_len=1 << 39)]
    assert read(b"", huge).children[0].size == 0


def test_real_sections_are_decoded_to_the_last_byte(machine: Any) -> None:
    for record in machine.stream.sections():
        value = machine.stream.values(record)
        assert value.size == record.payload_size
        at = value.offset
        for _, node in value.walk():
            assert value.offset <= node.offset <= node.end <= value.end
            if not node.children:
                assert node.offset >= at
                at = node.end
        assert at == value.end
