"""The plugin, built as its Makefile builds it, in an emulator made for it.

The emulator (``emulator.c``) has the plugin interface and nothing else: it performs
the instructions that a test asks for, so that every order of events can be had.
The plugin in a real QEMU is tested with the box.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from qemu_svm.source import open_source
from qemu_svm.vmruns.log import Log, read_log
from qemu_svm.vmruns.reader import Event, LogReader
from qemu_svm.vmruns.structs import Flag, RecordKind
from tests.conftest import ROOT
from tests.vmruns.written import PAGE, vmcb

SOURCE = ROOT / "plugins" / "svmtrace"
HERE = Path(__file__).parent
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]

# Where code lies in the emulator's memory; both kernels stand at the same address.
VMRUN, BEHIND = "0f01d8", "90"
L0, L1 = 0x70000, 0x80000
VADDR = 0xFFFF_FFFF_C000_00AD
A, B = 0x100000, 0x101000
VMCB12_GPA, VMCB12 = 0x108000, 0x308000


def build(folder: Path, api: int, sanitize: str = "") -> Path:
    flags = "-O1 -g -Werror"
    command = ["make", "-s", "-C", SOURCE, f"OUT={folder}/svmtrace.so", f"CFLAGS={flags}"]
    subprocess.run([*command, f"SANITIZE={sanitize}"], check=True, timeout=120)
    extra = [f"-fsanitize={sanitize}"] if sanitize else []
    subprocess.run(
        ["gcc", *WARNINGS, "-O1", f"-DAPI={api}", *extra, "-rdynamic", "-pthread"]
        + [HERE / "emulator.c", "-o", folder / "emulator", "-ldl"],
        check=True,
        timeout=120,
    )
    return folder


@pytest.fixture(scope="session", params=[4, 5, 7], ids=lambda api: f"API {api}")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plugin and emulator, under the address sanitizer."""
    return build(tmp_path_factory.mktemp("svmtrace"), request.param, "address")


def run(built: Path, script: Iterable[str], *options: str, **env: str) -> tuple[int, str, Path]:
    log = built / "log"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        [built / "emulator", built / "svmtrace.so", *(options or [f"out={log}"])],
        input="".join(f"{line}\n" for line in script),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={"ASAN_OPTIONS": "detect_leaks=0", **env},
    )
    assert "Sanitizer" not in done.stderr, done.stderr
    return done.returncode, done.stderr, log


def recorded(built: Path, script: Iterable[str], *options: str) -> list[Event]:
    status, errors, log = run(built, [*HOST_TABLES, *script], *options)
    assert (status, errors) == (0, "")
    with open_source(str(log)) as source:
        return list(LogReader(source))


def judged(built: Path, script: Iterable[str]) -> Log:
    status, errors, log = run(built, [*HOST_TABLES, *script])
    assert (status, errors) == (0, "")
    source = open_source(str(log))
    return read_log(source)


def write(address: int, data: bytes) -> str:
    return f"write {address:x} {data.hex()}"


def table(address: int, entries: dict[int, int]) -> list[str]:
    return [write(address + 8 * at, to_bytes(entry)) for at, entry in entries.items()]


def to_bytes(number: int) -> bytes:
    return number.to_bytes(8, "little")


# The host's page tables: all memory at a base that no kernel without KASLR has.
BASE = 0xFFFF_9C6A_4000_0000
HOST_TABLES = [
    *table(0x200000, {BASE >> 39 & 511: 0x201003}),
    *table(0x201000, {BASE >> 30 & 511: 0x202003}),
    *table(0x202000, {BASE >> 21 & 511: 0x000083}),
    *table(0x202000, {(BASE >> 21 & 511) + 1: 0x200083}),
    "cr3 200000",
]
# L1's memory, as L0's nested tables map it: one page of 2 MiB, moved by 2 MiB.
NESTED_CR3 = 0x210000
NESTED_TABLES = [
    *table(0x210000, {0: 0x211007}),
    *table(0x211000, {0: 0x212007}),
    *table(0x212000, {0: 0x200087}),
]


def entered(code: int, cpu: int, address: int) -> str:
    return f"run {cpu} {VADDR:x} {code:x} {VMRUN} {address:x}"


def behind(code: int, cpu: int, address: int) -> str:
    return f"run {cpu} {VADDR + 3:x} {code + 3:x} {BEHIND} {address:x}"


def paged(page: bytes, *, npt: bool = True) -> bytes:
    data = bytearray(page)
    data[0x90:0x98] = to_bytes(int(npt))
    data[0xB0:0xB8] = to_bytes(NESTED_CR3)
    return bytes(data)


