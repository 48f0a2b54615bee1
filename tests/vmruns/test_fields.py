"""Every byte of the page has one name, and what differs is told by it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.nested import layout
from qemu_svm.vmruns.fields import changes, fields
from tests.vmruns.written import PAGE, vmcb


def test_fields_tile_the_page() -> None:
    at = 0
    for field in fields():
        assert field.offset == at, field.path
        at += field.size
    assert at == layout.VMCB_SIZE
    assert len({field.path for field in fields()}) == len(fields())


@given(st.integers(0, PAGE - 1), st.integers(1, 255))
def test_any_byte_that_differs_is_found(at: int, difference: int) -> None:
    old = bytes(PAGE)
    new = bytearray(old)
    new[at] ^= difference
    (change,) = changes(old, bytes(new))
    assert change.field.offset <= at < change.field.offset + change.field.size
    assert change.old != change.new
    assert list(changes(old, old)) == []


def test_values() -> None:
    found = {change.field.path: change for change in changes(vmcb(), vmcb(0x72, cr3=0x104000))}
    assert found["control.exit_code"].new == 0x72
    assert found["save.cr3"].new == 0x104000
    assert len(found) == 2
