"""State that is no stream: each form comes to what the stream that it was made of says."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import qemu_svm as svm
from qemu_svm.errors import LimitExceeded, PlanError, SourceError, SvmStreamError
from qemu_svm.kvm import layouts
from qemu_svm.limits import DEFAULT, changed
from qemu_svm.model.saved import from_vcpu
from qemu_svm.snapshots.bitcode import ColumnError, Columns, equal_lengths
from tests.conftest import CAPTURES, STREAMS, Run
from tests.support import snapshots
from tests.support.recordings import filled

CAPTURE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
NESTED = [one["file"] for one in CAPTURES if "resaved" not in one["file"]]


@pytest.fixture(scope="module")
def dump() -> Iterator[svm.Dump]:
    """A capture with nested paging."""
    with svm.open(CAPTURE) as found:
        yield found


@pytest.fixture(scope="module")
def parts(dump: svm.Dump) -> dict[str, bytes]:
    return snapshots.raw_parts(dump)


@pytest.fixture(scope="module")
def folder(dump: svm.Dump, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a snapshot of Cloud Hypervisor."""
    return snapshots.write_cloud_hypervisor(tmp_path_factory.mktemp("ch") / "vm1", dump)


@pytest.fixture
def files(parts: dict[str, bytes], tmp_path: Path) -> dict[str, Path]:
    """The same as raw files."""
    for name, data in parts.items():
        (tmp_path / name).write_bytes(data)
    return {name: tmp_path / name for name in parts}


def _same_values(ours: svm.Vcpu, theirs: svm.Vcpu) -> None:
    a, b = from_vcpu(ours), from_vcpu(theirs)
    assert dict(a.sregs.items()) == dict(b.sregs.items())
    assert a.nested.uapi() == b.nested.uapi()
    for name in ("regs", "msrs", "debugregs", "smm", "mp_state"):
        assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("name", NESTED)
def test_a_document_of_inspect_is_the_stream_again(name: str, tmp_path: Path) -> None:
    document = tmp_path / "inspect.json"
    with svm.open(STREAMS / name) as dump:
        document.write_text(json.dumps(dump.inspect().to_json()))
        with svm.open(document) as again:
            assert [vcpu.index for vcpu in again.vcpus] == [vcpu.index for vcpu in dump.vcpus]
            for ours, theirs in zip(again.vcpus, dump.vcpus, strict=True):
                _same_values(ours, theirs)
            assert svm.diff(dump, again).same
            verdicts = [one.simulate(kernel="6.1").verdict for one in (dump, again)]
            assert verdicts[0] is verdicts[1]


def test_a_folder_of_cloud_hypervisor_is_the_stream_again(dump: svm.Dump, folder: Path) -> None:
    with svm.open(folder) as found:
        report = svm.diff(dump, found)
        paths = [one.path for one in report.comparison.counting]
        assert paths == ["vcpu0.registers.mxcsr"]  # the fixture's XSAVE has none
        for world in ("l1p", "l1v", "l2p", "l2v"):
            address = dump.vcpus[0].registers.rip & ~0xFFF
            ours = dump.memory.world(world).read(address, 0x1000)
            assert found.memory.world(world).read(address, 0x1000) == ours
        assert found.simulate(kernel="6.12").plan == "cloud-hypervisor"
        judged = [one.check("6.12").verdicts[0] for one in (dump, found)]
        assert [one.verdict for one in judged[0].values()] == ["right"] * len(judged[0])
        assert [one.verdict for one in judged[1].values()] == ["right"] * len(judged[1])


def test_without_nested_state_a_warning_says_what_is_lost(dump: svm.Dump, tmp_path: Path) -> None:
    lost = snapshots.write_cloud_hypervisor(tmp_path / "old", dump, nested_state=None)
    with svm.open(lost) as found:
        assert found.vcpus[0].nested is None
        rules = {one.rule for one in found.check("6.1").findings}
    assert "X-12" in rules


def test_a_raw_nested_state_alone_is_judged_without_a_run(files: dict[str, Path]) -> None:
    with svm.open(files["NESTED_STATE"]) as found:
        assert found.vcpus[0].guest_mode
        assert found["vcpu0.nested.control.asid"].offset == 128 + 0x58  # the file's own
        report = found.simulate(kernel=["5.10", "6.1", "7.2"])
        assert report.plan == "cpuid,sregs:l1,nested"
        assert report.verdict == "open"
        with pytest.raises(PlanError, match=r"--regs FILE"):
            found.simulate("cpuid,sregs:l1,nested,regs,run")
        with pytest.raises(PlanError, match=r"cannot be judged.*--sregs FILE"):
            found.simulate("cpuid,sregs:l1,nested,run")


