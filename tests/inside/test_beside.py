"""The model by the names of the kernel's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_svm.inside.beside import differences, expected
from qemu_svm.inside.lazy import Circumstances, places
from qemu_svm.model import plans
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.simulate import Simulation, simulate
from tests.replay.conftest import PLAIN, guest

NO_ADDRESS = (1 << 64) - 1


def simulated(plan: str, folder: Path, kernel: str = "6.1") -> Simulation:
    with guest(PLAIN, folder) as one:
        return simulate(PROFILES[kernel], one.saved, plans.parse(plan))


def test_a_later_ioctl_wins_over_what_was_merged(tmp_path: Path) -> None:
    """KVM_SET_VCPU_EVENTS ends the interrupt shadow that L1 asked for."""
    found = simulated("cpuid,sregs,nested:@0x68/4=0x1,events", tmp_path)
    for result, shadow in zip(found.results[2:], (1, 0), strict=True):
        seen = {"vmcb02.control.int_state": shadow}
        assert list(differences(result.state, found.kernel, seen)) == []
        wrong = {"vmcb02.control.int_state": 1 - shadow}
        assert list(differences(result.state, found.kernel, wrong)) == [
            ("vmcb02.control.int_state", shadow, 1 - shadow)
        ]


def test_intercepts_of_l2_are_those_of_both(tmp_path: Path) -> None:
    found = simulated("cpuid,sregs,nested", tmp_path)
    state = found.results[-1].state
    l1 = state.areas["ctl_cache"].get("intercepts")
    seen = {"vmcb01.control.intercepts": 1 << 3, "vmcb02.control.intercepts": l1 | 1 << 3}
    assert list(differences(state, found.kernel, seen)) == []
    seen["vmcb02.control.intercepts"] = l1
    assert [name for name, *_ in differences(state, found.kernel, seen)] == [
        "vmcb02.control.intercepts"
    ]


@pytest.mark.parametrize(
    ("kernel", "plan", "irqchip", "name", "value"),
    [
        ("6.1", "cpuid,sregs:apic_base=0x0", False, "arch.apic_base", 0),
        ("5.10", "cpuid,sregs:apic_base=0x0", False, "arch.apic_base", 0x100),
        ("5.10", "msrs:sysenter_esp=0x1000000001", True, "vmcb01.save.sysenter_esp", 0x1000000001),
        ("6.1", "msrs:sysenter_esp=0x1000000001", True, "vmcb01.save.sysenter_esp", 1),
        ("6.12", "msrs:sysenter_esp=0x1000000001", True, "vmcb01.save.sysenter_esp", 1),
        ("5.10", "cpuid,sregs,nested,nested:flags=0x100", True, "nested.vmcb12_gpa", 0x108000),
        ("6.1", "cpuid,sregs,nested,nested:flags=0x100", True, "nested.vmcb12_gpa", NO_ADDRESS),
    ],
)
def test_what_only_memory_has_shown(
    kernel: str, plan: str, irqchip: bool, name: str, value: int, tmp_path: Path
) -> None:
    """Values of real kernels that no ioctl returns."""
    with guest(PLAIN, tmp_path) as one:
        host = Host(irqchip=irqchip)
        found = simulate(PROFILES[kernel], one.saved, plans.parse(plan), host=host)
    assert expected(found.results[-1].state, found.kernel)[name] == value


def test_of_int_ctl_only_some_bits_of_l1_reach_vmcb02(tmp_path: Path) -> None:
    found = simulated("cpuid,sregs,nested:@0x60/4=0x410000", tmp_path)
    state = found.results[-1].state
    for l0, l2 in ((0x1000000, 0x1010000), (0x3000000, 0x3010000)):
        seen = {"vmcb01.control.int_ctl": l0, "vmcb02.control.int_ctl": l2}
        assert list(differences(state, found.kernel, seen)) == []


@pytest.mark.parametrize(("kernel", "area"), [("6.1", "vmcb01"), ("5.10", "hsave")])
def test_l1_is_where_the_kernel_keeps_it(kernel: str, area: str, tmp_path: Path) -> None:
    found = simulated("cpuid,sregs,nested", tmp_path, kernel)
    names = expected(found.results[-1].state, found.kernel)
    assert names[f"{area}.save.cr3"] == 0x101000
    assert ("current" in names) is (kernel == "6.1")


def test_what_a_guest_may_have_changed_is_not_compared(tmp_path: Path) -> None:
    found = simulated("cpuid,sregs,nested", tmp_path)
    state = found.results[-1].state
    seen = {"arch.rcx": 7, "vmcb02.save.rip": 9, "nested.vmcb12_gpa": 5}
    after = Circumstances(ran=True, code=True, changed=places({"regs.rcx", "shadow"}))
    assert [name for name, *_ in differences(state, found.kernel, seen, after)] == [
        "nested.vmcb12_gpa"
    ]


def test_what_kvm_takes_back_from_vmcb02_is_what_vmcb02_has(tmp_path: Path) -> None:
    """After a run; of int_ctl only the bits that the processor changes."""
    found = simulated("cpuid,sregs,nested:@0x60/4=0x110105:@0x68/4=0x1,regs,run", tmp_path)
    state, ran = found.results[-1].state, Circumstances(ran=True)
    assert state.areas["ctl_cache"].get("int_ctl") == 0x110105
    for seen, wrong in (
        ({"nested.ctl.int_ctl": 0x110000}, []),
        ({"nested.ctl.int_ctl": 0x10105}, ["nested.ctl.int_ctl"]),
        ({"nested.ctl.int_state": 0, "vmcb02.control.int_state": 0}, []),
        ({"nested.ctl.int_state": 0, "vmcb02.control.int_state": 1}, ["nested.ctl.int_state"]),
        ({"nested.ctl.next_rip": 7, "vmcb02.control.next_rip": 7}, []),
        ({"nested.ctl.next_rip": 7, "vmcb02.control.next_rip": 8}, ["nested.ctl.next_rip"]),
        ({"nested.ctl.int_vector": 3}, ["nested.ctl.int_vector"]),
    ):
        names = [name for name, *_ in differences(state, found.kernel, seen, ran)]
        assert [name for name in names if name.startswith("nested.ctl.")] == wrong


def test_of_attributes_the_processor_keeps_12_bits(tmp_path: Path) -> None:
    """What L1's CS had is in vmcb01 until L1 has run."""
    found = simulated("cpuid,sregs,nested:@0x412/2=0x3233,regs", tmp_path)
    state = found.results[-1].state
    model = expected(state, found.kernel)["vmcb01.save.cs"]
    assert model[3] == 0x3233
    kept = [*model[:3], 0x233]
    for seen, ran, wrong in (
        (kept, True, False),
        (kept, False, True),
        (model, False, False),
        ([*model[:3], 0x33], True, True),
        ([7, *kept[1:]], True, True),
    ):
        circumstances = Circumstances(ran=ran)
        names = [
            one
            for one, *_ in differences(state, found.kernel, {"vmcb01.save.cs": seen}, circumstances)
        ]
        assert names == (["vmcb01.save.cs"] if wrong else [])


