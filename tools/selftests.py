#!/usr/bin/env python3
"""The kernel's own KVM selftests in the box, recorded; every recording is read and judged.

The source is Debian's package of the kernel's source.  For each kernel a table: how the selftest
ended, what was recorded, the verdict of ``trace``, and whether the model and a replay answer
every put as the recording has it.  A selftest that does not pass is run again without the
recorder.  Programs, recordings and results stay in a folder (build/selftests), and what is there
is not done again: an interrupted run continues.  Exit status 1 if anything is WRONG: a recording
that is damaged or incomplete, a selftest that passes and is against the rules, a difference
between recording, model and kernel, a failure that the recorder causes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import zstandard

import qemu_svm as svm
from qemu_svm.cli.signals import interrupt_on_termination
from qemu_svm.errors import LabError, PlanError, SourceError, SvmStreamError
from qemu_svm.findings.recorded import (
    Answer,
    answers_of,
    difference_words,
    first_difference,
    recorded_kernel,
)
from qemu_svm.findings.verdict import Verdict, judge_restore
from qemu_svm.kvm.numbers import Level
from qemu_svm.lab import Box
from qemu_svm.lab.kvm import InBox
from qemu_svm.lab.progress import SILENT
from qemu_svm.lab.recording import recorded
from qemu_svm.lab.suites import apt, catalogue
from qemu_svm.limits import DEFAULT
from qemu_svm.machine import Machine
from qemu_svm.model.plans import WITHOUT_EFFECT
from qemu_svm.model.recorded import IOCTLS, record_of
from qemu_svm.model.scenario import scenario
from qemu_svm.recording.recording import read_recording
from qemu_svm.recording.records import Ended, Ioctl, Lost
from qemu_svm.replay.job import ReplayJob, ReplayOptions
from qemu_svm.replay.memory import RamFile, extract_ram
from qemu_svm.replay.replay import against_model, perform, prepare
from qemu_svm.snapshots.open import every_state
from qemu_svm.source import open_source

ROOT = Path(__file__).resolve().parent.parent
SECONDS, RECORDED_SECONDS = 100, 300
"""Limits for a selftest in the emulated box, whose one processor has to record as well."""
BUFFER = 256
"""MiB for the recorder: xapic_state_test makes 100 000 ioctls of 1 KiB at full speed."""
LIMITS = replace(DEFAULT, recorded_puts=1 << 20, trace_ioctls=1 << 22)
SKIPPED, TIMED_OUT = 4, 124
"""Exit statuses: of a selftest that does not apply (tools/testing/selftests/kselftest.h), and of
timeout(1)."""
KNOWN = frozenset(f"KVM_{name}" for step, name in IOCTLS.items() if step not in WITHOUT_EFFECT)
"""The ioctls that the model answers."""
SMALLER: dict[str, list[str]] = {
    "access_tracking_perf_test": ["-b", "4M"],
    "demand_paging_test": ["-b", "4M"],
    "kvm_page_table_test": ["-b", "4M"],
    "hardware_disable_test": [],
    "dirty_log_perf_test": ["-b", "4M", "-i", "2"],
    "dirty_log_test": ["-i", "3"],
    "max_guest_memory_test": ["-c", "1", "-m", "1", "-s", "1"],
    "memslot_modification_stress_test": ["-b", "4M", "-i", "10"],
    "memslot_perf_test": ["-s", "32", "-l", "1"],
    "mmu_stress_test": ["-c", "1", "-m", "1", "-s", "1"],
}
"""Options of selftests that measure memory: an emulated host is a thousand times slower."""
ON_PURPOSE = {"svm_nested_vmcb12_gpa": {"T-03"}}
"""Rules that a selftest breaks to see what KVM does: a vmcb12 that is not in guest memory ends the
first KVM_RUN with a shutdown."""
MOST_WORDS = 240
NO_REASON = re.compile(r"^pid=|^\d+\s+0x|^\(|addr2line")
LEFT_OUT = (
    *("drivers", "sound", "fs", "net", "Documentation", "samples", "crypto"),
    "arch/[!x]*",
)
NO_SELFTEST = re.compile(r"\.|^(Makefile|config|settings)$")
COUNTED = ("calls", "vms", "vcpus", "nested", "puts", "known", "compared", "replayed")
VERSION = 4
"""Of the results: those of another version are made again."""


@dataclass
class Row:
    """One selftest.

    :param status: passes, skipped, fails, too slow, or box died.
    :param words: its own words if it does not pass.
    :param alone: how it ends without the recorder, if it does not pass.
    :param nested: puts of nested state.
    :param refused: ioctls that failed, which selftests try on purpose.
    :param known: ioctls that the model knows; ``compared`` of them are in a put that was held
        against model and kernel.
    :param replayed: ioctls that a real kernel was given again.
    :param apart: differences between recording, model and replay.
    :param wrong: why this row is not as it should be.
    """

    name: str
    status: str = ""
    words: str = ""
    alone: str = ""
    seconds: float = 0
    calls: int = 0
    lost: int = 0
    vms: int = 0
    vcpus: int = 0
    nested: int = 0
    verdict: str = ""
    violated: list[str] = field(default_factory=list)
    refused: int = 0
    puts: int = 0
    known: int = 0
    compared: int = 0
    replayed: int = 0
    apart: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    version: int = VERSION

    def line(self) -> str:
        """The row of the table, and what is to be said about it."""
        against = f"{self.compared}/{self.known}" if self.known else "-"
        text = (
            f"{self.name:34} {self.status:9} {self.calls:6} {self.vms:4} {self.vcpus:5} "
            f"{self.nested:6} {self.verdict:16} {self.puts:5} {against:>11} {self.replayed:8}"
        )
        said = [f"alone: {self.alone}"] if self.alone else []
        said += [self.words] if self.words else []
        said += [f"WRONG: {one}" for one in self.wrong]
        return "\n".join([text.rstrip(), *(f"    {one}" for one in said)])


HEAD = (
    f"{'selftest':34} {'status':9} {'calls':>6} {'VMs':>4} {'vCPUs':>5} {'nested':>6} "
    f"{'trace':16} {'puts':>5} {'model':>11} {'replayed':>8}"
)


class Lab:
    """A box of one kernel, started when it is needed, and again when it has died."""

    def __init__(self, kernel: str) -> None:
        self._kernel = kernel
        self._stack = ExitStack()
        self._box: Box | None = None
        self._target: InBox | None = None

    @property
    def box(self) -> Box:
        if self._box is None:
            self._box = self._stack.enter_context(Box(kernel=self._kernel))
        return self._box

    @property
    def target(self) -> InBox:
        if self._target is None:
            self._target = self._stack.enter_context(InBox(self.box))
        return self._target

    def close(self) -> None:
        """End the box; the next use starts another one."""
        self._box = self._target = None
        self._stack.close()


def built(kernel: str, version: str, place: Path) -> None:
    """Fetch the source of a kernel and build its selftests into a directory."""
    suite = catalogue.of_kernel(kernel).name
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        source, _remarks = apt.updated(
            suite, apt.host_mirror(), folder / "apt", SILENT, archive=apt.ARCHIVE
        )
        package = f"linux-source-{kernel}"
        archive = source.download_only([package], version, SILENT)[package]
        tree = folder / "tree"
        tree.mkdir()
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE
        ) as deb, subprocess.Popen(
            ["tar", "-xOf", "-", f"./usr/src/{package}.tar.xz"],
            stdin=deb.stdout, stdout=subprocess.PIPE,
        ) as outer:  # fmt: skip
            left_out = [f"--exclude=*/{one}" for one in LEFT_OUT]
            subprocess.run(
                ["tar", "-C", tree, "--strip-components=1", "--no-same-owner", "-xJf", "-",
                 *left_out],
                stdin=outer.stdout, check=True,
            )  # fmt: skip
        subprocess.run(["make", "-s", "-C", tree, "ARCH=x86", "headers"], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        tests = tree / "tools/testing/selftests/kvm"
        # A few do not build in a stable kernel's source.
        subprocess.run(
            ["make", "-s", "-k", "-j2", "-C", tests, "ARCH=x86_64", "KSFT_KHDR_INSTALL_DONE=1",
             "LDFLAGS=-static -pthread -no-pie"],
            check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        made = [path for where in (tests, tests / "x86_64", tests / "x86") if where.is_dir()
                for path in programs(where, [])]  # fmt: skip
        subprocess.run(["strip", *made], check=True)
        place.mkdir(parents=True)
        for path in made:
            shutil.copy2(path, place / path.name)


def programs(folder: Path, names: Sequence[str]) -> list[Path]:
    """The selftests of a directory, or those with some names; those that measure come last."""
    return [
        path
        for path in sorted(folder.iterdir(), key=lambda path: (path.name in SMALLER, path.name))
        if not NO_SELFTEST.search(path.name) and path.is_file() and path.stat().st_mode & 0o100
        if not names or path.name in names
    ]


def words_of(output: bytes) -> str:
    """What a selftest says about why it does not pass."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    skips = [line for line in lines if re.search(r"skip", line, re.IGNORECASE)]
    failed = [at for at, line in enumerate(lines) if "Test Assertion Failure" in line]
    if failed:
        told = [line for line in lines[failed[0] + 1 :] if line and not NO_REASON.search(line)]
        return ": ".join(dict.fromkeys([*told[:1], *told[-1:]]))[:MOST_WORDS]
    return (skips or [line for line in lines if line] or [""])[-1][:MOST_WORDS]


