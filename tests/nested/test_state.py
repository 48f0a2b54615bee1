"""The nested state out of real streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qemu_svm.errors import Malformed
from qemu_svm.kvm import layouts
from qemu_svm.machine import Machine
from qemu_svm.nested import NestedState, from_values, layout
from qemu_svm.stream import Value


def test_facts_of_the_captures(machine: Machine, capture: dict[str, Any]) -> None:
    facts = capture["facts"]
    nested = machine.vcpus[0].nested
    assert nested is not None
    assert nested.is_svm
    assert nested.offset == facts["nested_offset"]
    assert f"{nested.flags:#x}" == facts["flags"]
    assert nested.size == facts["nested_size"]
    assert f"{nested.vmcb_pa:#x}" == facts["vmcb_pa"]
    control, save = nested.control, nested.l1_save
    assert control.asid == facts["control"]["asid"]
    for name in ("nested_ctl", "nested_cr3", "exit_code"):
        assert f"{control[name]:#x}" == facts["control"][name]
    for name, value in facts["l1_save"].items():
        assert f"{save[name]:#x}" == value, name


def test_tree_knows_every_offset(machine: Machine) -> None:
    nested = machine.vcpus[0].nested
    assert nested is not None
    for path, node in nested.tree().walk():
        raw = machine.stream.source.read_at(node.offset, node.size)
        order = "little" if path.startswith(("control", "l1_save")) else "big"
        if isinstance(node.value, int):
            assert int.from_bytes(raw, order) == node.value, path
        elif isinstance(node.value, bytes):
            assert raw == node.value, path


def test_argument_of_the_ioctl(machine: Machine) -> None:
    nested = machine.vcpus[0].nested
    assert nested is not None
    argument = nested.uapi()
    assert len(argument) == nested.size == 4224
    assert argument[:8] == bytes.fromhex("0101 0100 80100000")
    assert argument[8:16] == (0x108000).to_bytes(8, "little")
    assert argument[16:128] == bytes(112)
    assert argument[128:] == nested.vmcb


def test_kvms_own_declaration_is_the_same(machine: Machine) -> None:
    """``kvm/`` runs without construct, so it has the header a second time."""
    nested = machine.vcpus[0].nested
    assert nested is not None
    given = replace(nested, gpat=0x0007040600070406)
    header = {name: getattr(given, name) for name in ("flags", "format", "size", "vmcb_pa", "gpat")}
    assert layouts.NESTED_STATE.pack(header) + given.vmcb == given.uapi()
    assert layouts.NESTED_STATE.size == layout.UAPI_HEADER_SIZE
    assert layouts.NESTED_STATE_SIZE == layout.NESTED_STATE_SIZE


def test_what_does_not_fit_a_field_is_cut_off() -> None:
    argument = NestedState(0x12345, 1, 1 << 32 | 7).uapi()
    assert (argument[:2], argument[4:8]) == (b"\x45\x23", b"\7\0\0\0")


def test_a_vmcb_is_parsed_once(machine: Machine) -> None:
    nested = machine.vcpus[0].nested
    assert nested is not None
    assert replace(nested, flags=0).control is nested.control
    assert replace(nested, vmcb=bytes(4096)).control.asid == 0


def value(name: str, leaf: Any = None, *children: Value) -> Value:
    return Value(name, "x", 50, 8, leaf, children)


def test_vmx_is_recognised() -> None:
    struct = value(
        "env.nested_state", None, value("flags", 1), value("format", 0), value("size", 4224)
    )
    nested = from_values(value("cpu/nested_state", None, struct))
    assert (nested.format_name, nested.is_svm, nested.vmcb) == ("vmx", False, b"")
    assert [child.name for child in nested.tree().children] == ["flags", "format", "size"]


@pytest.mark.parametrize("leaf", [b"short", None, 7])
def test_a_broken_vmcb_is_told(leaf: Any) -> None:
    svm = value("cpu/kvm_nested_state/svm", None, value("data.svm[0].vmcb12", leaf))
    struct = value("env.nested_state", None, value("format", 1), svm)
    with pytest.raises(Malformed, match="VMCB"):
        from_values(value("cpu/nested_state", None, struct))


def test_an_empty_subsection_is_told() -> None:
    with pytest.raises(Malformed, match="without its structure"):
        from_values(value("cpu/nested_state"))


def test_unknown_formats_are_named() -> None:
    assert NestedState(0, 7, 128).format_name == "format 7"
    assert layout.SEGMENTS[0] == "es"
