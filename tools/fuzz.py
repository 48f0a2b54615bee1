#!/usr/bin/env python3
"""Run the fuzz targets of tests/fuzz.

    tools/fuzz.py                            every target, as often as its table says
    tools/fuzz.py stream trace --runs 50000
    tools/fuzz.py ram --plain                without atheris: random changes, no coverage

With atheris (``pip install atheris``) the inputs are guided by coverage, and what covers new
code is kept in build/fuzz/TARGET/corpus, where the next run begins.  An input that ends in an
exception which is not of the package, that takes seconds or too much memory is written to
build/fuzz/TARGET/failure-*, one for each place in the code; the status is then 1.  For each
target one JSON document is printed: executions, seconds, edges covered, failures.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
import random
import re
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "fuzz"
SLOW = 2.0  # seconds of processor time for one input
MEMORY = 400 << 20  # bytes of the process, with the fuzzer's own
LONGEST = 6000  # bytes of an input
_REPORT = 500  # executions


class Watched:
    """A target that keeps what is wrong and continues."""

    def __init__(self, name: str, run: Callable[[bytes], None], *, memory: int = MEMORY) -> None:
        self.executions = 0
        self.failures: dict[str, str] = {}
        self._name, self._run, self._folder = name, run, OUT / name
        self._most = memory

    def __call__(self, data: bytes) -> None:
        self.executions += 1
        if self.executions % _REPORT == 0:
            self.report()
        start = time.process_time()
        try:
            self._run(data)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            file = os.path.relpath(place.filename, ROOT)
            where = f"{type(error).__name__} at {file}:{place.lineno}"
            self._keep(where, data, traceback.format_exc())
        taken = time.process_time() - start
        if taken > SLOW:
            self._keep("slow", data, f"{taken:.1f} s")
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > self._most:
            self._keep("memory", data, "the process has grown past the limit at this input")

    def report(self) -> None:
        """Write what is known so far; the fuzzer ends the process without a word to Python."""
        done = {"executions": self.executions, "failures": self.failures}
        (self._folder / "report.json").write_text(json.dumps(done))

    def _keep(self, where: str, data: bytes, text: str) -> None:
        if where in self.failures:
            return
        self.failures[where] = text.strip().splitlines()[-1][:200]
        self.report()
        number = hashlib.sha256(data).hexdigest()[:12]
        (self._folder / f"failure-{number}").write_bytes(data)
        (self._folder / f"failure-{number}.txt").write_text(f"{where}\n{text}", errors="replace")
        print(f"{self._name}: {where}: {self.failures[where]} (failure-{number})", file=sys.stderr)


def guided(name: str, runs: int | None, seconds: int | None) -> None:
    """Run one target in this process, guided by coverage; does not return."""
    import atheris

    with atheris.instrument_imports(include=["qemu_svm"]):
        import qemu_svm

        for module in pkgutil.walk_packages(qemu_svm.__path__, "qemu_svm."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    corpus = OUT / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in _seeds(name, target):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    total = target.executions if runs is None else runs
    arguments = [
        sys.argv[0], f"-runs={total}", f"-max_len={LONGEST}", "-rss_limit_mb=1500", "-timeout=60",
        "-print_final_stats=1", "-report_slow_units=5", f"-artifact_prefix={corpus.parent}/",
    ]  # fmt: skip
    if target.words:
        words = corpus.parent / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        arguments.append(f"-dict={words}")
    if seconds is not None:
        arguments.append(f"-max_total_time={seconds}")
    atheris.Setup([*arguments, str(corpus)], Watched(name, target.run))
    atheris.Fuzz()


def _seeds(name: str, target: Target) -> list[bytes]:
    found = ROOT / "tests" / "fuzz" / "found" / name
    kept = [file.read_bytes() for file in sorted(found.iterdir())] if found.is_dir() else []
    return [*target.seeds(), *kept]


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def plainly(name: str, runs: int | None, seconds: int | None) -> None:
    """Run one target in this process with random changes of its seeds."""
    from tests.fuzz.targets import TARGETS, changed

    target = TARGETS[name]
    rng = random.Random(name)
    seeds = _seeds(name, target)
    watched = Watched(name, target.run, memory=8 * MEMORY)
    end = time.monotonic() + (seconds or 1 << 30)
    for seed in seeds:
        watched(seed)
    while watched.executions < (target.executions if runs is None else runs):
        watched(changed(rng, seeds, target.words)[:LONGEST])
        if time.monotonic() > end:
            break
    watched.report()


def run(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Run one target in a process of its own; return what came of it."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    started = time.monotonic()
    with open(folder / "log", "wb") as log:
        command = [sys.executable, __file__, name, "--here", *options]
        status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    text = (folder / "log").read_text(errors="replace")
    done = json.loads(report.read_text()) if report.exists() else {"executions": 0, "failures": {}}
    counts = re.findall(r"stat::number_of_executed_units: (\d+)", text)
    edges = re.findall(r" cov: (\d+)", text)
    if status:
        done["failures"]["the process"] = f"ended with status {status}, see {folder / 'log'}"
    return {
        "target": name,
        "executions": int(counts[-1]) if counts else done["executions"],
        "seconds": round(time.monotonic() - started),
        "edges": int(edges[-1]) if edges else None,
        "failures": done["failures"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--runs", type=int, help="executions, instead of those in the table")
    parser.add_argument("--seconds", type=int, help="at most this long for each target")
    parser.add_argument("--plain", action="store_true", help="random changes, no coverage")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    sys.path.append(str(ROOT))  # last: a package that was built elsewhere comes first
    if chosen.here:
        work = plainly if chosen.plain else guided
        work(chosen.targets[0], chosen.runs, chosen.seconds)
        return 0
    from tests.fuzz.targets import TARGETS

    plain = chosen.plain or importlib.util.find_spec("atheris") is None
    options = ["--plain"] if plain else []
    options += [] if chosen.runs is None else ["--runs", str(chosen.runs)]
    options += [] if chosen.seconds is None else ["--seconds", str(chosen.seconds)]
    failed = False
    for name in chosen.targets or TARGETS:
        done = run(name, options)
        print(json.dumps(done), flush=True)
        failed |= bool(done["failures"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
