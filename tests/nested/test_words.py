"""Names and descriptions: complete, unique, and those of the field."""

from __future__ import annotations

import pytest

from qemu_svm.nested import bits, descriptions, groups, layout
from qemu_svm.nested.exit_codes import EXIT_CODES, exit_name


def test_every_field_is_described() -> None:
    for image, table in (
        (layout.CONTROL, descriptions.CONTROL),
        (layout.SAVE, descriptions.SAVE),
        (layout.UAPI_HEADER, descriptions.HEADER),
    ):
        named = {member.name for member in image.members if not member.reserved}
        assert named == set(table)
        assert all(table.values())


def test_l1_state_is_what_the_words_say() -> None:
    for name, words in descriptions.SAVE.items():
        if name in groups.L1_STATE:
            assert words.startswith(("L1", "where L1"))
        if words.startswith("not L1's"):
            assert name not in groups.L1_STATE
    assert descriptions.words("control", "reserved_018") == ""


def test_groups_of_fields_are_what_the_words_say() -> None:
    assert {
        name for name, words in descriptions.CONTROL.items() if words.startswith("not migrated")
    } == groups.NOT_MIGRATED
    shared = {name for name, words in descriptions.SAVE.items() if "VMLOAD" in words}
    assert shared == set(groups.VMLOAD_GROUP)


@pytest.mark.parametrize(
    ("word", "bit", "name"),
    [
        (0, 0, "CR0_READ"),
        (0, 16 + 8, "CR8_WRITE"),
        (1, 7, "DR7_READ"),
        (2, 14, "EXCEPTION_PF"),
        (3, 0, "INTR"),
        (3, 18, "CPUID"),
        (3, 27, "IOIO_PROT"),
        (3, 28, "MSR_PROT"),
        (3, 31, "SHUTDOWN"),
        (4, 0, "VMRUN"),
        (4, 13, "XSETBV"),
        (4, 15, "TRAP_EFER_WRITE"),
        (4, 16, "TRAP_CR0_WRITE"),
        (5, 2, "INVPCID"),
        (5, 5, "BUS_LOCK"),
        (5, 6, "IDLE_HLT"),
    ],
)
def test_intercept_names(word: int, bit: int, name: str) -> None:
    words = [0] * 6
    words[word] = 1 << bit
    assert bits.INTERCEPTS.names(bits.intercept_words(words)) == [name]


def test_intercepts_are_unique() -> None:
    names = [name for _, name in bits.INTERCEPTS.items()]
    assert len(names) == len(set(names)) == 167


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x00, "READ_CR0"),
        (0x1F, "WRITE_CR15"),
        (0x30, "WRITE_DR0"),
        (0x4E, "EXCP_PF"),
        (0x60, "INTR"),
        (0x65, "CR0_SEL_WRITE"),
        (0x66, "IDTR_READ"),
        (0x6D, "TR_WRITE"),
        (0x72, "CPUID"),
        (0x75, "SWINT"),
        (0x7B, "IOIO"),
        (0x7C, "MSR"),
        (0x7F, "SHUTDOWN"),
        (0x80, "VMRUN"),
        (0x81, "VMMCALL"),
        (0x8D, "XSETBV"),
        (0x8F, "EFER_WRITE_TRAP"),
        (0x90, "CR0_WRITE_TRAP"),
        (0xA2, "INVPCID"),
        (0xA5, "BUS_LOCK"),
        (0xA6, "IDLE_HLT"),
        (0x400, "NPF"),
        (0x403, "VMGEXIT"),
        (0xF0000000, "SW"),
        (0xFFFFFFFF, "INVALID"),
        (0xFFFFFFFFFFFFFFFF, "INVALID"),
        (0x500, "unknown"),
    ],
)
def test_exit_names(code: int, name: str) -> None:
    assert exit_name(code) == name


def test_every_intercept_has_an_exit() -> None:
    assert {bit for bit, _ in bits.INTERCEPTS.items()} <= set(EXIT_CODES)


@pytest.mark.parametrize(
    ("event", "error", "words"),
    [
        (0, 0, "none"),
        (0x8000_0020, 0, "external interrupt vector 0x20"),
        (0x8000_0202, 0, "NMI"),
        (0x8000_0B0E, 4, "exception #PF error code 0x4"),
        (0x8000_030F, 0, "exception #15"),
        (0x8000_0480, 0, "software interrupt vector 0x80"),
        (0x8000_0100, 0, "reserved type 1 vector 0x0"),
    ],
)
def test_events(event: int, error: int, words: str) -> None:
    assert bits.event_words(event, error) == words


def test_named_bits() -> None:
    assert bits.INT_CTL.names(0xC700_1B0F) == [
        "V_IRQ",
        "V_GIF",
        "V_NMI_PENDING",
        "V_NMI_BLOCKING",
        "V_INTR_MASKING",
        "V_GIF_ENABLE",
        "V_NMI_ENABLE",
        "X2AVIC_MODE",
        "AVIC_ENABLE",
    ]
    assert bits.FLAGS.names(0x103) == ["guest_mode", "run_pending", "gif_set"]
    assert bits.FLAGS.names(0x20C) == ["evmcs", "mtf_pending", "bit 9"]
    assert bits.NESTED_CTL.names(1) == ["NP_ENABLE"]
    assert bits.ERAP_CTL.names(3) == ["ALLOW_LARGER_RAP", "CLEAR_RAP"]
