"""What only newer QEMUs have, with Debian 13's, out of the lab's cache."""

from __future__ import annotations

import gzip
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu_svm.errors import StreamRefused
from qemu_svm.machine import read_machine
from qemu_svm.qmp import sync
from qemu_svm.qmp.features import CaptureOptions
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS, Run
from tests.qmp.test_capture import LIMIT, Process, counters, settings, take
from tests.qmp.vm import Vm, running


@pytest.fixture(scope="module")
def newer(qemu_10_0: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    with running(tmp_path_factory.mktemp("newer"), command=qemu_10_0) as vm:
        yield vm


@pytest.fixture
def binary(qemu_10_0: tuple[str, ...], tmp_path: Path) -> Path:
    """The same as one program."""
    path = tmp_path / "qemu-10.0"
    words = " ".join(f"'{word}'" for word in qemu_10_0)
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)
    return path


KINDS = {
    "live": CaptureOptions(),
    "mapped-ram": CaptureOptions(mapped_ram=True),
    "mapped-ram-multifd": CaptureOptions(mapped_ram=True, multifd=3),
    "multifd-zstd": CaptureOptions(multifd=2, compression="zstd"),
    "background-snapshot": CaptureOptions(background_snapshot=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: str, newer: Vm, binary: Path, tmp_path: Path, svmstream: Run) -> None:
    before = settings(newer)
    done = take(newer, tmp_path / "dump.bin", KINDS[kind])
    assert settings(newer) == before
    assert done.before == done.after
    assert min(counters(done)) > 0
    words = [word for name in done.files[1:] for word in ("--channel", name)]
    back = svmstream(
        "restore", "--check", done.files[0], *words, "--qemu", binary, "--", *newer.arguments
    )
    assert (back.returncode, back.stderr) == (0, b"")


def test_a_stopped_guest_stays_exactly_as_it_was(
    newer: Vm, binary: Path, tmp_path: Path, svmstream: Run
) -> None:
    with sync.connect(newer.address) as qmp:
        qmp.execute("stop")
    try:
        before = settings(newer)
        assert before[2].state == "paused"
        first = take(newer, tmp_path / "one")
        assert settings(newer) == before
        assert first.before == first.after
        assert first.migration.status == "completed"
        second = take(newer, tmp_path / "two")
        assert settings(newer) == before
    finally:
        with sync.connect(newer.address) as qmp:
            qmp.execute("cont")
    assert counters(first) == counters(second)
    with open_source(first.files[0]) as source:
        names = [record.name for record in read_stream(source).records]
    assert not {"OPEN_RETURN_PATH", "PING"} & set(names)
    done = svmstream("diff", "--ram", first.files[0], second.files[0])
    assert done.returncode == 0, done.stdout
    # From a pipe, which has no way back.
    words = ["--qemu", binary, "--", *newer.arguments]
    back = svmstream("restore", "--check", "--qemu-file", first.files[0], first.files[0], *words)
    assert (back.returncode, back.stderr) == (0, b"")


def test_a_packed_mapped_ram_stream(
    newer: Vm, binary: Path, tmp_path: Path, svmstream: Run
) -> None:
    done = take(newer, tmp_path / "dump.bin", KINDS["mapped-ram"])
    packed = tmp_path / "dump.gz"
    packed.write_bytes(gzip.compress(Path(done.files[0]).read_bytes(), 1))
    before = set(os.listdir("/var/tmp"))
    back = svmstream("restore", "--check", packed, "--qemu", binary, "--", *newer.arguments)
    assert (back.returncode, back.stderr) == (0, b"")
    assert not [name for name in set(os.listdir("/var/tmp")) - before if "svmstream" in name]


def test_it_stays_and_says_why(newer: Vm, qemu_10_0: tuple[str, ...], tmp_path: Path) -> None:
    done = take(newer, tmp_path / "dump.bin")
    with (
        running(tmp_path, "-incoming", "defer", "-m", "16", command=qemu_10_0) as waiting,
        sync.connect(waiting.address) as qmp,
    ):
        with open_source(done.files[0]) as source, pytest.raises(StreamRefused) as caught:
            qmp.restore(read_stream(source))
        assert "Invalid argument" in caught.value.reason
        assert qmp.status().state == "inmigrate"


def test_a_postcopy_stream(newer: Vm, binary: Path, svmstream: Run) -> None:
    path = STREAMS / "kinds" / "qemu10.0-postcopy.mig.zst"
    with open_source(str(path)) as source:
        assert read_machine(read_stream(source)).name == "pc-i440fx-10.0"
    words = ["--qemu", binary, "--", *newer.arguments, "-m", "16"]
    back = svmstream("restore", "--check", path, *words)
    assert (back.returncode, back.stderr) == (0, b"")


@pytest.mark.parametrize("there_before", [False, True])
def test_an_interrupt_asks_in_an_order_that_qemu_survives(
    there_before: bool, newer: Vm, tmp_path: Path
) -> None:
    # QEMU 10.0 dies if the file goes before its migration does, and if multifd threads of
    # mapped-ram are busy when they are cancelled.
    with sync.connect(newer.address) as qmp:
        old = qmp.execute("query-migrate-parameters")["max-bandwidth"]
        if there_before:  # then nothing of it has to be changed
            qmp.set_capabilities({"multifd": True})
            qmp.execute("migrate-set-parameters", {"max-bandwidth": 100 << 10})
    before = settings(newer)
    try:
        _interrupted(newer, tmp_path)
        assert settings(newer) == before
    finally:
        with sync.connect(newer.address) as qmp:
            qmp.set_capabilities({"multifd": False})
            qmp.execute("migrate-set-parameters", {"max-bandwidth": old})


def test_an_interrupt_while_a_file_is_passed(newer: Vm, tmp_path: Path) -> None:
    before = settings(newer)
    for delay in (0, 0, 0.0005, 0.001, 0.002):
        work = Process(newer, tmp_path, *LIMIT, "--mapped-ram")
        while b'"add-fd"' not in work.proxy.asked:
            assert work.process.poll() is None
        time.sleep(delay)
        work.process.send_signal(signal.SIGINT)
        status, said = work.end()
        assert (status, work.files) == (130, []), said
        assert settings(newer) == before


def _interrupted(newer: Vm, tmp_path: Path) -> None:
    work = Process(newer, tmp_path, *LIMIT, "--mapped-ram", "--multifd", "2")
    while b'"migrate"' not in work.proxy.asked:
        assert work.process.poll() is None
        time.sleep(0.0005)
    work.process.send_signal(signal.SIGINT)
    status, said = work.end()
    assert (status, work.files) == (130, []), said
    asked = re.findall(r'"execute": *"([a-z_-]+)"', work.proxy.asked.decode())
    after = asked[asked.index("migrate") + 1 :]
    words = ["migrate-set-parameters", "migrate_cancel", "migrate-set-capabilities", "remove-fd"]
    assert [word for word in words if word in after] == words
    assert sorted(words, key=after.index) == words


@pytest.mark.parametrize("paused", [False, True])
def test_signals_at_random_moments(paused: bool, newer: Vm, tmp_path: Path) -> None:
    dice = random.Random(1)
    ways = [(), ("--stop",)] if paused else [("--mapped-ram",), ("--mapped-ram", "--multifd", "2")]
    with sync.connect(newer.address) as qmp:
        qmp.execute("stop" if paused else "cont")
    before = settings(newer)
    try:
        statuses = []
        for turn in range(6):
            work = Process(newer, tmp_path, *LIMIT, *ways[turn % 2])
            time.sleep(0.3 * dice.random())
            work.process.send_signal(dice.choice([signal.SIGINT, signal.SIGTERM]))
            status, said = work.end()
            # mapped-ram over channels hardly keeps to a bandwidth: it may be done already.
            ends = {130: (1, []), 0: (0, ["dump.bin"])}
            assert (said.count("\n"), work.files) == ends.get(status), (said, newer.log.read_text())
            assert settings(newer) == before
            work.output.unlink(missing_ok=True)
            statuses.append(status)
        assert 130 in statuses
    finally:
        with sync.connect(newer.address) as qmp:
            qmp.execute("cont")


def test_disks_are_open_afterwards(qemu_10_0: tuple[str, ...], tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    disk = (
        *("-blockdev", f"file,node-name=disk,filename={image}"),
        *("-device", "virtio-blk-pci,drive=disk,share-rw=on"),
    )
    with running(tmp_path, *disk, command=qemu_10_0) as vm:
        for number, wanted in enumerate(("cont", "stop")):
            with sync.connect(vm.address) as qmp:
                qmp.execute(wanted)
                qmp.capture(str(tmp_path / f"{number}.bin"))
                line = f'qemu-io disk "write -P {number + 1} 0 512"'
                assert qmp.execute("human-monitor-command", {"command-line": line}) == ""
            assert image.read_bytes()[:2] == bytes([number + 1] * 2)