def test_an_entry_and_its_exit(built: Path) -> None:
    before, after = vmcb(0, rip=0x1111), vmcb(0x72, rip=0x2222)
    script = [write(A, before), entered(L0, 0, A), write(A, after), behind(L0, 0, A)]
    entry, left, end = recorded(built, script)
    assert (entry.kind, entry.rip, entry.rax, entry.page) == (RecordKind.VMRUN, VADDR, A, before)
    assert (left.kind, left.rip, left.rax, left.page) == (RecordKind.EXIT, VADDR + 3, A, after)
    assert left.entry == entry.number
    assert Flag.DELTA in left.flags
    assert left.time >= entry.time
    assert (end.kind, end.rax) == (RecordKind.END, 1)


def test_only_what_changed_is_written(built: Path) -> None:
    script = [write(A, vmcb(0, rip=1))]
    for _ in range(4):
        script += [entered(L0, 0, A), behind(L0, 0, A)]
    events = recorded(built, script)
    sizes = [two.offset - one.offset for one, two in pairwise(events)]
    assert sizes[0] > PAGE
    assert max(sizes[1:]) < 80


def nested(npt: bool = True) -> list[str]:
    """L0 runs L1, L1 executes VMRUN, L0 runs L2, and L1 gets its exit."""
    l1, l2 = {"rip": VADDR, "rsp": 0x1000, "rax": VMCB12_GPA}, {"rip": 0x222, "rsp": 2, "rax": 3}
    back = l1 | {"rip": VADDR + 3}
    return [
        *NESTED_TABLES,
        write(A, paged(vmcb(0, **l1), npt=npt)),
        write(VMCB12, vmcb(0x72, **l2)),
        entered(L0, 0, A),
        entered(L1, 0, VMCB12_GPA),
        write(A, paged(vmcb(0x80, **l1), npt=npt)),
        behind(L0, 0, A),
        write(B, vmcb(0, **l2)),
        entered(L0, 0, B),
        write(B, vmcb(0x72, **l2)),
        behind(L0, 0, B),
        write(A, paged(vmcb(0x80, **back), npt=npt)),
        entered(L0, 0, A),
        behind(L1, 0, VMCB12_GPA),
        write(A, paged(vmcb(0x400, **back), npt=npt)),
        behind(L0, 0, A),
    ]


def test_levels_are_told_apart_at_the_same_address(built: Path) -> None:
    events = recorded(built, nested())
    guests = [event for event in events if event.in_guest]
    assert [event.kind for event in guests] == [RecordKind.VMRUN, RecordKind.VMCB12]
    assert guests[0].page is None
    assert guests[1].address == VMCB12
    assert guests[1].page == vmcb(0x72, rip=0x222, rsp=2, rax=3)
    assert [event.kind for event in events if not event.in_guest] == [
        *[RecordKind.VMRUN, RecordKind.EXIT] * 3,
        RecordKind.END,
    ]
    assert not any(event.flags & Flag.UNPAIRED for event in events)


@pytest.mark.parametrize("npt", [True, False])
def test_roles_follow(built: Path, *, npt: bool) -> None:
    log = judged(built, nested(npt))
    names = {vmcb.address: vmcb.role.name for vmcb in log.vmcbs}
    assert names == {A: "L1", B: "L2"}
    certainties = {known.certainty.name for known in log.runs()}
    assert certainties == {"PROVED" if npt else "INFERRED"}


def test_state_that_was_replaced_is_noticed(built: Path) -> None:
    """As loadvm does: into a guest while L0 ran, and out of one."""
    script = [
        write(A, vmcb()),
        *[entered(L0, 0, A), behind(L0, 0, A)],
        *[behind(L0, 0, A)],
        *[entered(L0, 0, A), entered(L0, 0, A), behind(L0, 0, A)],
    ]
    events = recorded(built, script)
    unpaired = [(event.kind, Flag.UNPAIRED in event.flags) for event in events[:-1]]
    assert unpaired == [
        *[(RecordKind.VMRUN, False), (RecordKind.EXIT, False)],
        (RecordKind.EXIT, True),
        *[(RecordKind.VMRUN, False), (RecordKind.VMRUN, True), (RecordKind.EXIT, False)],
    ]
    assert not any(event.in_guest for event in events)


def test_started_inside_a_guest(built: Path) -> None:
    """With -loadvm the first VMRUN may be a guest's; the next exit puts it right."""
    script = [
        *[write(A, vmcb()), entered(L1, 0, VMCB12_GPA)],
        *[entered(L0, 0, A), behind(L0, 0, A), entered(L0, 0, A), behind(L0, 0, A)],
    ]
    events = recorded(built, script)
    last = events[-3:-1]
    assert [(event.kind, event.in_guest) for event in last] == [
        (RecordKind.VMRUN, False),
        (RecordKind.EXIT, False),
    ]
    assert last[1].entry == last[0].number


