"""BTF: offsets as the compiler has them, and files that are no BTF."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.btf import Btf
from qemu_svm.inside.types import Place, find, names
from tests.inside.images import TypesFile
from tests.support.damage import damaged


def kernel() -> TypesFile:
    made = TypesFile()
    word, byte = made.integer("unsigned int", 4), made.integer("char", 1)
    made.struct("list_head", 16, ("next", made.pointer(0), 0), ("prev", made.pointer(0), 8))
    inner = made.struct("", 8, ("low", word, 0), ("high", word, 4))
    either = made.struct("", 8, ("", inner, 0), ("whole", made.array(byte, 8), 0), kind=5)
    outer = made.struct("", 24, ("first", word, 0), ("", either, 8), ("last", byte, 16))
    made.struct("outer", 32, ("body", made.named("body_t", outer), 4), ("count", word, 28))
    made.bits("flags", 4, ("one", word, 0, 1), ("many", word, 3, 7))
    made.enumeration("kvm_reg", VCPU_REGS_RAX=0, VCPU_EXREG_CR3=18)
    return made


def test_members_are_found_through_names_and_anonymous_structures() -> None:
    types = Btf(kernel().data())
    assert find(types, "outer", "body.first") == Place(4, 4)
    assert find(types, "outer", "body.high") == Place(16, 4)
    assert find(types, "outer", "body.whole") == Place(12, 8)
    assert find(types, "outer", "body.last") == Place(20, 1)
    assert find(types, "outer", "count") == Place(28, 4)
    assert set(names(types, "outer", "body")) == {"first", "low", "high", "whole", "last"}


def test_bit_fields_and_constants() -> None:
    types = Btf(kernel().data())
    many = find(types, "flags", "many")
    assert many == Place(0, 2, 3, 7)
    assert many.value(b"\xf8\x03\0\0") == 0x7F
    assert types.constant("VCPU_EXREG_CR3") == 18
    assert types.constant("VCPU_EXREG_CR9") is None


def test_what_a_version_lacks_is_absent() -> None:
    types = Btf(kernel().data())
    assert find(types, "outer", "body.missing") is None
    assert find(types, "inner", "low") is None
    assert names(types, "outer", "missing") == ()


def test_a_module_continues_the_kernel() -> None:
    """Its types name the kernel's by number, and its strings continue those."""
    base = kernel()
    module = TypesFile(*base.ends)
    pointer = module.pointer(1)
    module.struct("vcpu_svm", 24, ("outer", 9, 0), ("vmcb", pointer, 16))
    types = Btf(module.data(), Btf(base.data()))
    assert find(types, "vcpu_svm", "vmcb") == Place(16, 8)
    assert types.structure("outer") is not None
    assert types.constant("VCPU_EXREG_CR3") == 18


@pytest.mark.parametrize("cut", [0, 3, 23, 24, 60, -1])
def test_a_file_that_is_cut(cut: int) -> None:
    with pytest.raises(EnvironmentFault, match="BTF"):
        Btf(kernel().data()[:cut])


def test_types_that_name_each_other_end() -> None:
    made = TypesFile()
    made.named("a", 2)
    made.named("b", 1)
    made.struct("loop", 8, ("a", 1, 0))
    with pytest.raises(EnvironmentFault, match="each other"):
        find(Btf(made.data()), "loop", "a")


@given(st.data())
def test_damage_raises_only_our_own_errors(data: st.DataObject) -> None:
    image = damaged(data, kernel().data(), 4)
    try:
        types = Btf(image)
        for path in ("body.first", "body.whole", "count"):
            find(types, "outer", path)
        types.constant("VCPU_EXREG_CR3")
    except EnvironmentFault:
        pass