def ended(lab: Lab, command: Sequence[str]) -> tuple[str, str]:
    """How a command of a selftest ends, and its words if it does not pass."""
    at = command.index("--") + 1 if "--" in command else 0
    seconds = RECORDED_SECONDS if at else SECONDS
    limit = ["timeout", "-k", "5", str(seconds)]
    try:
        done = lab.box.run([*command[:at], *limit, *command[at:]], timeout=2 * seconds)
    except LabError as error:
        lab.close()
        return "box died", str(error)
    status = {0: "passes", SKIPPED: "skipped", TIMED_OUT: "too slow"}.get(done.returncode, "fails")
    if status == "passes":
        return status, ""
    said = words_of(done.stdout + done.stderr)
    return status, said if status != "fails" else f"status {done.returncode}: {said}"


def record(lab: Lab, program: Path, path: Path, row: Row) -> None:
    """Run a selftest recorded, and alone if it does not pass."""
    shutil.copy2(program, lab.box.share / program.name)
    command = [f"/share/{program.name}", *SMALLER.get(program.name, ())]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        for again in (False, True):
            where = str(folder / f"{program.name}.rec")
            with recorded(lab.box, where, buffer=BUFFER) as before:
                row.status, row.words = ended(lab, [*before, *command])
            row.seconds = round(time.monotonic() - began, 1)
            if row.status in ("passes", "skipped"):
                row.alone = ""
                break
            shutil.copy2(program, lab.box.share / program.name)  # the box may be another one
            status, words = ended(lab, command)
            row.alone = f"{status} {words}".strip()
            if status != "passes":
                break
            if again:
                row.wrong.append("it passes without the recorder, and twice not with it")
            else:  # some measure time, on a host that others use too
                shutil.copy2(program, lab.box.share / program.name)
                for one in folder.glob("*.rec"):
                    one.unlink()
        (lab.box.share / program.name).unlink(missing_ok=True)
        for one in folder.glob("*.rec"):
            target = path.with_name(one.name + ".zst")
            target.write_bytes(zstandard.ZstdCompressor(10).compress(one.read_bytes()))