def test_other_instructions(built: Path) -> None:
    script = [
        f"run 1 {0x1000 + 16 * n:x} {0x1000 + 16 * n:x} 0f01{0xD9 + n:x} 77" for n in range(7)
    ]
    script += ["run 1 2000 2000 0f01d0 1", "run 1 2010 2010 0f01f8 1", "run 1 2020 2020 90 1"]
    events = recorded(built, script)
    assert [event.kind for event in events[:-1]] == list(range(0xD9, 0xE0))
    assert {(event.vcpu, event.rax) for event in events[:-1]} == {(1, 0x77)}


def test_only(built: Path) -> None:
    script = ["run 0 1000 1000 0f01dc 0", "run 0 1010 1010 0f01dd 0", entered(L0, 0, A)]
    events = recorded(built, script, f"out={built / 'log'}", "only=clgi:vmmcall")
    assert [event.kind for event in events] == [RecordKind.CLGI, RecordKind.END]


def test_the_limit_ends_the_log(built: Path) -> None:
    script = ["run 0 1000 1000 0f01dc 0"] * 100
    events = recorded(built, script, f"out={built / 'log'}", "limit=1k")
    assert (events[-1].kind, events[-1].rax) == (RecordKind.END, 2)
    assert 1024 <= events[-1].offset < 1200


def test_a_vmcb_that_is_not_there(built: Path) -> None:
    script = [entered(L0, 0, 0x7FFF_F000), behind(L0, 0, 0x7FFF_F000)]
    status, errors, log = run(built, [*HOST_TABLES, *script])
    assert status == 0
    assert errors.startswith("svmtrace: the VMCB at 0x7ffff000 cannot be read")
    assert len(errors.splitlines()) == 1
    with open_source(str(log)) as source:
        (entry, left, _) = LogReader(source)
    assert Flag.UNREADABLE in entry.flags & left.flags
    assert entry.page is None


def test_many_processors_at_once(built: Path) -> None:
    status, errors, log = run(built, [*HOST_TABLES, "threads 8 300"])
    assert (status, errors) == (0, "")
    with open_source(str(log)) as source:
        read = read_log(source)
        assert read.damage is None
        assert read.counts == {RecordKind.VMRUN: 2400, RecordKind.EXIT: 2400, RecordKind.END: 1}
        seen: dict[int, int] = {}
        for known in read.runs():
            entry = known.run.entry
            assert entry.page is not None
            assert int.from_bytes(entry.page[0x578:0x580], "little") == seen.get(entry.vcpu, 0)
            assert known.run.exit is not None
            seen[entry.vcpu] = seen.get(entry.vcpu, 0) + 1
        assert set(seen.values()) == {300}


def test_threads_do_not_race(tmp_path: Path) -> None:
    built = build(tmp_path, 7, "thread")
    status, errors, _ = run(built, [*HOST_TABLES, "threads 4 200"])
    assert (status, errors) == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "out=FILE is required"),
        (("out=/nonexistent/log",), "/nonexistent/log: No such file or directory"),
        (("out=x", "only=vmrun:vmfunc"), "only= accepts vmrun"),
        (("out=x", "limit=lots"), "limit= accepts a size"),
        (("out=x", "colour=on"), "unknown option colour=on"),
    ],
)
def test_wrong_options(built: Path, options: tuple[str, ...], message: str) -> None:
    status, errors, _ = run(built, [], *(options or ("out=",)))
    assert status == 1
    assert message in errors


def test_another_machine(built: Path) -> None:
    status, errors, _ = run(built, [], f"out={built / 'log'}", TARGET="aarch64")
    assert status == 1
    assert "requires qemu-system-x86_64" in errors


def test_the_systems_emulator_takes_it_or_says_why_not(tmp_path: Path) -> None:
    build(tmp_path, 7)
    qemu = "qemu-system-x86_64"
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True)
    major, minor = (int(part) for part in said.stdout.split("version ")[1].split(".")[:2])
    done = subprocess.run(
        [qemu, "-M", "none", "-accel", "tcg", "-display", "none", "-S", "-qmp", "stdio"]
        + ["-plugin", f"{tmp_path}/svmtrace.so,out={tmp_path}/log"],
        input='{"execute": "qmp_capabilities"} {"execute": "quit"}',
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if (major, minor) < (9, 2):
        assert done.returncode == 1
        assert "plugin requires API version 4, but this QEMU supports only up to" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        with open_source(str(tmp_path / "log")) as source:
            assert LogReader(source).header.api >= 4
