"""Steps as ioctl bytes, and bytes as state: one undoes the other."""

from __future__ import annotations

import pytest

from qemu_svm.errors import PlanError
from qemu_svm.kvm import layouts
from qemu_svm.kvm.numbers import by_name
from qemu_svm.model import plans
from qemu_svm.model.decode import observed
from qemu_svm.model.observed import comparable
from qemu_svm.model.saved import MSRS as SAVED_MSRS
from qemu_svm.model.saved import Saved
from qemu_svm.replay.encode import Encoder
from qemu_svm.x86.cpuid import FEATURES, HOST_CPUID, Cpuid
from qemu_svm.x86.cpuid_entries import BITS, changed, features
from qemu_svm.x86.msrs import NUMBERS
from tests.model.recorded import guests


@pytest.fixture(scope="module")
def saved() -> Saved:
    return guests()["nested-npt-x"]


@pytest.fixture(scope="module")
def encoder(saved: Saved) -> Encoder:
    entries = changed([], HOST_CPUID)
    return Encoder(saved, entries, features(entries), seconds=1.5)


def data_of(encoder: Encoder, step: str) -> bytes:
    (operation,) = encoder.operations(plans.parse(step)[0])
    data = bytes.fromhex(operation["data"])
    known = by_name(operation["ioctl"])
    assert known is not None
    assert len(data) >= known.size
    return data


def test_registers_survive_the_way_there_and_back(encoder: Encoder, saved: Saved) -> None:
    raw = {
        "SREGS": data_of(encoder, "sregs").hex(),
        "REGS": data_of(encoder, "regs").hex(),
        "DEBUGREGS": data_of(encoder, "debugregs").hex(),
        "NESTED_STATE": data_of(encoder, "nested").hex(),
        "VCPU_EVENTS": data_of(encoder, "events:shadow=1:smm=1").hex(),
    }
    state = observed(raw)
    for name in ("cr0", "cr3", "cr4", "efer"):
        assert state[f"sregs.{name}"] == saved.sregs.get(name)
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr"):
        segment = saved.sregs.segment(name)
        wanted = [segment.selector, segment.base, segment.limit, segment.attrib]
        assert comparable("sregs", state[f"sregs.{name}"]) == comparable("sregs", wanted)
    assert {name: state[f"regs.{name}"] for name in saved.regs} == dict(saved.regs)
    assert {name: state[f"regs.{name}"] for name in saved.debugregs} == dict(saved.debugregs)
    assert state["nested.vmcb_pa"] == saved.nested.vmcb_pa
    assert state["l1.cr3"] == saved.l1().get("cr3")
    assert state["l1.cr3"] != state["sregs.cr3"]
    assert (state["smm"], state["shadow"]) == (1, 1)


def test_settings_reach_the_bytes(encoder: Encoder) -> None:
    nested = data_of(encoder, "nested:flags=0x103:size=128:@0x550=0x77000:gpat=6")
    header = layouts.NESTED_STATE.unpack(nested)
    assert (header["flags"], header["size"], header["gpat"]) == (0x103, 128, 6)
    assert int.from_bytes(nested[128 + 0x550 : 128 + 0x558], "little") == 0x77000
    sregs = layouts.SREGS.unpack(data_of(encoder, "sregs:cs.dpl=3:gdt.limit=0x12345:cr8=5"))
    assert (sregs["cs.dpl"], sregs["gdt.limit"], sregs["cr8"]) == (3, 0x2345, 5)
    assert sregs["apic_base"] == 0xFEE00900
    sregs2 = layouts.SREGS2.unpack(data_of(encoder, "sregs2:pdptr0=0x1001"))
    assert (sregs2["flags"], sregs2["pdptrs"]) == (1, [0x1001, 0, 0, 0])
    events = layouts.VCPU_EVENTS.unpack(data_of(encoder, "events"))
    assert events["flags"] == 0xD
    assert layouts.unpack_msrs(data_of(encoder, "msrs:efer=0x1500:pat=6")) == {
        0xC0000080: 0x1500,
        0x277: 6,
    }


def test_an_absent_segment_is_unusable(encoder: Encoder) -> None:
    sregs = layouts.SREGS.unpack(data_of(encoder, "sregs:ds.present=0"))
    assert (sregs["ds.present"], sregs["ds.unusable"]) == (0, 1)
    assert (sregs["es.present"], sregs["es.unusable"]) == (1, 0)


def test_get_always_has_room(encoder: Encoder) -> None:
    (operation,) = encoder.operations(plans.parse("get:size=64")[0])
    assert len(operation["data"]) // 2 == layouts.NESTED_STATE_SIZE
    assert layouts.NESTED_STATE.unpack(bytes.fromhex(operation["data"]))["size"] == 64


@pytest.mark.parametrize("step", ["vmrun", "smi", "rsm"])
def test_what_is_no_ioctl_cannot_be_replayed(encoder: Encoder, step: str) -> None:
    with pytest.raises(PlanError, match=f"'{step}' cannot be replayed"):
        encoder.operations(plans.parse(step)[0])


def test_an_unknown_msr(encoder: Encoder) -> None:
    with pytest.raises(PlanError, match="'msrs' has no MSR 'egg'"):
        encoder.operations(plans.parse("msrs:egg=1")[0])


def test_every_saved_msr_has_a_number() -> None:
    assert set(SAVED_MSRS) <= set(NUMBERS)


def test_cpuid_features_are_exactly_those_that_are_wanted() -> None:
    assert set(BITS) == set(FEATURES)
    everything = Cpuid(FEATURES, 48)
    entries = changed([], everything)
    assert features(entries) == everything
    assert features(changed(entries, HOST_CPUID)) == HOST_CPUID
    assert features(entries) == everything  # the original was not touched
    assert features([]) == Cpuid(frozenset(), 36)
