"""What a difference means, by its path."""

from __future__ import annotations

import json

import pytest

import qemu_svm as svm
from qemu_svm.findings.diff import Change, Difference
from qemu_svm.findings.weights import Weight, ranked, weight_of
from tests.conftest import STREAMS, Run

PLAIN = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"
NPT = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"


@pytest.mark.parametrize(
    ("group", "path", "weight"),
    [
        ("configuration", "configuration.machine", Weight.DESTINATION),
        ("RAM blocks", "ram.pc.ram", Weight.DESTINATION),
        ("sections", "section:hpet", Weight.DESTINATION),
        ("vcpu0 nested", "vcpu0.nested.control.nested_ctl", Weight.NESTED),
        ("vcpu0 nested", "vcpu0.nested.control.exit_code", Weight.PROGRESS),
        ("vcpu0 nested", "vcpu0.nested.l1_save.cr3", Weight.NESTED),
        ("vcpu0 nested", "vcpu0.nested.l1_save.rip", Weight.PROGRESS),
        ("vcpu3", "vcpu3.registers.rcx", Weight.PROGRESS),
        ("vcpu3", "vcpu3.registers.rflags", Weight.PROGRESS),
        ("vcpu3", "vcpu3.registers.cr3", Weight.MODE),
        ("vcpu3", "vcpu3.registers.efer", Weight.MODE),
        ("vcpu12", "vcpu12.segments.cs.attrib", Weight.MODE),
        ("devices", "section:apic.lvt[0]", Weight.DEVICE),
    ],
)
def test_weight(group: str, path: str, weight: Weight) -> None:
    assert weight_of(Difference(group, path, Change.VALUE, None, None)) is weight


def test_ranking_of_two_streams(command: Run) -> None:
    with svm.open(PLAIN) as a, svm.open(NPT) as b:
        order = [weight for weight, _ in ranked(svm.diff(a, b).comparison)]
    assert order == sorted(order, key=list(Weight).index)
    assert order[0] is Weight.DESTINATION
    assert order[-1] is Weight.PROGRESS
    done = command("diff", PLAIN, NPT)
    head, _, rest = done.stdout.decode().partition("What matters most")
    first = rest.splitlines()[2]
    assert len(head.splitlines()) < 6
    assert first.split()[0] == "configuration.machine"
    made = json.loads(command("diff", "--json", PLAIN, NPT).stdout)
    assert {one["weight"] for one in made["differences"]} <= set(Weight)
