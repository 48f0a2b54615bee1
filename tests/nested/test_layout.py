"""Every offset of the VMCB, and bytes that survive a round trip."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from construct import Int8ul, Int64ul
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.errors import BuildError
from qemu_svm.nested import build_vmcb, layout, parse_vmcb
from qemu_svm.nested.image import Image, image, type_name
from tests.conftest import CAPTURES, capture_bytes

IMAGES = [layout.CONTROL, layout.SAVE, layout.UAPI_HEADER, layout.VMCB]

# Offsets in the VMCB from the processor manual's appendix B, typed in anew.
MANUAL = {
    "control": {
        0x000: "intercepts",
        0x03C: "pause_filter_thresh",
        0x03E: "pause_filter_count",
        0x040: "iopm_base_pa",
        0x048: "msrpm_base_pa",
        0x050: "tsc_offset",
        0x058: "asid",
        0x05C: "tlb_ctl",
        0x060: "int_ctl",
        0x064: "int_vector",
        0x068: "int_state",
        0x070: "exit_code",
        0x078: "exit_info_1",
        0x080: "exit_info_2",
        0x088: "exit_int_info",
        0x090: "nested_ctl",
        0x098: "avic_vapic_bar",
        0x0A0: "ghcb_gpa",
        0x0A8: "event_inj",
        0x0B0: "nested_cr3",
        0x0B8: "virt_ext",
        0x0C0: "clean",
        0x0C8: "next_rip",
        0x0D0: "insn_len",
        0x0D1: "insn_bytes",
        0x0E0: "avic_backing_page",
        0x0F0: "avic_logical_id",
        0x0F8: "avic_physical_id",
        0x108: "vmsa_pa",
        0x120: "bus_lock_counter",
        0x138: "allowed_sev_features",
        0x140: "guest_sev_features",
        0x3E0: "hv_enlightenments",
    },
    "save": {
        0x400: "es",
        0x410: "cs",
        0x420: "ss",
        0x430: "ds",
        0x440: "fs",
        0x450: "gs",
        0x460: "gdtr",
        0x470: "ldtr",
        0x480: "idtr",
        0x490: "tr",
        0x4CB: "cpl",
        0x4D0: "efer",
        0x548: "cr4",
        0x550: "cr3",
        0x558: "cr0",
        0x560: "dr7",
        0x568: "dr6",
        0x570: "rflags",
        0x578: "rip",
        0x5D8: "rsp",
        0x5E0: "s_cet",
        0x5E8: "ssp",
        0x5F0: "isst_addr",
        0x5F8: "rax",
        0x600: "star",
        0x608: "lstar",
        0x610: "cstar",
        0x618: "sfmask",
        0x620: "kernel_gs_base",
        0x628: "sysenter_cs",
        0x630: "sysenter_esp",
        0x638: "sysenter_eip",
        0x640: "cr2",
        0x668: "g_pat",
        0x670: "dbgctl",
        0x678: "br_from",
        0x680: "br_to",
        0x688: "last_excp_from",
        0x690: "last_excp_to",
        0x6E0: "spec_ctrl",
    },
}


@pytest.mark.parametrize("area", ["control", "save"])
def test_offsets_are_the_manuals(area: str) -> None:
    declared, base = (layout.CONTROL, 0) if area == "control" else (layout.SAVE, 0x400)
    for offset, name in MANUAL[area].items():
        assert declared.member(name).offset + base == offset
        assert declared.at(offset - base).name == name


@pytest.mark.parametrize("declared", IMAGES)
def test_images_have_no_gaps(declared: Image) -> None:
    at = 0
    for member in declared.members:
        assert member.offset == at
        at += member.size
    assert at == declared.size == declared.layout.sizeof()
    with pytest.raises(KeyError):
        declared.at(declared.size)
    with pytest.raises(KeyError):
        declared.member("no such member")


def test_whole_page() -> None:
    assert layout.CONTROL.size + layout.SAVE.size == layout.VMCB_SIZE == layout.VMCB.size


@given(st.integers(0, 2**64))
def test_any_page_is_built_again(seed: int) -> None:
    data = Random(seed).randbytes(4096)
    assert build_vmcb(parse_vmcb(data)) == data


@given(st.binary(min_size=128, max_size=128))
def test_any_header_is_built_again(data: bytes) -> None:
    header = layout.UAPI_HEADER.layout
    assert header.build(header.parse(data)) == data


@given(flags=st.integers(0, 65535), format=st.integers(0, 65535), size=st.integers(0, 2**32 - 1))
def test_wire_header_is_built_again(**value: Any) -> None:
    data = layout.WIRE_HEADER.build(value)
    assert layout.WIRE_HEADER.build(layout.WIRE_HEADER.parse(data)) == data
    assert len(data) == 8


@pytest.mark.parametrize("entry", CAPTURES, ids=lambda entry: entry["file"])
def test_captured_blob_as_independent_bytes(entry: dict[str, Any]) -> None:
    # Straight from the file, by the offsets that the manifest and the manual give.
    data = capture_bytes(entry["file"])
    at = entry["facts"]["nested_offset"]
    header = layout.WIRE_HEADER.parse(data[at : at + 8])
    assert (header.flags, header.format, header.size) == (0x101, 1, 4224)
    subsection = data[at + 8 :].index(b"cpu/kvm_nested_state/svm") + at + 8
    body = data[subsection + len("cpu/kvm_nested_state/svm") + 4 :][: 8 + 4096]
    assert layout.WIRE_SVM.build(layout.WIRE_SVM.parse(body)) == body
    blob = body[8:]
    assert build_vmcb(parse_vmcb(blob)) == blob
    for name, offset in (("cr3", 0x550), ("rip", 0x578), ("rax", 0x5F8), ("efer", 0x4D0)):
        number = int.from_bytes(blob[offset : offset + 8], "little")
        assert parse_vmcb(blob).save[name] == number == int(entry["facts"]["l1_save"][name], 0)


def test_wrong_declarations_are_refused() -> None:
    with pytest.raises(ValueError, match="overlaps"):
        image(16, (0, "a", Int64ul), (4, "b", Int8ul))
    with pytest.raises(ValueError, match="beyond"):
        image(4, (0, "a", Int64ul))


def test_wrong_size_is_our_error() -> None:
    with pytest.raises(BuildError):
        parse_vmcb(b"short")


def test_type_names() -> None:
    control = layout.CONTROL
    names = {m.name: type_name(m.layout) for m in control.members + layout.SAVE.members}
    assert names["intercepts"] == "u32[6]"
    assert (names["asid"], names["tsc_offset"], names["tlb_ctl"]) == ("u32", "u64", "u8")
    assert (names["insn_bytes"], names["cs"]) == ("u8[15]", "struct")
