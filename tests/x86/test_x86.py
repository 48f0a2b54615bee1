"""Bits and segments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.kvm import layouts
from qemu_svm.x86.bits import Bits
from qemu_svm.x86.registers import EFER, NAMED
from qemu_svm.x86.segments import (
    Segment,
    attrib_from_flags,
    attrib_words,
    flags_from_attrib,
    from_kvm,
)


def test_names_keep_unknown_bits() -> None:
    assert EFER.names(0x1500) == ["LME", "LMA", "SVME"]
    assert EFER.names(1 << 63 | 1) == ["SCE", "bit 63"]
    assert EFER.mask("LME", "LMA", "SVME") == 0x1500
    with pytest.raises(KeyError):
        EFER.mask("NO_SUCH")


@given(st.integers(0, 2**64 - 1))
def test_every_bit_is_named_once(value: int) -> None:
    table = Bits({3: "A", 40: "B"}, ignore=0xF0)
    names = table.names(value)
    assert len(names) == len(set(names)) == (value & ~0xF0).bit_count()


def test_bit_names_are_unique_in_each_table() -> None:
    for table in NAMED.values():
        names = [name for _, name in table.items()]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(("flags", "attrib"), [(0x00A09B00, 0xA9B), (0x00C09300, 0xC93)])
def test_attributes_of_the_captures(flags: int, attrib: int) -> None:
    assert attrib_from_flags(flags) == attrib
    assert flags_from_attrib(attrib) == flags


@given(st.integers(0, 0xFFF))
def test_attribute_forms_are_inverse(attrib: int) -> None:
    assert attrib_from_flags(flags_from_attrib(attrib)) == attrib


@pytest.mark.parametrize(
    ("attrib", "system", "words"),
    [
        (0xA9B, False, "code64 DPL 0 P G"),
        (0xC93, False, "data32 DPL 0 P G"),
        (0x09B, False, "code16 DPL 0 P"),
        (0x4FB, False, "code32 DPL 3 P"),
        (0x093, False, "data16 DPL 0 P"),
        (0x08B, True, "TSS busy DPL 0 P"),
        (0x082, True, "LDT DPL 0 P"),
        (0x080, True, "system type 0x0 DPL 0 P"),
        (0x000, False, "not present"),
    ],
)
def test_attribute_words(attrib: int, system: bool, words: str) -> None:
    assert attrib_words(attrib, system=system) == words.replace(" P", "")


def test_segment_properties() -> None:
    segment = Segment(0x33, 0, 0xFFFFFFFF, 0xAFB)
    assert (segment.present, segment.dpl, segment.type) == (True, 3, 0xB)
    assert not Segment(0, 0, 0, 0).present


@given(st.integers(0, 0xFFFF), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1),
       st.integers(0, 0xFFF))  # fmt: skip
def test_the_form_of_kvm_is_inverse(selector: int, base: int, limit: int, attrib: int) -> None:
    segment = Segment(selector, base, limit, attrib)
    values = segment.kvm()
    assert from_kvm(values) == segment
    assert values["unusable"] == (not segment.present)
    fields = {field.name for field in layouts.SREGS.fields if field.name.startswith("cs.")}
    assert fields == {f"cs.{name}" for name in values}


def test_one_part_of_a_segment() -> None:
    segment = Segment(8, 0, 0xFFFFF, 0xA9B)
    assert segment.with_part("dpl", 3) == Segment(8, 0, 0xFFFFF, 0xAFB)
    assert not segment.with_part("l", 2).long
    with pytest.raises(KeyError):
        segment.with_part("limit", 1)
