"""What counts as trouble in a kernel's log."""

from __future__ import annotations

import pytest

from qemu_svm.lab.box.console import first_trouble, headline

OOPS = """\
[    4.1] kvm: Nested Virtualization enabled
[    9.000001] BUG: unable to handle page fault for address: ffffb0
[    9.000002] #PF: supervisor write access in kernel mode
[    9.000003] RIP: 0010:nested_svm_vmexit+0x123/0x9a0 [kvm_amd]
[    9.000004] ---[ end trace 0000000000000000 ]---
[    9.000005] Kernel panic - not syncing: Fatal exception
"""


def test_an_oops_is_cut_out_with_its_trace() -> None:
    trouble = first_trouble(OOPS)
    assert trouble is not None
    assert headline(trouble) == "BUG: unable to handle page fault for address: ffffb0"
    assert "nested_svm_vmexit+0x123" in trouble
    assert trouble.endswith("---[ end trace 0000000000000000 ]---")


@pytest.mark.parametrize(
    "line",
    [
        "Kernel panic - not syncing: Attempted to kill init!",
        "kernel BUG at arch/x86/kvm/svm/nested.c:123!",
        "general protection fault, maybe for address 0x1: 0000 [#1] PREEMPT SMP",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [qemu-system-x86:77]",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "INFO: task python3:88 blocked for more than 120 seconds.",
    ],
)
def test_kinds_of_trouble(line: str) -> None:
    trouble = first_trouble(f"[    1.0] fine\n[    2.0] {line}\n")
    assert trouble == line


@pytest.mark.parametrize(
    "line",
    [
        "Speculative Return Stack Overflow: IBPB-extending microcode not applied!",
        "AMD Zen1 FPDSS bug detected, enabling mitigation.",
        "traps: debug exception in user space",
    ],
)
def test_what_is_no_trouble(line: str) -> None:
    assert first_trouble(f"[    1.0] {line}\n") is None