def test_what_a_check_of_the_nested_state_refuses_is_refused(
    files: dict[str, Path], parts: dict[str, bytes]
) -> None:
    damaged = bytearray(parts["NESTED_STATE"])
    damaged[128 + 0x58 : 128 + 0x5C] = bytes(4)  # ASID 0
    files["NESTED_STATE"].write_bytes(damaged)
    with svm.open(files["NESTED_STATE"]) as found:
        report = found.simulate(kernel="6.1")
        assert report.verdict == "refused"
        assert report.simulations[0].results[-1].failed == "C-02"


def test_structures_beside_a_raw_nested_state_make_it_whole(
    dump: svm.Dump, files: dict[str, Path]
) -> None:
    beside = {
        option: files[name]
        for option, name in (
            *(("sregs", "SREGS"), ("regs", "REGS"), ("msrs", "MSRS"), ("events", "VCPU_EVENTS")),
            *(("debugregs", "DEBUGREGS"), ("mp-state", "MP_STATE")),
        )
    }
    with svm.open(files["NESTED_STATE"], beside=beside) as found:
        assert svm.diff(dump, found).same
        assert found.simulate(kernel="6.12").verdict == "right"
    with pytest.raises(SourceError, match=r"144 bytes"):
        svm.open(files["NESTED_STATE"], beside={"sregs": files["REGS"]})
    with pytest.raises(SourceError, match=r"--regs does not belong"):
        svm.open(STREAMS / NESTED[0], beside={"regs": files["REGS"]})


def test_a_header_alone_and_a_large_buffer(files: dict[str, Path], parts: dict[str, bytes]) -> None:
    path = files["NESTED_STATE"]
    path.write_bytes(parts["NESTED_STATE"][:128])
    with svm.open(path) as found:
        assert "X-04" in {one.rule for one in found.problems}
        assert not found.check("6.1").verdicts
    path.write_bytes(parts["NESTED_STATE"].ljust(128 + 2 * 4096, b"\0"))
    with svm.open(path) as found:
        assert found.machine.stream.source.size() == 4224
    # A vCPU outside guest mode: what the buffer has beyond the header is nothing.
    header = layouts.NESTED_STATE.pack({"flags": 0x100, "format": 1, "size": 128})
    path.write_bytes(header.ljust(128 + 2 * 4096, b"\0"))
    with svm.open(path) as found:
        assert found.simulate(kernel="6.1").simulations[0].results[-1].errno is None


