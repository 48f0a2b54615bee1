"""Declared structures parse what they build and build what they parse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.errors import LimitExceeded, Malformed, Truncated
from qemu_svm.source import BytesSource
from qemu_svm.stream import structs
from qemu_svm.stream.reader import Reader

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
NAME = st.binary(max_size=255)
CONFIGURATION_VALUES = st.one_of(
    st.tuples(st.just(b"configuration/target-page-bits"), U32),
    st.tuples(st.just(b"configuration/capabilities"), st.lists(NAME, max_size=4)),
    st.tuples(st.just(b"configuration/uuid"), st.binary(min_size=16, max_size=16)),
)


def round_trip(layout: Any, value: dict[str, Any]) -> None:
    data = layout.build(value)
    parsed = layout.parse(data)
    assert layout.build(parsed) == data
    for key, item in value.items():
        assert parsed[key] == item


@given(version=U32)
def test_header(version: int) -> None:
    round_trip(structs.FileHeader, {"version": version})


@given(section_id=U32, name=NAME, instance_id=U32, version_id=U32)
def test_section_header(**value: Any) -> None:
    round_trip(structs.SectionHeader, value)


@given(command=U16, payload=st.binary(max_size=300))
def test_command(**value: Any) -> None:
    round_trip(structs.CommandRecord, value)


@given(machine=st.binary(max_size=100))
def test_configuration(**value: Any) -> None:
    round_trip(structs.ConfigurationHeader, value)


@given(CONFIGURATION_VALUES, U32)
def test_configuration_subsection(item: tuple[bytes, Any], version: int) -> None:
    name, value = item
    round_trip(structs.ConfigurationSubsection, {"name": name, "version": version, "value": value})


@given(name=NAME, used_length=U64)
def test_ram_block(**value: Any) -> None:
    round_trip(structs.RamBlock, value)


def test_the_captures_first_bytes_are_built_again(sample: bytes) -> None:
    header = structs.FileHeader.parse(sample)
    config = structs.ConfigurationHeader.parse(sample[9:])
    built = structs.FileHeader.build(header) + b"\x07" + structs.ConfigurationHeader.build(config)
    assert sample.startswith(built)
    assert config.machine == b"pc-i440fx-10.0"


def test_reader_tells_where_input_ends() -> None:
    data = structs.SectionHeader.build(
        {"section_id": 1, "name": b"ram", "instance_id": 0, "version_id": 4}
    )
    for cut in range(len(data)):
        reader = Reader(BytesSource(b"x" + data[:cut]), 1)
        with pytest.raises(Truncated) as caught:
            reader.structure(structs.SectionHeader, "a section header")
        assert caught.value.offset == 1 + cut
        assert reader.offset == 1


def test_reader_refuses_endless_structures() -> None:
    endless = b"\xff" * 300_000
    with pytest.raises(LimitExceeded):
        Reader(BytesSource(endless)).structure(structs.ConfigurationHeader, "the configuration")


def test_reader_names_the_field() -> None:
    with pytest.raises(Malformed) as caught:
        Reader(BytesSource(b"XXXX" + bytes(60))).structure(structs.FileHeader, "the header")
    assert caught.value.field == "magic"
    assert "58 58 58 58" in str(caught.value)


@given(st.binary(min_size=1, max_size=64), st.integers(0, 70), st.integers(0, 20))
def test_peek_and_take_agree(data: bytes, start: int, size: int) -> None:
    reader = Reader(BytesSource(data), start)
    ahead = reader.peek(size)
    assert ahead == data[start : start + size]
    if len(ahead) == size:
        assert reader.take(size, "x") == ahead
        assert reader.offset == start + size
    else:
        with pytest.raises(Truncated) as caught:
            reader.take(size, "x")
        assert caught.value.offset == len(data) or caught.value.offset == start
