"""The plugin in a real QEMU whose processor runs the lab's L1 directly: no box needed.

L1 is then what executes VMRUN for real, so every entry is of its one VMCB.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from qemu_svm.errors import QmpError
from qemu_svm.lab import svmtrace
from qemu_svm.lab.box.emulator import program
from qemu_svm.lab.guests import assemble, find, values
from qemu_svm.lab.suites import build, cache
from qemu_svm.lab.suites import catalogue as suites
from qemu_svm.model.area import RESET
from qemu_svm.model.saved import areas
from qemu_svm.nested.exit_codes import EXIT_CODES
from qemu_svm.qmp import sync
from qemu_svm.source import open_source
from qemu_svm.vmruns.log import Log, read_log
from qemu_svm.vmruns.runs import Run
from qemu_svm.vmruns.structs import Flag, RecordKind

CPUID = next(code for code, name in EXIT_CODES.items() if name == "CPUID")
VMCB = values.ADDRESSES["VMCB12"]
L2 = values.l2(values.Mode.LONG, nested_paging=False)


@pytest.fixture(scope="session", params=svmtrace.EMULATORS)
def emulator(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Command of a QEMU out of the cache; the stable one is fetched if need be."""
    suite = suites.of_qemu(request.param)
    if request.param != svmtrace.EMULATORS[0] and cache.find(suite) is None:
        pytest.skip(f"QEMU {request.param} is not in the cache: svmstream lab build fetches it")
    with build.using(suite) as built:
        yield program(built)


@contextmanager
def running(
    command: Sequence[str], folder: Path, plugin: Path, *, preload: str | None = None
) -> Iterator[sync.Connection]:
    """L1 on an emulated processor, stopped before its first instruction."""
    image, disk, socket = (folder / name for name in ("l1", "disk", "qmp"))
    image.write_bytes(assemble(find("nested")).data)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    start = list(command)
    if preload:
        # An option of the suite's loader, so right behind its name.
        loader = next(at for at, word in enumerate(start) if "/ld-linux" in word)
        start[loader + 1 : loader + 1] = ["--preload", preload]
    with subprocess.Popen(
        [*start, "-accel", "tcg", "-cpu", "EPYC,+svm", "-m", "64", "-nodefaults"]
        + [
            "-display",
            "none",
            "-kernel",
            str(image),
            "-S",
            "-qmp",
            f"unix:{socket},server,wait=off",
        ]
        + ["-drive", f"if=none,id=snapshots,file={disk}"]
        + ["-plugin", f"{plugin},out={folder}/log"],
        stderr=(folder / "stderr").open("wb"),
        env={"ASAN_OPTIONS": "detect_leaks=0", "PATH": "/usr/bin:/bin"},
    ) as process:
        try:
            with connected(socket, process) as qmp:
                yield qmp
                qmp.execute("quit")
            process.wait(30)
        finally:
            process.kill()
    said = (folder / "stderr").read_text()
    assert "Sanitizer" not in said, said


def connected(socket: Path, process: subprocess.Popen[bytes]) -> sync.Connection:
    while True:
        try:
            return sync.connect(f"unix:{socket}")
        except QmpError:
            assert process.poll() is None
            time.sleep(0.05)


def monitor(qmp: sync.Connection, line: str) -> str:
    return str(qmp.execute("human-monitor-command", {"command-line": line}))


def log_of(folder: Path) -> Log:
    return read_log(open_source(str(folder / "log")))


def wait_for(folder: Path, exits: int) -> None:
    """Until the guest had so many exits; as slow as the machine is."""
    end = time.monotonic() + 60
    while log_of(folder).counts.get(RecordKind.EXIT, 0) < exits:
        assert time.monotonic() < end
        time.sleep(0.1)


def runs_of(log: Log) -> list[Run]:
    return [known.run for known in log.runs()]


def test_every_entry_carries_what_l1_wrote(emulator: list[str], tmp_path: Path) -> None:
    with running(emulator, tmp_path, svmtrace.plugin()) as qmp:
        qmp.execute("cont")
        wait_for(tmp_path, 20)
    log = log_of(tmp_path)
    assert log.damage is None
    assert log.end == "the emulator ended"
    runs = runs_of(log)
    assert {run.address for run in runs} == {VMCB}
    assert {run.exit_code for run in runs[:-1]} == {CPUID}
    assert not any(run.entry.flags & (Flag.UNPAIRED | Flag.UNREADABLE) for run in runs)
    page = runs[0].entry.page
    assert page is not None
    _, save = areas(page, RESET)
    for name in ("cr0", "cr3", "cr4", "efer", "rsp", "rax"):
        assert save.get(name) == L2[name], name
    for name in ("cs", "ss", "ds", "es"):
        segment = save.segment(name)
        wanted = [L2[f"{name}.{part}"] for part in ("selector", "base", "limit", "attrib")]
        assert [segment.selector, segment.base, segment.limit, segment.attrib] == wanted
    assert log.counts[RecordKind.VMLOAD] >= len(runs)


def test_a_snapshot_replaces_the_machine_and_the_log_goes_on(
    emulator: list[str], tmp_path: Path
) -> None:
    """Out of a guest back to before L1 began: the exit of that entry never comes."""
    with running(emulator, tmp_path, svmtrace.plugin()) as qmp:
        assert monitor(qmp, "savevm start") == ""
        qmp.execute("cont")
        wait_for(tmp_path, 5)
        assert monitor(qmp, "loadvm start") == ""
        before = log_of(tmp_path).counts[RecordKind.EXIT]
        qmp.execute("cont")
        wait_for(tmp_path, before + 5)
    runs = runs_of(log_of(tmp_path))
    lost = [run for run in runs[:-1] if run.exit is None]
    told = [run for run in runs if Flag.UNPAIRED in run.entry.flags]
    # L1 runs in L2 nearly always; if not just then, nothing was lost.
    assert len(lost) == len(told) <= 1
    assert not any(run.entry.in_guest for run in runs)
    starts = [run for run in runs if run.entry.page == runs[0].entry.page]
    assert len(starts) == 2


def test_under_the_address_sanitizer(emulator: list[str], tmp_path: Path) -> None:
    plugin = tmp_path / "asan.so"
    subprocess.run(
        ["make", "-s", "-C", svmtrace.SOURCE, f"OUT={plugin}", "SANITIZE=address", "CFLAGS=-O1 -g"],
        check=True,
        timeout=120,
    )
    found = subprocess.run(
        [shutil.which("gcc") or "gcc", "-print-file-name=libasan.so"],
        capture_output=True,
        text=True,
        check=True,
    )
    library = str(Path(found.stdout.strip()).resolve())
    with running(emulator, tmp_path, plugin, preload=library) as qmp:
        qmp.execute("cont")
        wait_for(tmp_path, 20)
    assert log_of(tmp_path).damage is None
