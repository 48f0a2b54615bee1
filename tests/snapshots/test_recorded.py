"""Recordings as state: the put, what the model answers to its bytes, and what was saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import qemu_svm as svm
from qemu_svm.errors import PathError, PlanError, SourceError, SvmStreamError
from qemu_svm.kvm import layouts
from qemu_svm.kvm.numbers import Level
from qemu_svm.limits import DEFAULT, changed
from qemu_svm.recording.recording import Form
from qemu_svm.recording.records import Ioctl, Lost, Memory
from qemu_svm.replay.job import ReplayOptions
from qemu_svm.replay.replay import prepare
from tests.conftest import STREAMS, Run
from tests.recording.recorded import QEMU, made, real
from tests.support import snapshots
from tests.support.recordings import CLOUD_HYPERVISOR, FIRECRACKER, VM_FD, Log, filled

CAPTURE = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"


@pytest.fixture(scope="module")
def dump() -> Iterator[svm.Dump]:
    with svm.open(CAPTURE) as found:
        yield found


@pytest.fixture(scope="module")
def parts(dump: svm.Dump) -> dict[str, bytes]:
    return filled(snapshots.raw_parts(dump))


def recorded(parts: dict[str, bytes], order: tuple[str, ...] = CLOUD_HYPERVISOR) -> Log:
    log = Log()
    log.create()
    log.put(parts, order)
    return log


@pytest.mark.parametrize("form", ["jsonl", "binary"])
def test_the_order_of_cloud_hypervisor_is_right(
    dump: svm.Dump, parts: dict[str, bytes], tmp_path: Path, form: Form
) -> None:
    with svm.open(recorded(parts).write(tmp_path / "log", form, "6.1.176")) as log:
        report = log.simulate(saved=dump)
        assert report.plan == "recorded"
        assert report.verdict == "right"
        assert report.simulations[0].kernel.name == "6.1.176"  # the one that was recorded
        assert report.recorded == (None,)
        assert not svm.diff(log, dump).comparison.counting
        assert not [one for one in log.check("6.1", saved=dump).findings if one.severity != "info"]


def test_without_nested_state_every_ioctl_is_accepted_and_the_verdict_is_wrong(
    dump: svm.Dump, parts: dict[str, bytes], tmp_path: Path
) -> None:
    with svm.open(recorded(parts, FIRECRACKER).write(tmp_path / "log")) as log:
        report = log.simulate(kernel=["5.10", "6.1", "6.12", "7.2"], saved=dump)
        for one, judgement in zip(report.simulations, report.judgements, strict=True):
            assert all(result.errno is None for result in one.results)
            assert judgement.verdict == "wrong"
            assert "L2's code would run in L1's context" in judgement.lines[0]
        rules = {one.rule for one in log.check("6.1", saved=dump).findings}
        assert {"X-12", "X-16"} <= rules
        assert "X-12" in {one.rule for one in log.check("6.1").findings}  # from the put alone


def test_recordings_of_a_real_kernel(dump: svm.Dump) -> None:
    folder = STREAMS / "recordings"
    with svm.open(folder / "qemu7.2-linux6.1-nested.attached.jsonl.zst") as found:
        assert svm.diff(found, dump).same
        report = found.simulate(saved=dump)
        assert (report.verdict, report.recorded) == ("right", (None,))
        assert not [one for one in found.check("6.1", saved=dump).findings if one.rule[0] == "X"]
    with svm.open(folder / "order-firecracker.ptrace.jsonl.zst") as found:
        report = found.simulate(kernel="6.1", saved=dump)
        assert (report.verdict, report.recorded) == ("wrong", (None,))
        wrong = [one for one in found.check("6.1", saved=dump).findings if one.rule == "X-16"]
        assert [one.message.rpartition(": ")[2][:37] for one in wrong] == [
            "L2's code continues as L1",
            "KVM_SET_MSRS does not set vm_hsave_pa",
        ]


def test_guest_memory_of_a_recording(
    dump: svm.Dump, parts: dict[str, bytes], tmp_path: Path
) -> None:
    memory = snapshots.main_memory(dump)[: 2 << 20]
    log = Log()
    log.create()
    region = layouts.MEMORY_REGION.pack({"guest_phys_addr": 0, "memory_size": 4 << 20})
    log.call("SET_USER_MEMORY_REGION", region, fd=VM_FD, index=None, level=Level.VM)
    log.put(parts, CLOUD_HYPERVISOR, run=False)
    for at in range(0, len(memory), 0x8000):
        data = memory[at : at + 0x8000]
        if data.strip(b"\0"):  # what is zero is left out
            log.records.append(Memory(len(log.records) + 1, 0, VM_FD, at, data))
    log.call("RUN", runs=0)
    for form in ("jsonl", "binary"):
        with svm.open(log.write(tmp_path / form, form)) as found:
            assert found.memory.read(0, len(memory)) == memory
            assert found.memory.read(3 << 20, 4096) == bytes(4096)
            rip = found.vcpus[0].registers.rip
            assert found.memory.world("l2v").read(rip, 16) == dump.memory.world("l2v").read(rip, 16)
            assert found.memory.layout.ranges[0].size == 4 << 20


DAMAGES = [
    ("REGS", 128, 8, "KVM_SET_REGS sets rip"),
    ("SREGS", 224 + 16, 8, "KVM_SET_SREGS sets cr3"),
    ("NESTED_STATE", 128 + 0x58, 4, "KVM_SET_NESTED_STATE sets control.asid"),
    ("NESTED_STATE", 128 + 0x400 + 0x178, 8, "KVM_SET_NESTED_STATE sets l1_save.rip"),
]


@pytest.mark.parametrize(("name", "offset", "size", "words"), DAMAGES)
def test_a_damaged_value_is_found_at_its_record(
    dump: svm.Dump, parts: dict[str, bytes], tmp_path: Path, name: str, offset: int, size: int,
    words: str,
) -> None:  # fmt: skip
    data = bytearray(parts[name])
    data[offset : offset + size] = (0x7000).to_bytes(size, "little")
    log = recorded({**parts, name: bytes(data)})
    with svm.open(log.write(tmp_path / "log")) as found:
        wrong = [one for one in found.check("6.1", saved=dump).findings if one.rule == "X-16"]
    assert len(wrong) == 1
    record = 5 + CLOUD_HYPERVISOR.index(name)  # the first line is the recording's own
    assert f"record {record}: {words}" in wrong[0].message


def test_the_first_difference_between_kvm_and_the_model(
    parts: dict[str, bytes], tmp_path: Path
) -> None:
    # KVM refuses what the model accepts, and the other way round.
    log = Log()
    log.create()
    log.put(parts, CLOUD_HYPERVISOR[:8], run=False)
    log.call("SET_NESTED_STATE", parts["NESTED_STATE"], -22)
    log.put(parts, ("VCPU_EVENTS",))
    with svm.open(log.write(tmp_path / "refused", release="6.1.176")) as found:
        report = found.simulate()
        first = report.recorded[0]
        assert first is not None
        assert (first.record, first.ioctl, first.name) == (13, "SET_NESTED_STATE", "errno")
        assert (first.recorded, first.answer) == ("EINVAL", None)
        rules = {one.rule for one in found.check().findings}
        assert {"X-14", "X-15"} <= rules
    bad = bytearray(parts["NESTED_STATE"])
    bad[128 + 0x58 : 128 + 0x5C] = bytes(4)
    with svm.open(
        recorded({**parts, "NESTED_STATE": bytes(bad)}).write(tmp_path / "taken")
    ) as found:
        first = found.simulate(kernel="6.1").recorded[0]
        assert first is not None
        assert (first.recorded, first.answer) == (None, "EINVAL")


def test_what_the_recording_reads_is_compared(parts: dict[str, bytes], tmp_path: Path) -> None:
    wrong = bytearray(parts["REGS"])
    wrong[128:136] = (0x1234).to_bytes(8, "little")
    for data, name in ((parts["REGS"], None), (bytes(wrong), "regs.rip")):
        log = Log()
        log.create()
        log.put(parts, CLOUD_HYPERVISOR, run=False)
        log.call("GET_REGS", out=data)
        log.call("RUN", runs=0)
        with svm.open(log.write(tmp_path / "log")) as found:
            first = found.simulate(kernel="6.1").recorded[0]
        assert name == (None if first is None else first.name)


def test_which_put_and_which_vm(parts: dict[str, bytes], tmp_path: Path) -> None:
    log = Log()
    for vm, vcpu in ((5, 6), (15, 16)):
        log.create(vm, vcpu)
        first = dict(parts) | {
            "NESTED_STATE": layouts.NESTED_STATE.pack({"format": 1, "size": 128, "flags": 0x100})
        }
        log.put(first, CLOUD_HYPERVISOR, fd=vcpu)
        log.put(parts, CLOUD_HYPERVISOR[1:], fd=vcpu)
        log.put(parts, ("REGS", "SREGS"), fd=vcpu)
    path = log.write(tmp_path / "log")
    with svm.open(path) as found:
        put = found.vcpus[0].put
        assert put is not None
        assert (put.vm, put.vms, put.number, put.count) == (1, 2, 2, 3)  # the last in guest mode
        assert put.before[0].name == "SET_CPUID2"  # of the put before
        assert found.simulate(kernel="6.1").verdict == "right"
    with svm.open(path, put=3) as found:  # KVM keeps the nested state of the put before
        assert "X-12" not in {one.rule for one in found.check("6.1").findings}
    with svm.open(path, put=1, vm=2) as found:
        put = found.vcpus[0].put
        assert put is not None
        assert (put.vm, put.number) == (2, 1)
        assert not found.vcpus[0].guest_mode
    with pytest.raises(PathError, match="put 7: there are 3"):
        svm.open(path, put=7)
    with pytest.raises(PathError, match="no VM 3"):
        svm.open(path, vm=3)
    with svm.open(CAPTURE) as stream, pytest.raises(PlanError, match="is for recordings"):
        stream.simulate("recorded")


def test_of_many_puts_the_first_and_the_last_are_kept(
    parts: dict[str, bytes], tmp_path: Path
) -> None:
    log = Log()
    log.create()
    log.put(parts, CLOUD_HYPERVISOR)
    for number in range(20):
        regs = layouts.REGS.pack(layouts.REGS.unpack(parts["REGS"]) | {"rax": number})
        log.put({"REGS": regs}, ("REGS",))
    path, few = log.write(tmp_path / "log"), changed(DEFAULT, ["recorded_puts=8"])
    for wanted, rax in ((1, None), (21, 19), (16, 14)):
        with svm.open(path, put=wanted, limits=few) as found:
            put = found.vcpus[0].put
            assert put is not None
            assert (put.number, put.count) == (wanted, 21)
            assert rax is None or found.vcpus[0].registers.rax == rax
    with pytest.raises(PathError, match="there are 21, of which the first and the last 7 are kept"):
        svm.open(path, put=5, limits=few)


def test_a_recording_cut_anywhere_or_with_lost_calls(
    parts: dict[str, bytes], tmp_path: Path
) -> None:
    whole = recorded(parts).write(tmp_path / "log").read_bytes()
    for at in range(0, len(whole), 997):
        (tmp_path / "cut").write_bytes(whole[:at])
        try:
            with svm.open(tmp_path / "cut") as found:
                assert not found.complete
                found.check("6.1")
        except SvmStreamError:
            continue
    log = recorded(parts)
    log.records.insert(6, Lost(7, 7000, 40))
    with svm.open(log.write(tmp_path / "lost")) as found:
        assert "X-17" in {one.rule for one in found.check("6.1").findings}
    empty = Log()
    empty.create()
    with pytest.raises(SourceError, match="has no vCPU whose registers are set"):
        svm.open(empty.write(tmp_path / "empty"))


def test_the_verbs(parts: dict[str, bytes], tmp_path: Path, command: Run) -> None:
    log = recorded(parts, FIRECRACKER).write(tmp_path / "log")
    judged = command("check", log, "--saved", CAPTURE, "--kernel", "6.1")
    assert judged.returncode == 1
    assert b"no record sets its nested state" in judged.stdout
    ran = command("simulate", log, "--saved", CAPTURE, "--json")
    document = json.loads(ran.stdout)
    assert ran.returncode == 1
    assert document["recorded"] == {
        "vm": 1, "put": 1, "puts": 1, "ran": True, "ran_at": None, "carried": [], "not_known": [],
    }  # fmt: skip
    assert document["simulations"][0]["recorded_difference"] is None
    assert document["simulations"][0]["verdict"] == "wrong"
    shown = command("simulate", log).stdout
    assert b"plan recorded (put 1 of 1, records 5 to 13)" in shown
    assert b"recording: KVM answered as the model does" in shown


def test_a_later_put_has_the_state_that_the_vcpu_has(dump: svm.Dump, tmp_path: Path) -> None:
    # QEMU reads everything after the vCPU ran, and puts it at run-time level.
    with svm.open(QEMU, put=2) as found:
        put = found.vcpus[0].put
        assert put is not None
        assert (put.number, put.ran_at, put.lacking) == (2, 44, ())
        assert {call.name for call in put.before} == {
            *("SET_SREGS2", "SET_NESTED_STATE", "SET_REGS", "SET_MSRS", "SET_VCPU_EVENTS"),
            *("SET_MP_STATE", "SET_DEBUGREGS"),
        }
        assert found.vcpus[0].guest_mode  # by what was read
        report = found.simulate(kernel="6.1")
        assert (report.verdict, report.recorded) == ("right", (None,))
        steps = report.simulations[0].results
        carried = [one.step.carried for one in steps]
        assert carried == sorted(carried, reverse=True)
        assert any(carried)
        assert steps[carried.index(False) - 1].state.guest_mode
        (beside,) = svm.diff(found, dump).puts
        assert {one.ioctl for one in beside.differences} == {"REGS", "MSRS"}  # it ran on
    lost = [one for one in real(QEMU) if one.number != 53]  # GET_NESTED_STATE
    path = tmp_path / "log.jsonl"
    path.write_bytes(made(lost, "jsonl"))
    with svm.open(path, put=2) as found:
        put = found.vcpus[0].put
        assert put is not None
        assert put.lacking == ("NESTED_STATE",)
        report = found.simulate(kernel="6.1")
        assert report.verdict == "open"
        assert "whether it is in L2 is not known" in report.judgements[0].lines[0]


def test_what_was_put_before_a_run_is_there_if_it_was_not_read(
    parts: dict[str, bytes], tmp_path: Path
) -> None:
    log = Log()
    log.create()
    log.put({**parts, "NESTED_STATE": _new()}, CLOUD_HYPERVISOR)
    log.call("GET_REGS", out=parts["REGS"])
    log.put(parts, ("REGS",))
    with svm.open(log.write(tmp_path / "log"), put=2) as found:
        put = found.vcpus[0].put
        assert put is not None
        assert [call.name for call in put.before][:2] == ["SET_CPUID2", "SET_SREGS"]
        assert "SREGS" in put.lacking
        assert "REGS" not in put.lacking
        report = found.simulate(kernel="6.1")
        assert report.verdict == "open"  # the nested state after the run
        assert found.vcpus[0].registers.cr3 == layouts.SREGS.unpack(parts["SREGS"])["cr3"]


def _new() -> bytes:
    return layouts.NESTED_STATE.pack({"format": 1, "size": 128, "flags": 0x100})


def changed_put(parts: dict[str, bytes], name: str, offset: int, value: bytes) -> dict[str, bytes]:
    data = bytearray(parts[name])
    data[offset : offset + len(value)] = value
    return {**parts, name: bytes(data)}


NOT_SAVED = [
    ("NESTED_STATE", 0, b"\x01\0", "flags 0x1 instead of 0x101"),
    ("NESTED_STATE", 8, bytes(8), "vmcb_pa 0x0 instead of"),
    ("NESTED_STATE", 128 + 0x0C, bytes(4), "control.intercepts"),
    ("NESTED_STATE", 128 + 0x68, b"\x01", "control.int_state 0x1 instead of 0x0"),
    ("MP_STATE", 0, b"\x03", "mp_state 3 instead of 0"),
]


@pytest.mark.parametrize(("name", "offset", "value", "words"), NOT_SAVED)
def test_what_kvm_accepts_and_was_not_saved_is_wrong(
    dump: svm.Dump, parts: dict[str, bytes], tmp_path: Path, name: str, offset: int, value: bytes,
    words: str,
) -> None:  # fmt: skip
    log = recorded(changed_put(parts, name, offset, value))
    with svm.open(log.write(tmp_path / "log")) as found:
        report = found.simulate(kernel="6.1", saved=dump)
        assert (report.verdict, report.recorded) == ("wrong", (None,))
        assert any(words in line for line in report.judgements[0].lines)
        assert found.simulate(kernel="6.1").verdict == "right"  # the put by itself
        (beside,) = svm.diff(found, dump).puts
        assert beside.first is not None
        assert beside.first.ioctl == name or beside.first.ioctl == "LAPIC"  # a new one here


def test_an_msr_that_is_not_put_and_its_record(
    dump: svm.Dump, parts: dict[str, bytes], tmp_path: Path
) -> None:
    msrs = {number: value for number, value in layouts.unpack_msrs(parts["MSRS"]).items()
            if number != 0xC0010117}  # fmt: skip
    log = recorded({**parts, "MSRS": layouts.pack_msrs(list(msrs.items()))})
    with svm.open(log.write(tmp_path / "log")) as found:
        report = found.simulate(kernel="6.1", saved=dump)
        assert report.verdict == "wrong"
        assert "record 12: KVM_SET_MSRS does not set vm_hsave_pa" in report.judgements[0].lines[0]
        (beside,) = svm.diff(found, dump).puts
        assert ("MSRS", "vm_hsave_pa", None) in {
            (one.ioctl, one.name, one.a) for one in beside.differences
        }


def test_a_call_without_its_data_is_not_judged(
    dump: svm.Dump, parts: dict[str, bytes], tmp_path: Path
) -> None:
    cut = {**parts, "NESTED_STATE": parts["NESTED_STATE"][:2000]}
    with svm.open(recorded(cut).write(tmp_path / "log")) as found:
        report = found.simulate(kernel="6.1", saved=dump)
        assert report.verdict == "open"
        assert "Record 13: KVM_SET_NESTED_STATE has not all of its data" in "".join(
            report.judgements[0].lines
        )
        rules = {one.rule for one in found.check("6.1", saved=dump).findings}
        assert "X-17" in rules
        assert not {"X-12", "X-16"} & rules
        (beside,) = svm.diff(found, dump).puts
        assert beside.first is not None
        assert (beside.first.ioctl, beside.first.why) == ("NESTED_STATE", "has not all of its data")


def test_a_buffer_that_is_larger_than_the_state_is_whole(
    parts: dict[str, bytes], tmp_path: Path
) -> None:
    large = changed_put(parts, "NESTED_STATE", 4, (0x2080).to_bytes(4, "little"))
    with svm.open(recorded(large).write(tmp_path / "log")) as found:
        assert found.simulate(kernel="6.1").verdict == "right"


@pytest.mark.parametrize("form", [0, 7])
def test_nested_state_of_another_format_is_refused(
    dump: svm.Dump, parts: dict[str, bytes], tmp_path: Path, form: int
) -> None:
    other = changed_put(parts, "NESTED_STATE", 2, form.to_bytes(2, "little"))
    with svm.open(recorded(other).write(tmp_path / "log")) as found:
        report = found.simulate(kernel="6.1", saved=dump)
        first = report.recorded[0]
        assert first is not None
        assert (first.record, first.answer) == (13, "EINVAL")
        assert "SV-01" in {one.rule for one in found.check("6.1", saved=dump).findings}


def test_an_ioctl_that_failed_was_not_set(
    dump: svm.Dump, parts: dict[str, bytes], tmp_path: Path
) -> None:
    log = recorded(parts)
    for at, call in enumerate(log.records):
        if isinstance(call, Ioctl) and call.name == "KVM_SET_NESTED_STATE":
            log.records[at] = call._replace(ret=-22)
    with svm.open(log.write(tmp_path / "log")) as found:
        assert found.simulate(kernel="6.1").verdict == "refused"
        (beside,) = svm.diff(found, dump).puts
        assert beside.first is not None
        assert (beside.first.record_a, beside.first.why) == (13, "failed with EINVAL")


def test_the_put_that_restores_where_no_run_is_recorded(tmp_path: Path) -> None:
    # Without guest mode it is still the one with nested state, not the last one.
    damaged = [
        one._replace(given=b"\0\0" + one.given[2:])
        if isinstance(one, Ioctl) and one.name == "KVM_SET_NESTED_STATE" else one
        for one in real(QEMU)
    ]  # fmt: skip
    path = tmp_path / "log.jsonl"
    path.write_bytes(made(damaged, "jsonl"))
    with svm.open(path) as found:
        put = found.vcpus[0].put
        assert put is not None
        assert put.number == 1


def test_a_replay_gives_the_vcpu_its_machine_check_banks(dump: svm.Dump) -> None:
    # Without them KVM refuses MCG_CTL, which QEMU puts; this recording begins after its creation.
    with svm.open(QEMU) as found:
        put = found.vcpus[0].put
        assert put is not None
        assert put.mce == 0x100 | 10
        job = prepare(found.machine, found.vcpus[0], None, ReplayOptions(), dump.machine)
        assert job.options.mce == put.mce


def test_two_puts_of_one_recording(command: Run) -> None:
    done = command("diff", QEMU, QEMU, "--put", "1", "--put-b", "2")
    assert done.returncode == 1
    assert b"A: put 1 of 2" in done.stdout
    assert b"B: put 2 of 2" in done.stdout
    same = command("diff", QEMU, CAPTURE, "--put", "1")
    assert same.returncode == 0
    refused = command("diff", CAPTURE, CAPTURE, "--put", "1")
    assert refused.returncode == 2
    assert b"neither A nor B is one" in refused.stderr
    other = command("diff", QEMU, CAPTURE, "--put-b", "1")
    assert b"B is none" in other.stderr
    assert command("diff", QEMU, CAPTURE, "--put", "9").returncode == 2


def test_other_kernels_are_judged_as_a_vmm_restores_there(dump: svm.Dump) -> None:
    with svm.open(QEMU) as found:
        report = found.check(["5.10", "5.15", "6.1"], saved=dump)
        lacking = {one.message.split("does not have ")[1].partition(";")[0]:
                   tuple(name.rpartition(".")[0] for name in one.kernels)
                   for one in report.findings if one.rule == "X-18"}  # fmt: skip
        assert lacking == {
            "KVM_SET_SREGS2": ("5.10",),
            "MSR 0xc0000104": ("5.10", "5.15"),
            "flag 0x20 of KVM_SET_VCPU_EVENTS": ("5.10", "5.15"),
        }
        assert not [one for one in report.findings if one.severity == "error"]
        # The bytes as they are:
        assert found.simulate(kernel="5.10").simulations[0].results[3].failed == "R-06"
