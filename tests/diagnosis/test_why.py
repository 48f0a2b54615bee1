"""Error lines and logs, and the causes that ``why`` tells.

``logs`` holds what real kernels printed in the box: VMCB dumps of a vCPU whose CS has L and D
set, traces of a restored guest, of one whose vmcb12 has ASID 0 or no VMRUN intercept, and of an
L2 with that CS.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qemu_svm as svm
from qemu_svm.diagnosis import dump as dumps
from qemu_svm.diagnosis.calls import CallWords, error_of, failed_call
from qemu_svm.diagnosis.events import EXPRESSIONS, Events, rule_of
from qemu_svm.diagnosis.facts import Facts, read_facts
from qemu_svm.diagnosis.oops import OopsReader
from qemu_svm.diagnosis.results import Answer, Likelihood, Why
from qemu_svm.diagnosis.signs import SIGNS, sign_of
from qemu_svm.diagnosis.text import plain
from qemu_svm.source import BytesSource
from tests.conftest import STREAMS, Run

LOGS = Path(__file__).resolve().parent / "logs"
NPT = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
KERNELS = ("5.10", "6.1", "6.12", "7.2")


def _facts(text: str) -> Facts:
    return read_facts((), BytesSource(text.encode(), "made.log"))


def _why(*errors: str, to: str | None = None, source: str | None = None) -> Why:
    return svm.why(errors=errors, kernel=to, source=source)


def _first(*errors: str, to: str | None = None, source: str | None = None) -> Answer:
    return _why(*errors, to=to, source=source).answers[0]


# --- VMCB dumps ---


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_real_dump(kernel: str) -> None:
    answer = svm.why(LOGS / f"linux{kernel}-dump.dmesg")
    ((one, _),) = answer.dumps
    assert answer.facts.recognised == answer.facts.lines, "every line belongs to the dump"
    assert one.failed
    assert (one.save["efer"], one.save["cr3"], one.save["cr4"]) == (0x1500, 0x101000, 0x60)
    assert one.save["cs"] == {"selector": 8, "attrib": 0xE9B, "limit": 0xFFFFFFFF, "base": 0}
    assert one.control["nested_ctl"] == 1
    assert one.control["intercepts"][3] == 0xBD4C8027  # type: ignore[index]
    assert one.control["intercepts"][0] == 0x00100010  # type: ignore[index]
    assert one.cpu == (None if kernel == "5.10" else 0)
    assert one.vcpu == (0 if kernel == "7.2" else None)
    assert len(one.registers) == (14 if kernel == "7.2" else 0)
    (first,) = answer.answers
    assert (first.likelihood, first.rule) == (Likelihood.CERTAIN, "S-09")


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_dump_beside_the_stream(kernel: str) -> None:
    answer = svm.why(NPT, log=LOGS / f"linux{kernel}-dump.dmesg")
    ((_, match),) = answer.dumps
    assert match is not None
    assert (match.vcpu, match.level) == (0, "L1")
    assert {"cr3", "gdtr", "idtr", "rsp"} <= set(match.same)
    assert {name for name, _, _ in match.differs} == {"rip", "cr4", "cs"}
    assert any("changed afterwards" in one for one in answer.answers[0].evidence)


def test_another_vm_s_dump_is_not_the_stream_s() -> None:
    text = (LOGS / "linux6.1-dump.dmesg").read_text()
    for old, new in (("101000", "99f000"), ("10b000", "77b000"), ("100330", "fff330"),
                     ("100139", "aaa139"), ("108000", "fff000")):  # fmt: skip
        text = text.replace(old, new)
    facts = _facts(text)
    with svm.open(NPT) as dump:
        assert dumps.compare(facts.dumps[0], dump.vcpus) is None


def _prefixed(text: str, how: str) -> str:
    lines = text.splitlines()
    bare = [line.partition("] ")[2] for line in lines]
    made = {
        "syslog": [f"Nov 29 10:00:00 host-7 kernel: {line}" for line in lines],
        "journald": [f"Nov 29 10:00:00 host kernel: {line}" for line in bare],
        "json": [json.dumps({"_HOSTNAME": "h", "PRIORITY": "3", "MESSAGE": line}) for line in bare],
        "colour": [f"\x1b[32m{line[:15]}\x1b[0m\x1b[33m{line[15:]}\x1b[0m" for line in lines],
        "raw": [f"<3>{line}" for line in lines],
        "human": [f"[Sun Nov 29 10:00:00 2026] {line}" for line in bare],
        "caller": [line.replace("] ", "][  T123] ", 1) for line in lines],
        "mixed": [part for line in lines for part in (line, "[   33.9] eth0: link is up")],
    }
    return "\n".join(made[how])


@pytest.mark.parametrize(
    "how", ["syslog", "journald", "json", "colour", "raw", "human", "caller", "mixed"]
)
@pytest.mark.parametrize("kernel", ["5.10", "7.2"])
def test_what_loggers_add_does_not_matter(kernel: str, how: str) -> None:
    text = (LOGS / f"linux{kernel}-dump.dmesg").read_text()
    plainly = _facts(text).dumps[0]
    (found,) = _facts(_prefixed(text, how)).dumps
    assert found.page == plainly.page


def test_a_dump_that_is_cut_is_read_as_far_as_it_goes() -> None:
    lines = (LOGS / "linux6.12-dump.dmesg").read_text().splitlines()
    (found,) = _facts("\n".join(lines[:30])).dumps
    assert "asid" in found.seen
    assert "cr0" not in found.seen
    assert dumps.impossible(found) == (), "what was not printed is not judged"
    assert _facts("\n".join(lines[:3])).dumps == ()


def test_a_dump_with_names_that_are_no_numbers() -> None:
    text = "VMCB Control Area:\ncs: 10\nintercepts: 5\ninsn_bytes: ab\nhv_enlightenments: 5\n"
    text += "clean: 7\nasid: 99999999999999\nasid: ff\nVMCB State Save Area:\ncs: 10\n"
    text += "reserved: 5\nefer: ffffffffffffffff\ncpl: 999\ndbgctl: 1\n"
    (found,) = _facts(text).dumps
    assert found.save["efer"] == (1 << 64) - 1
    assert {"clean", "asid", "efer", "cpl", "dbgctl"} <= found.seen
    assert "cs" not in found.seen


def test_many_dumps_are_counted() -> None:
    text = (LOGS / "linux6.1-dump.dmesg").read_text()
    facts = _facts(text * 20)
    assert (len(facts.dumps), facts.more_dumps) == (16, 4)


# --- tracepoints ---


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_trace_of_a_guest_that_runs(kernel: str) -> None:
    answer = svm.why(LOGS / f"linux{kernel}-nested.trace")
    events = answer.facts.events
    assert events.count == 10
    assert events.first is not None
    assert (events.first.vmcb, events.first.npt) == (0x108000, True)
    assert events.first.nested_rip == 0x1002BF
    assert events.first.nested_cr3 == (None if kernel == "5.10" else 0x105000)
    assert events.exits
    assert not answer.found


def test_a_trace_beside_the_stream() -> None:
    answer = svm.why(NPT, log=LOGS / "linux6.12-nested.trace")
    assert "L1 runs the vmcb12 at 0x108000, as in the stream" in answer.happened


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_l2_that_the_processor_refuses(kernel: str) -> None:
    answer = svm.why(LOGS / f"linux{kernel}-invalid.trace")
    assert answer.facts.events.invalid is not None
    assert answer.answers[0].likelihood is Likelihood.LIKELY
    assert "SREGS" in answer.answers[0].why


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
def test_failed_checks(kernel: str) -> None:
    answer = svm.why(LOGS / f"linux{kernel}-failed.trace")
    rules = {one.rule: one.likelihood for one in answer.answers}
    assert rules["C-02"] is Likelihood.CERTAIN
    assert rules["S-07"] is Likelihood.CERTAIN
    assert ("C-01" in rules) == (kernel == "7.2")


def test_trace_cmd_and_perf_print_other_prefixes() -> None:
    for text in (
        "qemu-kvm-4242  [003]   912.345: kvm_nested_vmenter_failed: control->asid == 0",
        "CPU 0/KVM  4242 [003]   912.345:  kvm:kvm_nested_vmenter_failed: control->asid == 0",
        "<...>-4242 (4200) [003] d..2 912.345: kvm_nested_vmenter_failed: control->asid == 0",
    ):
        assert _first(text).rule == "C-02"


@pytest.mark.parametrize(
    ("expression", "rule"),
    [
        ("!vmcb_is_intercept(control, INTERCEPT_VMRUN)", "C-01"),
        ("(control->nested_ctl & SVM_NESTED_CTL_NP_ENABLE) && !npt_enabled", "C-03"),
        ("!nested_svm_check_bitmap_pa(vcpu, control->msrpm_base_pa, MSRPM_SIZE)", "C-04"),
        ("!nested_svm_check_bitmap_pa(vcpu, control->iopm_base_pa, IOPM_SIZE)", "C-05"),
        ("!nested_svm_check_tlb_ctl(vcpu, control->tlb_ctl)", "C-06"),
        ("!(save->efer & EFER_SVME)", "S-01"),
        ("((save->cr0 & X86_CR0_CD) == 0 && (save->cr0 & X86_CR0_NW))", "S-02"),
        ("save->cr0 & ~0xffffffffULL", "S-03"),
        ("!kvm_dr6_valid(save->dr6)", "S-04"),
        ("!(save->cr4 & X86_CR4_PAE)", "S-05"),
        ("!(save->cr0 & X86_CR0_PE)", "S-06"),
        ("!kvm_is_valid_cr4(vcpu, save->cr4)", "S-10"),
        ("!kvm_valid_efer(vcpu, save->efer)", "S-11"),
    ],
)
def test_checks_by_their_source(expression: str, rule: str) -> None:
    assert rule_of(expression) == rule
    assert _first(f"kvm_nested_vmenter_failed: {expression}").rule == rule


def test_every_expression_has_a_rule() -> None:
    from qemu_svm.findings.rules import RULES

    assert {rule for _, rule in EXPRESSIONS} <= set(RULES)


def test_an_unknown_check_is_quoted() -> None:
    first = _first("kvm_nested_vmenter_failed: control->new_thing & 7")
    assert (first.rule, first.likelihood) == ("", Likelihood.LIKELY)
    assert "new_thing" in first.why


def test_events_that_show_a_bug() -> None:
    words = "intercepts: 00040000 {} 00000000"
    start = "x-1 [0] 1.0: kvm_nested_intercepts: cr_read: 0000 cr_write: 0000 excp: 00000000 "
    first = _first(start + words.format("00000000"), to="5.10.20")
    assert (first.rule, first.cves) == ("K-13", ("CVE-2021-29657",))
    assert not _why(start + words.format("00000001"), to="5.10.20").found
    enter = (
        "kvm_nested_vmrun: rip: 0x1 vmcb: 0x2000 nrip: 0x3 int_ctl: 0x80000000 event_inj: 0x0 "
        "npt: on"
    )
    assert _first(enter, to="5.10.20").rule == "K-06"
    assert not _why(enter, to="6.1.170").found


def test_l2_that_does_not_go_on() -> None:
    events = Events()
    line = "kvm_nested_vmexit: vcpu 0 reason npf rip 0x1000 info1 0x4 info2 0x5000 intr_info 0x0"
    for number in range(1, 1500):
        events.read(number, line)
    assert events.same == (1499, "npf", 0x1000, 1)


# --- programs' words ---


@pytest.mark.parametrize(
    ("text", "ioctl", "error"),
    [
        ("Failed to set special registers: Invalid argument (os error 22)", "SET_SREGS", "EINVAL"),
        ("VcpuSetSregs(Error(22))", "SET_SREGS", "EINVAL"),
        ('SetSpecialRegs(Os { code: 22, kind: InvalidInput })', "SET_SREGS", "EINVAL"),
        ("[ERROR crosvm] failed to set sregs: Invalid argument (os error 22)", "SET_SREGS",
         "EINVAL"),
        ("Cannot set the vcpu special registers: errno 22", "SET_SREGS", "EINVAL"),
        ("error: kvm run failed Input/output error", "RUN", "EIO"),
        ("vcpu 0: KVM_RUN failed: EFAULT", "RUN", "EFAULT"),
        ("KVM_SET_NESTED_STATE ioctl returned -22", "SET_NESTED_STATE", "EINVAL"),
        ("failed to set nested state: Invalid argument", "SET_NESTED_STATE", "EINVAL"),
        ("Failed to get vcpu nested state: Argument list too long", "GET_NESTED_STATE", "E2BIG"),
        ("Failed to set CPUID entries: Invalid argument", "SET_CPUID2", "EINVAL"),
        ("Failed to restore vCPU events: EINVAL", "SET_VCPU_EVENTS", "EINVAL"),
        ("Failed to put registers after init: Invalid argument", "PUT", "EINVAL"),
        ("Failed to set XSAVE: Invalid argument", "SET_XSAVE", "EINVAL"),
        ("Failed to set nested guest state: Invalid argument (os error 22)", "SET_NESTED_STATE",
         "EINVAL"),
        ("Failed to set extended control registers: Invalid argument", "SET_XCRS", "EINVAL"),
        ("Failed to set multi processor state: Invalid argument", "SET_MP_STATE", "EINVAL"),
        ("Setting MSRs: Invalid argument (os error 22)", "SET_MSRS", "EINVAL"),
        ("Failed to set KVM vcpu event: Invalid argument (os error 22)", "SET_VCPU_EVENTS",
         "EINVAL"),
        ("Failed to set XCRs: Invalid argument", "SET_XCRS", "EINVAL"),
        ("ioctl KVM_SET_SREGS: invalid argument", "SET_SREGS", "EINVAL"),
        ("kvm_set_nested_state: ret=-22", "SET_NESTED_STATE", "EINVAL"),
        ("Failed to run vcpu: Input/output error (os error 5)", "RUN", "EIO"),
    ],
)  # fmt: skip
def test_words_for_ioctls(text: str, ioctl: str, error: str) -> None:
    found = failed_call(text)
    assert found is not None
    assert (found.ioctl, found.error) == (ioctl, error)
    for around in ("2026-11-29T10:00:00.123456Z qemu-system-x86_64: {}", "\x1b[31m{}\x1b[0m",
                   "cloud-hypervisor: 12.3s: <vmm> ERROR:vmm/src/lib.rs:12 -- {}"):  # fmt: skip
        again = failed_call(plain(around.format(text)))
        assert again is not None
        assert (again.ioctl, again.error) == (ioctl, error)


@pytest.mark.parametrize(
    "text",
    ["all is well, registers 5", "hello", "", "vcpu registers are set", "set 22 registers",
     "error: no such file", "Invalid argument"],
)  # fmt: skip
def test_other_words(text: str) -> None:
    assert failed_call(text) is None


def test_an_msr_is_named() -> None:
    text = "qemu-system-x86_64: error: failed to set MSR 0xc0000080 to 0x1d01"
    assert failed_call(text) == CallWords("SET_MSRS", None, 0xC0000080, 0x1D01)
    first = _first(text)
    assert first.likelihood is Likelihood.LIKELY
    assert "nested=1" in first.do
    assert error_of("x (22)") == "EINVAL"


# --- what kernels say ---


def test_the_kernel_decides_between_causes() -> None:
    line = "Failed to set special registers: Invalid argument (os error 22)"
    assert _first(line, to="6.12.112").rule == "R-05"
    assert _why(line, to="6.12.112").sure
    old = _why(line, to="6.12.111")
    assert "R-05" not in {one.rule for one in old.answers}
    assert not old.sure
    assert old.answers[0].rule == "O-02"


def test_what_only_the_destination_checks_comes_first() -> None:
    line = "failed to set nested state: Invalid argument"
    first = _first(line, source="6.12.117", to="6.12.118")
    assert (first.rule, first.likelihood) == ("SV-18", Likelihood.LIKELY)
    far = _why(line, source="5.10.100", to="6.1.170")
    assert not far.sure, "many checks came in between"
    assert "C-04" in {one.rule for one in far.answers}
    assert "C-06" not in {one.rule for one in _why(line, to="6.1.76").answers}
    assert "C-06" in {one.rule for one in _why(line, to="6.1.75").answers}


def test_vmware_in_a_guest() -> None:
    """The report of Ubuntu 2008583: VMRUN with tlb_ctl 3."""
    line = "VMware ESXi 7: its VMs do not start since the host was updated"
    assert _first(line, to="6.1.75").rule == "C-06"
    assert _why(line, to="6.1.75").sure
    assert not _why(line, to="6.1.76").found


def test_sregs2_before_5_14() -> None:
    line = "KVM_SET_SREGS2: Inappropriate ioctl for device"
    assert _first(line, to="5.10.100").rule == "R-06"
    assert "R-06" not in {one.rule for one in _why(line, to="6.1.100").answers}


def test_cpuid_after_a_run_is_refused_since_5_16() -> None:
    line = "Failed to set CPUID: Invalid argument"
    assert _first(line, to="6.1.170").rule == "U-01"
    assert "U-01" not in {one.rule for one in _why(line, to="5.15.100").answers}


def test_a_killed_vm_without_and_with_the_stream(tmp_path: Path, sample: bytes) -> None:
    line = "qemu-system-x86_64: Failed to set general purpose registers: Input/output error"
    first = _first(line, to="6.12.117")
    assert (first.rule, first.cves) == ("SV-18", ("CVE-2026-99345",))
    assert first.fixed_in.startswith("6.12.118")
    assert "SV-18" not in {one.rule for one in _why(line, to="6.12.118").answers}
    with svm.open(NPT) as dump:
        at = dump["vcpu0.nested.l1_save.efer"].offset
    bad = bytearray(sample)
    bad[at : at + 8] = (0x1400).to_bytes(8, "little")
    file = tmp_path / "bad.mig"
    file.write_bytes(bad)
    sure = svm.why(file, errors=line, kernel="6.12.117").answers[0]
    assert (sure.rule, sure.likelihood) == ("SV-18", Likelihood.CERTAIN)
    refuted = svm.why(NPT, errors=line, kernel="6.12.117")
    assert "SV-18" not in {one.rule for one in refuted.answers}


def test_a_real_warn_of_a_vm_that_was_killed() -> None:
    answer = svm.why(LOGS / "linux6.12-killed.dmesg")
    assert answer.destination is not None
    assert answer.destination.name == "6.12.117+deb13-amd64"
    (one,) = answer.facts.oopses
    assert one.functions[:4] == (
        *("kvm_calc_cpu_role.isra.0", "kvm_init_shadow_npt_mmu", "nested_vmcb02_prepare_control"),
        "svm_set_nested_state",
    )
    first = answer.answers[0]
    assert (first.rule, first.likelihood) == ("SV-18", Likelihood.LIKELY)
    assert first.cves == ("CVE-2026-99345",)
    refuted = svm.why(NPT, log=LOGS / "linux6.12-killed.dmesg")
    assert "SV-18" not in {answer.rule for answer in refuted.answers}


def test_a_check_that_was_wrong_is_repaired_by_its_revert() -> None:
    line = "kvm_nested_vmenter_failed: !nested_svm_check_tlb_ctl(vcpu, control->tlb_ctl)"
    assert _first(line).fixed_in.startswith("6.1.76")


_NULL = """\
[  812.1] BUG: kernel NULL pointer dereference, address: 0000000000000000
[  812.1] #PF: supervisor instruction fetch in kernel mode
[  812.1] Oops: 0010 [#1] SMP NOPTI
[  812.1] CPU: 3 PID: 4242 Comm: CPU 0/KVM Not tainted {} #1 Debian
[  812.1] RIP: 0010:0x0
[  812.1] Code: Unable to access opcode bytes at RIP 0xffffffffffffffd6.
[  812.1] Call Trace:
[  812.1]  paging64_gva_to_gpa+0x5c/0xb0 [kvm]
[  812.1]  kvm_fetch_guest_virt+0x71/0xa0 [kvm]
[  812.1]  x86_emulate_instruction+0x2d5/0x7c0 [kvm]
[  812.1]  kvm_mmu_page_fault+0x1b2/0x5e0 [kvm]
[  812.1]  svm_handle_exit+0x12/0x20 [kvm_amd]
[  812.1] ---[ end trace 0123456789abcdef ]---
"""


def test_an_oops_after_nested_migration() -> None:
    first = svm.why(errors=_NULL.format("5.15.0-20-generic"), kernel="5.15.20").answers[0]
    assert (first.rule, first.likelihood) == ("O-28", Likelihood.LIKELY)
    assert "5.15.25" in first.fixed_in
    fixed = svm.why(errors=_NULL.format("x"), kernel="5.15.131")
    assert "O-28" not in {one.rule for one in fixed.answers}


def test_libvirt_s_log_names_kernel_and_qemu() -> None:
    text = (
        "2026-11-29 10:00:00.000+0000: starting up libvirt version: 11.3.0, package: 3, "
        "qemu version: 10.0.2Debian 1:10.0.2+ds-2, kernel: 6.12.112+deb13-amd64, hostname: h\n"
        "qemu-system-x86_64: Failed to set special registers: Invalid argument\n"
    )
    facts = _facts(text)
    assert facts.qemu_version == "10.0"
    assert facts.kernel == (1, "6.12.112+deb13-amd64")
    from qemu_svm.diagnosis.diagnose import diagnose

    assert diagnose(facts).answers[0].rule == "R-05"
    old = svm.why(NPT, errors="emulator version: 4.2, started")
    assert "Q-01" in {one.rule for one in old.answers}, "it puts nested state before SREGS"
    assert _facts("Nov 29 10:00:00 host kernel: 5.2 GHz band enabled").kernel is None


def test_an_oops_of_a_page_walk() -> None:
    text = _NULL.format("x").replace("RIP: 0010:0x0", "RIP: 0010:load_pdptrs+0x41/0x210 [kvm]")
    assert svm.why(errors=text, kernel="5.15.20").answers[0].rule == "O-28"


def test_a_kernel_that_is_too_old() -> None:
    answer = _why("Linux version 4.19.0-27-amd64", "failed to set nested state: Invalid argument")
    assert any("5.8 is the first" in one for one in answer.happened)


def test_the_log_names_the_kernel() -> None:
    answer = svm.why(errors=_NULL.format("5.10.0-8-amd64"))
    assert answer.destination is not None
    assert (answer.destination.name, answer.destination.given) == ("5.10.0-8-amd64", "log")


@pytest.mark.parametrize(
    "head",
    [
        ("WARNING: CPU: 1 PID: 12 at arch/x86/kvm/svm/nested.c:1780 "
        "svm_set_nested_state+0x2d5/0x310 [kvm_amd]"),
        ("WARNING: arch/x86/kvm/svm/nested.c:1780 at svm_set_nested_state+0x2d5/0x310 [kvm_amd], "
        "CPU#1: q/12"),
    ],
)  # fmt: skip
def test_a_warn_in_both_forms(head: str) -> None:
    reader = OopsReader(4)
    assert reader.read(1, head)
    (one,) = reader.found
    assert one.place == "arch/x86/kvm/svm/nested.c:1780"
    assert one.functions == ("svm_set_nested_state",)
    assert _first(head, to="6.1.160").rule == "K-23"
    assert "K-23" not in {answer.rule for answer in _why(head, to="6.1.165").answers}


def test_other_oopses_are_not_kvm_s() -> None:
    text = (
        "BUG: unable to handle page fault for address: ffff\nRIP: 0010:ext4_readdir+0x1/0x2 [ext4]"
    )
    assert not _why(text, to="6.1.170").found


@pytest.mark.parametrize(
    ("text", "msr"),
    [("kvm [12]: vcpu0, guest rIP: 0xfff unhandled wrmsr: 0xc0000104 data 0x100000000", 0xC0000104),
     ("kvm: vcpu1, guest rIP: 0x1 unhandled rdmsr: 0xc0000104", 0xC0000104),
     ("kvm_amd: kvm [77]: vcpu1, guest rIP: 0x1 Unhandled WRMSR(0xc0010117) = 0x0", 0xC0010117)],
)  # fmt: skip
def test_msrs_that_kvm_does_not_know(text: str, msr: int) -> None:
    answer = _why(text, to="5.10.200")
    assert {number for number, _ in answer.facts.msrs} == {msr}
    assert answer.found


# --- signs ---


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("KVM: entry failed, hardware error 0xffffffff", "entry-refused"),
        ("KVM: entry failed, hardware error 0x80000021", "entry-refused-vmx"),
        ("VcpuExit::FailEntry(4294967295, 0)", "entry-refused"),
        ("KVM internal error. Suberror: 1", "emulation"),
        ("Guest has most likely triple-faulted", "shutdown"),
        ("set kvm_amd.dump_invalid_vmcb=1 to dump internal KVM state.", "dump-off"),
        ("host doesn't support requested feature: CPUID.80000001H:ECX.svm [bit 2]", "no-svm"),
        ("guest CPU doesn't match specification: missing features: svm,npt", "no-svm"),
        ("L2 hangs in HLT after the migration", "hang"),
    ],
)
def test_signs(text: str, sign: str) -> None:
    found = sign_of(text)
    assert found is not None
    assert found[0].id == sign
    assert sign in _why(text).facts.signs, "the reader looks at the line"


def test_signs_name_rules_that_exist() -> None:
    from qemu_svm.findings.rules import RULES

    named = {reason.rule for sign in SIGNS for reason in sign.reasons if reason.rule}
    assert named <= set(RULES)


def test_a_bug_of_the_source() -> None:
    line = "L2 hangs in HLT after migration"
    first = _first(line, source="6.12.80", to="6.12.117")
    assert (first.rule, first.cves) == ("K-09", ("CVE-2026-45987",))
    assert "K-09" not in {one.rule for one in _why(line, source="6.12.86", to="6.12.117").answers}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Failed to set all KVM MSRs for this vCPU. Only a partial write was done.", "T-05"),
        ("KVM_SET_MSRS: 12 of 40 MSRs were set", "T-05"),
        ("ioctl(KVM_GET_NESTED_STATE) failed: Argument list too long", "GET-02"),
        ("(XEN) d1v0 unexpected VMEXIT: exit reason = 0xffffffffffffffff", "C-06"),
        ("KVM_CHECK_EXTENSION(KVM_CAP_NESTED_STATE) failed: ENOTTY", "T-06"),
        (
            "Failed to put registers after init: Failed to set nested state: Invalid argument",
            "O-03",
        ),
        ("ERROR:vmm/src/cpu.rs -- Unexpected VCPU exit: Shutdown", "T-04"),
        ("BUG: KASAN: slab-use-after-free in svm_vcpu_free+0x12/0x80 [kvm_amd]", "K-15"),
        ("watchdog: BUG: soft lockup - CPU#3 stuck for 26s! [CPU 0/KVM:4242]", "K-09"),
    ],
)
def test_other_programs(text: str, rule: str) -> None:
    assert _first(text).rule == rule


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("VQ 0 vring.num 256 exceeds allocated max 128", "virtio-queue"),
        ("get_pci_config_device: Bad config data: i=0x34 read: 98 device: 84", "pci-config"),
        ("XBZRLE page offset 0x1000 too big", "xbzrle"),
    ],
)
def test_a_line_that_is_given_by_itself_needs_no_name_of_a_program(line: str, rule: str) -> None:
    assert _first(line).rule == f"refused-{rule}"


def test_a_log_without_a_cause() -> None:
    """What hosts print every day, and other programs' errors."""
    text = """\
kvm: vcpu 0: requested 128 ns lapic timer period limited to 200000 ns
kvm_amd: Nested Virtualization enabled
SVM: kvm: Nested Paging enabled
kvm: SMP vm created on host with unstable TSC; guest TSC will not be reliable
kvm [1]: ignored rdmsr: 0x3a data 0x0
kvm [1]: vcpu0, guest rIP: 0x1 unhandled rdmsr: 0x1ad
qemu-system-x86_64: terminating on signal 15
Failed to set up mount unit: Invalid argument
nvme0: failed to set APST feature (2)
ERROR: failed to set registers of camera: -22
EXT4-fs error (device sda1): ext4_find_entry:1455
"""
    from qemu_svm.diagnosis.diagnose import diagnose

    answer = diagnose(_facts(text))
    assert not answer.found, answer.answers
    assert not any("camera" in one or "KVM_SET" in one for one in answer.happened)


def test_numbers_of_a_result_count() -> None:
    facts = _facts("vcpu: KVM_SET_SREGS errno 0\n" * 3 + "vcpu: KVM_SET_SREGS errno 22\n")
    assert {call.error for call in facts.calls} == {"EINVAL"}


def test_a_stream_that_is_cut(command: Run, tmp_path: Path, sample: bytes) -> None:
    file = tmp_path / "cut.mig"
    file.write_bytes(sample[:-1000])
    done = command("why", file)
    assert done.returncode == 3
    assert b"damaged" in done.stdout


@pytest.mark.parametrize(
    "text", ["hello world", "systemd[1]: Started foo.", "error: no such file", "x" * 100_000]
)
def test_nothing_is_made_of_other_text(text: str) -> None:
    answer = _why(text)
    assert not answer.found
    assert answer.facts.recognised == 0


# --- ioctl logs ---


def test_an_ioctl_log_is_judged() -> None:
    text = (
        "ioctl(13<anon_inode:kvm-vm>, KVM_CREATE_VCPU, 0) = 20<anon_inode:kvm-vcpu:0>\n"
        "ioctl(20<anon_inode:kvm-vcpu:0>, KVM_SET_SREGS, 0x7f00) = -1 EINVAL (Invalid argument)\n"
    )
    facts = _facts(text)
    assert facts.trace is not None
    from qemu_svm.diagnosis.diagnose import diagnose

    first = diagnose(facts).answers[0]
    assert (first.rule, first.likelihood) == ("O-02", Likelihood.LIKELY)


def test_a_program_that_drops_nested_state_is_sure_only_if_efer_is_seen() -> None:
    from qemu_svm.diagnosis.diagnose import diagnose

    create = "ioctl(13<anon_inode:kvm-vm>, KVM_CREATE_VCPU, 0) = 20<anon_inode:kvm-vcpu:0>\n"
    names = ("CPUID2", "REGS", "SREGS", "MSRS", "VCPU_EVENTS")
    calls = "".join(
        f"ioctl(20<anon_inode:kvm-vcpu:0>, KVM_SET_{name}, 0x7f00) = {9 * (name == 'MSRS')}\n"
        for name in names
    )
    text = create + calls + "ioctl(20<anon_inode:kvm-vcpu:0>, KVM_RUN, 0) = 0\n"
    unseen = diagnose(_facts(text)).answers[0]
    assert (unseen.rule, unseen.likelihood) == ("T-04", Likelihood.POSSIBLE)
    seen = diagnose(_facts(text.replace("SREGS, 0x7f00", "SREGS, {efer=0x1500}"))).answers[0]
    assert (seen.rule, seen.likelihood) == ("T-04", Likelihood.LIKELY)


def test_qemu_s_log_of_a_restore_that_is_right() -> None:
    log = STREAMS / "qemu10.0-linux6.12-nested-npt.restore-ioctls.log.zst"
    assert not svm.why(log).found


# --- the stream ---


def test_a_stream_alone() -> None:
    assert not svm.why(NPT, kernel="6.12.118").found


@pytest.mark.parametrize(
    ("field", "value", "rule", "kernel", "likelihood"),
    [
        ("asid", 0, "C-02", None, Likelihood.CERTAIN),
        ("tlb_ctl", 3, "C-06", None, Likelihood.LIKELY),
        ("tlb_ctl", 3, "C-06", "6.1.75", Likelihood.CERTAIN),
        ("tlb_ctl", 3, "", "6.1.76", Likelihood.POSSIBLE),
    ],
)
def test_a_refusal_that_the_stream_confirms(
    tmp_path: Path, sample: bytes, field: str, value: int, rule: str, kernel: str | None,
    likelihood: Likelihood,
) -> None:  # fmt: skip
    with svm.open(NPT) as dump:
        place = dump[f"vcpu0.nested.control.{field}"]
    file = tmp_path / "bad.mig"
    bad = value.to_bytes(place.size, "little")
    file.write_bytes(sample[: place.offset] + bad + sample[place.offset + place.size :])
    first = svm.why(file, errors="Failed to set nested state: EINVAL", kernel=kernel).answers[0]
    assert first.likelihood is likelihood
    if rule:
        assert (first.rule, first.offset) == (rule, place.offset)
        assert any(one.startswith("stream: ") for one in first.evidence)
    else:
        assert first.rule != "C-06"


def test_qemu_s_message_is_explained_from_the_stream() -> None:
    line = (
        "qemu-system-x86_64: Machine type received is 'pc-i440fx-10.0' and local is 'pc-q35-10.0'"
    )
    answer = svm.why(NPT, errors=line)
    assert answer.answers[0].rule == "refused-machine"
    assert "pc-i440fx-10.0" in answer.answers[0].why


def test_two_logs_are_an_error(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("text of a log\n")
    with pytest.raises(svm.SourceError, match="not a migration stream"):
        svm.why(log, log=log)
    with pytest.raises(svm.SourceError, match="is a migration stream"):
        svm.why(log=NPT)
    with pytest.raises(svm.PlanError, match="nothing to explain"):
        svm.why()


# --- the command ---


def test_the_command(command: Run) -> None:
    done = command("why", LOGS / "linux6.1-dump.dmesg")
    assert done.returncode == 1
    assert b"certain: in long mode, CS has L and D set" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.decode().splitlines())
    none = command("why", "--error", "hello")
    assert none.returncode == 0
    assert b"Nothing here is recognised" in none.stdout
    assert command("why").returncode == 2
    assert command("why", "/no/such/file").returncode == 3
    assert command("why", "--error", "x", "--to", "nonsense").returncode == 2


def test_the_command_reads_standard_input(command: Run) -> None:
    data = (LOGS / "linux7.2-dump.dmesg").read_bytes()
    for arguments in (["why", "-"], ["why", "--log", "-"], ["why", str(NPT), "--log", "-"]):
        done = command(*arguments, input=data)
        assert done.returncode == 1, arguments
        assert b"[S-09]" in done.stdout


def test_json_and_the_page(command: Run) -> None:
    page = (STREAMS.parent / "docs" / "why.md").read_text()
    made = json.loads(command("why", "--json", LOGS / "linux6.12-dump.dmesg").stdout)
    for name in (*made, *made["answers"][0], *made["dumps"][0]):
        assert f"`{name}`" in page, name
    assert (made["found"], made["sure"]) == (True, True)
    assert made["answers"][0]["rule"] == "S-09"


def test_nothing_reaches_a_terminal_raw(command: Run) -> None:
    line = "failed to set sregs: Invalid argument \x1b]0;title\x07\u202e \x9b31m"
    done = command("why", "--error", line)
    assert b"\x1b" not in done.stdout
    assert "\u202e".encode() not in done.stdout


@pytest.mark.parametrize("verb", ["inspect", "check", "simulate", "ram", "diff", "trace", "vmruns"])
def test_other_verbs_point_here(command: Run, verb: str, tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    log.write_text("qemu-system-x86_64: Failed to set special registers: Invalid argument\n")
    done = command(verb, log, *([log] if verb == "diff" else []))
    assert done.returncode == 3
    assert b"svmstream why" in done.stderr


def test_what_the_stream_rules_out() -> None:
    # QEMU's order is known, the state is SVM's, and the kernel's checks accept it.
    line = "qemu-system-x86_64: kvm: kvm_set_nested_state failed: Invalid argument"
    found = svm.why(NPT, errors=(line,), kernel="6.12.118")
    rules = {one.rule for one in found.answers}
    assert rules == {"C-03", "SV-05", ""}
    assert any("accepts the state in the stream" in text for text in found.happened)
    assert {"O-01", "SV-01", "C-06"} <= {one.rule for one in _why(line).answers}
    # Another program may use another order.
    others = svm.why(NPT, errors=("set_nested_state: EINVAL",), kernel="6.12.118")
    assert "O-01" in {one.rule for one in others.answers}


@pytest.mark.parametrize(
    "line",
    [
        "error: guest CPU doesn't match specification: missing features: npt,nrip-save",
        "warning: host doesn't support requested feature: CPUID.8000000AH:EDX.vgif [bit 16]",
    ],
)
def test_a_feature_of_svm_that_is_not_offered(line: str) -> None:
    assert "lack a feature" in _first(line).why