def test_user_space_gives_cr8_at_each_run_unless_the_apic_is_in_the_kernel(tmp_path: Path) -> None:
    with guest(PLAIN, tmp_path) as one:
        for irqchip in (False, True):
            found = simulate(PROFILES["6.1"], one.saved, plans.parse("cpuid,sregs:cr8=0x5,run"),
                             host=Host(irqchip=irqchip))  # fmt: skip
            cr8 = [result.state.areas["arch"].get("cr8") for result in found.results[1:]]
            assert cr8 == ([0, 0] if irqchip else [5, 0])


def test_code_clears_rf_in_vmcb01(tmp_path: Path) -> None:
    found = simulated("cpuid,sregs,regs:rflags=0x10086,run", tmp_path)
    state = found.results[-1].state
    for flags, code, wrong in ((0x86, True, 0), (0x86, False, 1), (0x82, True, 1)):
        seen = {"vmcb01.save.rflags": flags}
        circumstances = Circumstances(ran=True, code=code)
        assert len(list(differences(state, found.kernel, seen, circumstances))) == wrong


def test_the_error_code_of_an_injected_exception_comes_back_from_vmcb02(tmp_path: Path) -> None:
    """KVM injects what KVM_SET_VCPU_EVENTS gave; again with 0, if the delivery faulted."""
    events = "events:exc_injected=0x1:exc_nr=0x1f:exc_err=0xffff"
    found = simulated(f"cpuid,sregs,nested,{events},run", tmp_path)
    state = found.results[-1].state
    assert expected(state, found.kernel)["nested.ctl.event_inj_err"] == 0xFFFF
    ran = Circumstances(ran=True)
    for error, wrong in ((0xFFFF, 0), (0, 0), (0xFF, 1)):
        seen = {"nested.ctl.event_inj_err": error}
        assert len(list(differences(state, found.kernel, seen, ran))) == wrong


def test_shadow_paging_has_bits_of_its_own_in_a_fresh_vmcb(tmp_path: Path) -> None:
    """As 5.10 and 6.1 have them without nested paging."""
    with guest(PLAIN, tmp_path) as one:
        for kernel, cr4 in (("5.10", 0x20), ("6.1", 0x60)):
            host = Host(npt=False, irqchip=False)
            found = simulate(PROFILES[kernel], one.saved, plans.parse("cpuid"), host=host)
            names = expected(found.start, found.kernel)
            fresh = [names[f"vmcb01.save.{name}"] for name in ("efer", "cr0", "cr4")]
            assert fresh == [0x1800, 0x80010010, cr4]