@pytest.mark.parametrize("version", ["4.0.0", "6.0.0", "8.0.0"])
def test_a_snapshot_of_firecracker(
    dump: svm.Dump, parts: dict[str, bytes], files: dict[str, Path], tmp_path: Path, version: str
) -> None:
    state, memory = tmp_path / "vm.state", tmp_path / "vm.mem"
    content = snapshots.main_memory(dump)
    half = len(content) // 2
    regions = [(0, half), (1 << 32, len(content) - half)]  # the second one past the hole
    state.write_bytes(snapshots.firecracker_state(parts, version, regions, vcpus=2))
    memory.write_bytes(content)
    with svm.open(state, memory=memory) as found:
        assert [vcpu.index for vcpu in found.vcpus] == [0, 1]
        assert not [one for one in svm.diff(dump, found).comparison.counting if one.a and one.b]
        assert found.memory.read(0, half) == content[:half]
        assert found.memory.read((1 << 32) + 0x1000, 0x1000) == content[half + 0x1000 :][:0x1000]
        assert "X-12" in {one.rule for one in found.check("6.1").findings}
    with svm.open(state, beside={"nested": files["NESTED_STATE"]}) as found:
        assert found.simulate(kernel="6.1").verdict == "wrong"  # in Firecracker's own order
        assert found.simulate("cpuid,sregs,nested,regs,run", kernel="6.1").verdict == "right"
    text = state.read_bytes()
    for at in range(0, len(text), 1009):
        (tmp_path / "cut").write_bytes(text[:at])
        try:
            svm.open(tmp_path / "cut", memory=memory).close()
        except SvmStreamError:
            continue
    with pytest.raises(SourceError, match="--memory does not belong"):
        svm.open(files["NESTED_STATE"], memory=memory)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_snapshot_of_firecracker_in_columns(
    dump: svm.Dump, parts: dict[str, bytes], files: dict[str, Path], tmp_path: Path, count: int
) -> None:
    # Since v1.15 every member of all vCPUs is a column.
    every = []
    for number in range(count):
        regs = layouts.REGS.unpack(parts["REGS"]) | {"r15": number}
        every.append({**filled(parts), "REGS": layouts.REGS.pack(regs)})
    state = tmp_path / "vm.state"
    state.write_bytes(snapshots.firecracker_columns(every))
    with svm.open(state) as found:
        assert found.machine.form == "firecracker"
        assert [vcpu.registers.r15 for vcpu in found.vcpus] == list(range(count))
        assert found.vcpus[-1].parts == frozenset(filled(parts)) - {"NESTED_STATE"}
        assert not [one for one in svm.diff(dump, found).comparison.counting if one.a and one.b
                    and "r15" not in one.path]  # fmt: skip
        assert "X-12" in {one.rule for one in found.check("6.1").findings}
    with svm.open(state, beside={"nested": files["NESTED_STATE"]}) as found:
        assert found.simulate(kernel="6.1").verdict == "wrong"
    with pytest.raises(SourceError, match="where its memory belongs is not read"):
        svm.open(state, memory=state)
    text = state.read_bytes()
    for at in range(0, len(text), 1009):
        (tmp_path / "cut").write_bytes(text[:at])
        with suppress(SvmStreamError):
            svm.open(tmp_path / "cut").close()


def test_columns_as_bitcode_writes_them() -> None:
    # The beginning of what bitcode 0.6.9 makes of a structure with a list of 20 entries.
    head = bytes.fromhex("0000006486841910070631312e302e300680000108001400000000000000")
    assert head[1:9] == (0x0710_1984_8664_0000).to_bytes(8, "little")
    columns = Columns(head, 0)
    assert columns.integers(1, 8) == (0x0710_1984_8664_0000,)
    assert columns.lengths(1) == [6]
    columns = Columns(head, 16)
    assert columns.integers(1, 8) == (128,)
    assert columns.octets(1) == b"\0"
    assert columns.lengths(1) == [1]
    assert columns.blobs(1, 8) == [(20).to_bytes(8, "little")]
    for values in (
        [7] * 9,
        [0, 1, 1, 0],
        [2, 0, 0, 0, 0, 0, 1, 2],
        list(range(40, 52)),
        [3, 200, 9],
    ):
        data = snapshots.packed(bytes(values))
        assert Columns(data, 0).octets(len(values)) == bytes(values)
    for length in (4, 20, 312):
        for count in (1, 2, 3, 5, 6, 17):
            made = equal_lengths(length, count)
            assert made == snapshots.lengths([length] * count)
            assert Columns(made, 0).lengths(count) == [length] * count
    for bad in (b"", b"\x0c\0\0\0", b"\x02\0"):
        with pytest.raises(ColumnError):
            Columns(bad, 0).octets(9)


def test_the_state_of_a_selftest(dump: svm.Dump, parts: dict[str, bytes], tmp_path: Path) -> None:
    state = bytearray(17440)
    for name, offset in (
        *(("VCPU_EVENTS", 8), ("MP_STATE", 72), ("REGS", 80), ("SREGS", 616)),
        *(("DEBUGREGS", 928), ("NESTED_STATE", 1056)),
    ):
        state[offset : offset + len(parts[name])] = parts[name]
    path = tmp_path / "state.bin"
    path.write_bytes(bytes(state) + parts["MSRS"])
    with svm.open(path) as found:
        assert found.machine.form == "selftest-state"
        assert svm.diff(dump, found).same


def test_a_snapshot_with_a_link_out_of_its_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "state.json").write_bytes((folder / "state.json").read_bytes())
    (linked / "memory-ranges").symlink_to(folder / "memory-ranges")
    with pytest.raises(SourceError, match=r"symbolic link"):
        svm.open(linked)
    (linked / "state.json").unlink()
    (linked / "state.json").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match=r"symbolic link"):
        svm.open(linked)