def read(path: Path, row: Row) -> None:
    """Count what is in a recording."""
    kinds: Counter[type] = Counter()
    with open_source(str(path)) as source:
        recording = read_recording(source)
        for one in recording:
            kinds[type(one)] += 1
            if isinstance(one, Lost):
                row.lost += one.count
            if not isinstance(one, Ioctl):
                continue
            row.vms += one.name == "KVM_CREATE_VM" and one.ret >= 0
            row.vcpus += one.name == "KVM_CREATE_VCPU" and one.ret >= 0
            row.nested += one.name == "KVM_SET_NESTED_STATE"
            row.known += one.level is Level.VCPU and one.name in KNOWN and not one.missing
    row.calls += kinds[Ioctl]
    if recording.damage is not None or not kinds[Ended]:
        row.wrong.append(f"the recording is not complete: {recording.damage}")
    if row.lost:
        row.wrong.append(f"{row.lost} calls are lost")


def judge(path: Path, row: Row, name: str) -> None:
    """The verdicts of trace and check."""
    try:
        trace = svm.judge_trace(path, limits=LIMITS)
    except SourceError as error:
        row.wrong.append(f"trace: {error}")
        return
    row.verdict = trace.to_json()["verdict"] or "-"
    row.refused += sum(one.count for one in trace.all_refusals)
    # MSRs that are refused are tried on purpose, as ioctls are.
    found = [one for vcpu in trace.vcpus for put in vcpu.puts for one in put.results]
    found += [one for vcpu in trace.vcpus for one in vcpu.results]
    row.refused += sum(one.rule.id == "T-05" for one in found)
    meant = {"T-05"} | ON_PURPOSE.get(row.name, set())
    row.violated += sorted({one.rule.id for one in found if one.bad} - meant)
    if row.status == "passes" and row.violated:
        row.wrong.append(f"it passes, and is against {' '.join(row.violated)}")
    with suppress(SourceError), svm.open(path, limits=LIMITS) as dump:
        dump.check(kernel=name)


