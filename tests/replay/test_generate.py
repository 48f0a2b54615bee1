"""Random plans: valid, repeatable, and wide."""

from __future__ import annotations

from collections import Counter

import pytest

from qemu_svm.model import plans
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.saved import Saved
from qemu_svm.model.simulate import simulate
from qemu_svm.replay.encode import Encoder
from qemu_svm.replay.generate import sequence
from qemu_svm.x86.cpuid import HOST_CPUID
from qemu_svm.x86.cpuid_entries import changed, features
from tests.model.recorded import backed, guests

MANY = 3000


@pytest.fixture(scope="module")
def saved() -> Saved:
    return guests()["nested-npt-x"]


@pytest.fixture(scope="module")
def drawn(saved: Saved) -> list[str]:
    return [sequence(7, number, saved) for number in range(MANY)]


def test_a_seed_and_a_number_make_the_plan(saved: Saved, drawn: list[str]) -> None:
    assert drawn[:50] == [sequence(7, number, saved) for number in range(50)]
    assert drawn[:50] != [sequence(8, number, saved) for number in range(50)]
    assert len(set(drawn)) > MANY * 0.8


def test_every_plan_can_be_modelled_and_encoded(saved: Saved, drawn: list[str]) -> None:
    cpuid = changed([], HOST_CPUID)
    encoder = Encoder(saved, cpuid, features(cpuid), seconds=1)
    for text in drawn[:300]:
        steps = plans.parse(text)
        simulate(PROFILES["7.2"], saved, steps, backed=backed)
        for step in steps:
            assert encoder.operations(step)


def test_plans_are_wide(drawn: list[str]) -> None:
    kinds: Counter[str] = Counter()
    for text in drawn:
        for step in text.split(","):
            name, *settings = step.split(":")
            kinds.update([name, *(f"{name}:{one.partition('=')[0]}" for one in settings)])
    for name in ("cpuid", "sregs", "sregs2", "nested", "regs", "msrs", "events", "debugregs",
                 "get", "run", "mpstate"):  # fmt: skip
        assert kinds[name] > 30, name
    for name in ("nested:flags", "nested:size", "nested:format", "nested:vmcb_pa",
                 "nested:@0x4d0/8", "nested:@0x558/8", "nested:@0x548/8", "nested:@0x550/8",
                 "nested:@0x58/4", "nested:@0x90/8", "nested:@0xa8/4", "nested:@0x60/4",
                 "nested:@0x568/8", "nested:@0x560/8", "sregs:efer", "sregs:cr0", "sregs:cr3",
                 "sregs:cr4", "msrs:efer", "cpuid:nosvm", "cpuid:maxphyaddr", "cpuid:no",
                 "cpuid:with", "events:smm", "events:shadow", "sregs:l1", "regs:l1",
                 "get:size", "sregs:apic_base", "sregs2:pdptr3", "msrs:fs_base", "msrs:vm_cr",
                 "msrs:tsc_ratio", "events:latched_init", "events:smm_pending"):  # fmt: skip
        assert kinds[name] > 2, name