def test_memory_that_is_cut_is_damage(folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "state.json").write_bytes((folder / "state.json").read_bytes())
    (cut / "memory-ranges").write_bytes(b"\0" * 0x5000)
    with svm.open(cut) as found:
        assert not found.complete
        assert "memory-ranges is shorter" in str(found.damage[0])
        assert found.vcpus[0].guest_mode


HOSTILE = (
    *(b"", b"{", b"[" * 100_000, b'{"snapshots": 7}', b'{"snapshots": {"cpu-manager": []}}'),
    b'{"snapshots": {"cpu-manager": {"snapshots": {"0": {"snapshot_data": {"state": "[1"}}}}}}',
    b'{"snapshots": {"cpu-manager": {"snapshots": {"x": {"snapshot_data": {"state": "{}"}}}}}}',
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_state_that_is_none_is_an_error(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(text)
    with pytest.raises(SourceError):
        svm.open(tmp_path)


@pytest.mark.parametrize(
    "ranges",
    [
        [{"gpa": 0, "length": 1 << 62}],
        [{"gpa": -4096, "length": 4096}],
        [{"gpa": 0, "length": 4095}],
        [{"gpa": 0, "length": 8192}, {"gpa": 4096, "length": 4096}],
        [{"gpa": 0, "length": 4096}] * 5000,
        [{"gpa": "0", "length": []}],
    ],
)
def test_memory_ranges_that_are_none(
    ranges: list[dict[str, Any]], parts: dict[str, bytes], tmp_path: Path
) -> None:
    vcpu = snapshots.cloud_hypervisor_vcpu(parts)
    tree = snapshots.cloud_hypervisor_tree({"0": vcpu}, ranges)
    (tmp_path / "state.json").write_text(json.dumps(tree))
    (tmp_path / "memory-ranges").write_bytes(bytes(4096))
    with pytest.raises(SvmStreamError):
        svm.open(tmp_path)


def test_damaged_snapshots_and_documents_end_in_our_errors(
    dump: svm.Dump, folder: Path, tmp_path: Path
) -> None:
    # Whatever is damaged: our errors or a result, never another exception.
    random_ = random.Random(1)
    document = json.dumps(dump.inspect().to_json()).encode()
    state = (folder / "state.json").read_bytes()
    broken = tmp_path / "broken"
    broken.mkdir()
    for round_ in range(60):
        text = bytearray(document if round_ % 2 else state)
        for _ in range(random_.randrange(1, 4)):
            at = random_.randrange(len(text))
            text[at : at + random_.randrange(3)] = random_.choice(
                (b"", b"9", b'"', b"[", b"-", b"}")
            )
        path = tmp_path / "inspect.json" if round_ % 2 else broken
        (path if round_ % 2 else broken / "state.json").write_bytes(text)
        try:
            with svm.open(path) as found:
                found.check("6.1")
                found.inspect().to_json()
        except SvmStreamError:
            continue


def test_limits(folder: Path) -> None:
    for limit in ("snapshot_bytes=100", "description_items=2"):
        with pytest.raises(LimitExceeded, match=limit.partition("=")[0]):
            svm.open(folder, limits=changed(DEFAULT, [limit]))


def test_the_verbs(folder: Path, files: dict[str, Path], command: Run) -> None:
    shown = command("inspect", folder).stdout
    assert b"Cloud Hypervisor snapshot, complete" in shown
    assert b"vCPU 0 in L2" in shown
    document = json.loads(command("inspect", "--json", files["NESTED_STATE"]).stdout)
    assert document["form"] == "nested-state"
    assert document["vcpus"][0]["parts"] == ["NESTED_STATE"]
    raw = files["NESTED_STATE"]
    judged = command("check", raw, "--sregs", files["SREGS"], "--kernel", "6.1").stdout
    assert b"accepted, without a run, by" in judged
    assert b"--regs FILE" in judged
    assert b"value        0x1" in command("show", raw, "@0xd8").stdout
    assert b"1 difference" in command("diff", folder, CAPTURE).stdout
    refused = command("mem", "read", raw, "l1p:0")
    assert refused.returncode == 3
    assert b"has no guest memory" in refused.stderr
    assert command("mem", "read", folder, "l2v:rip", "-n", "16").returncode == 0
    wrong = command("check", raw, "--regs", files["SREGS"])
    assert wrong.returncode == 3
    assert b"expected 144 bytes (KVM_GET_REGS)" in wrong.stderr