def jobs_of(machines: Iterator[Machine], row: Row) -> Iterator[ReplayJob]:
    """Hold every put against the model; give what is to be replayed."""
    compared: set[int] = set()
    for machine in machines:
        for vcpu in machine.vcpus:
            if vcpu.put is None:
                continue
            row.puts += 1
            label = f"vCPU {vcpu.index} of {vcpu.put.label}"
            restore = scenario(machine, vcpu)
            found_steps = {
                record_of(one) for one in restore.steps if one.name not in WITHOUT_EFFECT
            }
            row.compared += len(found_steps - compared - {0})
            compared |= found_steps
            (kernel,) = recorded_kernel(vcpu, ())
            simulation = restore.simulate(kernel)
            verdict = judge_restore(simulation).verdict
            if row.status == "passes" and verdict in (Verdict.WRONG, Verdict.BROKEN):
                row.wrong.append(f"{label}: simulate calls it {verdict}")
            found = first_difference(vcpu.put, restore.steps, answers_of(simulation))
            if found is not None:
                words = difference_words(found, "the model")
                row.apart.append(f"{label}: {words}")
            options = ReplayOptions(emulated=True, maxphyaddr=None)
            try:
                job = prepare(machine, vcpu, None, options)
            except PlanError:  # CPUID after a run, which the replay does not have
                continue
            yield replace(job, name=label)


def replayed(lab: Lab, jobs: Sequence[ReplayJob], ram: RamFile, row: Row) -> None:
    """Hold every put against the same bytes on a real kernel, and that against the model."""
    if not jobs:
        return
    probe = lab.target.probe()
    for job, result in zip(jobs, perform(lab.target, ram, jobs, probe), strict=True):
        row.replayed += sum(record_of(step.step) > 0 for step in result.steps)
        if result.end != "done":
            row.apart.append(f"{job.name}: the replay ends with {result.end} {result.host or ''}")
            continue
        _simulation, comparison = against_model(job, ram, probe, result)
        first = comparison.first()
        if first is not None:
            step, one = first
            row.apart.append(
                f"{job.name}: step {step}: {one.name} is {one.kernel} in the replay and "
                f"{one.model} in the model"
            )
        assert job.put is not None
        answers = [Answer(step.errno, step.state) for step in result.steps]
        found = first_difference(job.put, job.steps, answers)
        if found is not None:
            row.apart.append(f"{job.name}: {difference_words(found, 'the replay')}")


