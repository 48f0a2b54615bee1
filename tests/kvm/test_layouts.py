"""Structures: as large as the ioctls say, without overlap, the same both ways."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.kvm import layouts
from qemu_svm.kvm.layouts import ARGUMENTS, Layout
from qemu_svm.kvm.numbers import by_name
from qemu_svm.lab.kvm import pack_agent
from qemu_svm.nested.layout import UAPI_HEADER_SIZE, VMCB_SIZE
from tests.conftest import ROOT

ALL = {
    **ARGUMENTS,
    "CPUID_ENTRY": layouts.CPUID_ENTRY,
    "MSR_ENTRY": layouts.MSR_ENTRY,
    "RUN": layouts.RUN,
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_ioctls_number_says_the_size(name: str) -> None:
    found = [by_name(f"{way}_{name}") for way in ("GET", "SET")] + [by_name(name)]
    sizes = {one.size for one in found if one is not None}
    assert sizes == {ARGUMENTS[name].size}


@pytest.mark.parametrize("layout", ALL.values(), ids=ALL)
def test_fields_lie_apart_and_inside(layout: Layout) -> None:
    taken: set[int] = set()
    for field in layout.fields:
        place = set(range(field.offset, field.offset + field.size))
        assert not place & taken, field.name
        taken |= place
    assert max(taken) < layout.size
    assert len({field.name for field in layout.fields}) == len(layout.fields)


@given(st.data())
def test_what_is_packed_comes_back(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(list(ALL.values())))
    raw = data.draw(st.binary(min_size=layout.size, max_size=layout.size))
    values = layout.unpack(raw)
    packed = layout.pack(values)
    assert layout.unpack(packed) == values
    for field in layout.fields:
        place = slice(field.offset, field.offset + field.size)
        assert packed[place] == raw[place]


def test_places_known_from_the_kernels_headers() -> None:
    sregs = layouts.SREGS.pack({"cr3": 0x104000, "cs.selector": 8, "efer": 0x1500, "gdt.limit": 23})
    assert int.from_bytes(sregs[240:248], "little") == 0x104000
    assert (sregs[12], sregs[200]) == (8, 23)
    assert int.from_bytes(sregs[264:272], "little") == 0x1500
    assert layouts.REGS.pack({"rip": 1})[128] == 1
    assert layouts.VCPU_EVENTS.pack({"shadow": 1, "smm": 1})[11:25:13] == b"\1\1"
    assert layouts.NESTED_STATE.pack({"vmcb_pa": 0x108000})[8:11] == b"\0\x80\x10"


def test_the_nested_state_is_that_of_the_streams() -> None:
    """It is declared twice: here for the standard library alone."""
    assert layouts.NESTED_STATE.size == UAPI_HEADER_SIZE
    assert layouts.VMCB_SIZE == VMCB_SIZE
    assert layouts.NESTED_STATE_SIZE == UAPI_HEADER_SIZE + VMCB_SIZE


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="kvm_regs has no field 'cr3'"):
        layouts.REGS.pack({"cr3": 1})
    with pytest.raises(ValueError, match=r"kvm_mp_state\.mp_state cannot hold 4294967296"):
        layouts.MP_STATE.pack({"mp_state": 1 << 32})
    with pytest.raises(ValueError, match="kvm_regs has 144 bytes, not 143"):
        layouts.REGS.unpack(bytes(143))


def test_lists_of_entries() -> None:
    msrs = layouts.pack_msrs([(0xC0000080, 0x1500), (0x277, 7)])
    assert len(msrs) == 8 + 2 * 16
    assert layouts.unpack_msrs(msrs) == {0xC0000080: 0x1500, 0x277: 7}
    entry = {"function": 1, "index": 0, "flags": 0, "eax": 1, "ebx": 2, "ecx": 3, "edx": 4}
    assert layouts.unpack_cpuid(layouts.pack_cpuid([entry, entry])) == [entry, entry]


AGENT = sorted((ROOT / "qemu_svm" / "kvm").glob("*.py")) + [ROOT / "qemu_svm" / "errors.py"]


@pytest.mark.parametrize("path", AGENT, ids=lambda path: path.name)
def test_python_3_9_understands_it(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))


def test_the_agent_needs_the_standard_library_alone(tmp_path: Path) -> None:
    pack_agent(tmp_path / "agent.zip")
    done = subprocess.run(
        [sys.executable, "-S", "-m", "qemu_svm.kvm.agent"],
        capture_output=True, check=False, cwd=tmp_path, env={"PYTHONPATH": "agent.zip"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(b"usage: agent probe")