def one(lab: Lab, program: Path, place: Path, *, name: str) -> Row:
    """The row of a selftest, from what is there already or made now."""
    result = place / "results" / f"{program.name}.json"
    with suppress(OSError, ValueError, TypeError):
        row = Row(**json.loads(result.read_text()))
        if row.version == VERSION:
            return row
    row = Row(program.name)
    path = place / "recordings" / f"{program.name}.rec.zst"
    kept = path.with_suffix(".json")
    if kept.exists():
        row = replace(Row(**json.loads(kept.read_text())), version=VERSION)
    else:
        record(lab, program, path, row)
        write(kept, row)
    for each in sorted(path.parent.glob(f"{program.name}.*rec.zst")):
        read(each, row)
        judge(each, row, name)
        with tempfile.TemporaryDirectory() as folder, open_source(str(each)) as source:
            try:
                machines = list(every_state(source, LIMITS))
            except SourceError:
                continue  # no registers are set
            try:
                jobs = list(jobs_of(iter(machines), row))
                with closing(extract_ram(machines[0], f"{folder}/ram")) as ram:
                    replayed(lab, jobs, ram, row)
            except LabError as error:
                lab.close()
                row.wrong.append(f"replay: {error}")
            except SvmStreamError as error:
                row.wrong.append(f"put {row.puts}: {error}")
    row.wrong += row.apart
    write(result, row)
    return row


def write(path: Path, row: Row) -> None:
    """Write a row so that an interruption leaves none or all of it."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(asdict(row), indent=1) + "\n")
    aside.rename(path)


def of_kernel(kernel: str, options: argparse.Namespace) -> dict[str, Any]:
    """All selftests of a kernel; its part of the document."""
    with closing(Lab(kernel)) as lab:
        version = lab.box.versions["kernel"]
        place = options.folder / version
        for name in ("recordings", "results"):
            (place / name).mkdir(parents=True, exist_ok=True)
        ready = options.built or place / "programs"
        if not ready.is_dir():
            made = place / "programs.part"
            shutil.rmtree(made, ignore_errors=True)
            built(kernel, version, made)
            made.rename(ready)
        if not options.json:
            print(f"Linux {version}\n{HEAD}", flush=True)
        rows = []
        for program in programs(ready, options.names):
            rows.append(one(lab, program, place, name=kernel))
            if not options.json:
                print(rows[-1].line(), flush=True)
    counts = Counter(row.status for row in rows)
    wrong = sum(bool(row.wrong) for row in rows)
    total = {key: sum(getattr(row, key) for row in rows) for key in COUNTED}
    if not options.json:
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        print(f"{len(rows)} selftests of Linux {version}: {told}; {wrong} WRONG; {total}\n")
    return {"kernel": version, "statuses": dict(counts), "wrong": wrong, "total": total,
            "selftests": [asdict(row) for row in rows]}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="SELFTEST", help="only these")
    parser.add_argument("--kernel", action="append", choices=catalogue.KERNELS,
                        help="of the lab; repeatable (default: 6.1)")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=ROOT / "build/selftests",
                        help="for programs, recordings and results")  # fmt: skip
    parser.add_argument("--built", type=Path, help="directory with built selftests")
    parser.add_argument("--json", action="store_true", help="print a document")
    options = parser.parse_args()
    interrupt_on_termination()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    try:
        found = [of_kernel(one, options) for one in options.kernel or ["6.1"]]
    except SvmStreamError as error:
        print(f"selftests: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("interrupted; the next run continues", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps({"schema_version": 1, "kernels": found}, indent=1))
    good = all(not one["wrong"] and one["selftests"] for one in found)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
