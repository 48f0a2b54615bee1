#!/usr/bin/env python3
"""Run the fuzz targets of tests/fuzz.

    tools/fuzz.py                            every target, as often as its table says
    tools/fuzz.py stream trace --runs 50000
    tools/fuzz.py ram --plain                random changes alone, without atheris
    tools/fuzz.py --scheduler ADDRESS        on the workers of a Dask cluster

With atheris (``pip install atheris``) a round has two parts.  The first is guided by coverage:
what covers new code is kept in build/fuzz/TARGET/corpus, where the next run begins.  The second
makes random changes of that corpus in code that is not instrumented, which is several times as
fast.  How many there were is kept in build/fuzz/TARGET/count.json: a round that was interrupted
is continued, and ``--again`` begins a new one.

An input that ends in an exception which is not of the package, that takes seconds or too much
memory is written to build/fuzz/TARGET/failure-*, one for each place in the code; the status is
then 1.  For each target one JSON document is printed: executions, seconds, edges, failures.

Random changes are made from one seed for every 20,000 executions, so that it does not matter who
makes them.  With ``--scheduler`` these are the items, and so is the guided part of each target.
A worker needs a checkout like this one: ``PYTHONPATH=CHECKOUT dask worker ADDRESS``.
"""

from __future__ import annotations

import argparse
import contextlib
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
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(os.environ.get("FUZZ_OUT", ROOT / "build" / "fuzz"))
SLOW = 2.0  # seconds of processor time for one input
MEMORY = 90 << 20  # bytes by which one input lets the process grow
_STEP = 16 << 20  # bytes of growth that are looked at more closely
GUIDED = 0.05  # of a round
CHUNK = 20_000  # executions from one seed
LONGEST = 6000  # bytes of an input
_REPORT = 500  # executions


class Watched:
    """A target that keeps what is wrong and continues.

    :param kind: under which the executions are counted: ``guided`` or ``plain``.
    """

    def __init__(self, name: str, run: Callable[[bytes], None], kind: str) -> None:
        self.executions = 0
        self.failures: dict[str, str] = {}
        self._name, self._run, self._kind = name, run, kind
        self._folder = OUT / name
        self._before = counted(name)
        self._highest = _peak()

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
        grown = _peak() - self._highest
        if grown > MEMORY:
            self._keep("memory", data, f"the process has grown by {grown >> 20} MiB")
        if grown > _STEP:
            self._highest = _forget_peak()

    def report(self) -> None:
        """Write what is known so far; the fuzzer ends the process without a word to Python."""
        (self._folder / "report.json").write_text(json.dumps({"failures": self.failures}))
        done = self._before | {self._kind: self._before[self._kind] + self.executions}
        new = self._folder / "count.new"
        new.write_text(json.dumps(done))
        new.replace(self._folder / "count.json")

    def _keep(self, where: str, data: bytes, text: str) -> None:
        if where in self.failures:
            return
        self.failures[where] = text.strip().splitlines()[-1][:200]
        self.report()
        number = hashlib.sha256(data).hexdigest()[:12]
        (self._folder / f"failure-{number}").write_bytes(data)
        (self._folder / f"failure-{number}.txt").write_text(f"{where}\n{text}", errors="replace")
        print(f"{self._name}: {where}: {self.failures[where]} (failure-{number})", file=sys.stderr)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _forget_peak() -> int:
    # Linux: what is reached again and again by other inputs is seen again.
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _peak()


def counted(name: str, out: Path = OUT) -> dict[str, int]:
    """Return the executions of the present round of a target, and the edges it has reached."""
    none = {"guided": 0, "plain": 0, "edges": 0}
    with contextlib.suppress(FileNotFoundError):
        none |= json.loads((out / name / "count.json").read_text())
    return none


def guided(name: str, total: int, seconds: int | None) -> None:
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
        (corpus / _named(seed)).write_bytes(seed)
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
    atheris.Setup([*arguments, str(corpus)], Watched(name, target.run, "guided"))
    atheris.Fuzz()


def _seeds(name: str, target: Target) -> list[bytes]:
    found = ROOT / "tests" / "fuzz" / "found" / name
    kept = [file.read_bytes() for file in sorted(found.iterdir())] if found.is_dir() else []
    return [*target.seeds(), *kept]


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def plainly(name: str, total: int, seconds: int | None) -> None:
    """Run one target in this process with random changes of its seeds and its corpus."""
    from tests.fuzz.targets import TARGETS, changed

    target = TARGETS[name]
    seeds = _seeds(name, target) + _corpus(OUT / name)
    done = counted(name)["plain"]
    watched = Watched(name, target.run, "plain")
    end = time.monotonic() + (seconds or 1 << 30)
    rng = random.Random(f"{name} {done}")
    while watched.executions < total and time.monotonic() < end:
        if (done + watched.executions) % CHUNK == 0:
            rng = random.Random(f"{name} {done + watched.executions}")
        watched(changed(rng, seeds, target.words)[:LONGEST])
    watched.report()


def _corpus(folder: Path) -> list[bytes]:
    corpus = folder / "corpus"
    return [one.read_bytes() for one in sorted(corpus.iterdir())] if corpus.is_dir() else []


def run(name: str, kind: str, total: int, seconds: int | None, out: Path = OUT) -> dict[str, Any]:
    """Run one part of a target's round in a process of its own; return what came of it."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    before = counted(name, out)
    started = time.monotonic()
    command = [sys.executable, __file__, name, "--here", kind, "--runs", str(total)]
    command += [] if seconds is None else ["--seconds", str(seconds)]
    with open(folder / "log", "wb") as log:
        status = subprocess.run(
            command, stdout=log, stderr=log, check=False, env=dict(os.environ, FUZZ_OUT=str(out))
        ).returncode
    text = (folder / "log").read_text(errors="replace")
    failures = json.loads(report.read_text())["failures"] if report.exists() else {}
    counts = re.findall(r"stat::number_of_executed_units: (\d+)", text)
    after = counted(name, out)
    if counts:  # the last ones were not reported
        after[kind] = before[kind] + int(counts[-1])
    after["edges"] = max(after["edges"], *map(int, re.findall(r" cov: (\d+)", text)), 0)
    (folder / "count.json").write_text(json.dumps(after))
    if status:
        failures["the process"] = f"ended with status {status}, see {folder / 'log'}"
    return {
        "target": name,
        "part": kind,
        "executions": after[kind] - before[kind],
        "seconds": round(time.monotonic() - started),
        "round": after,
        "failures": failures,
    }


@dataclass(frozen=True)
class Item:
    """A part of a target's round, for a worker.

    :param start: how many executions of its kind there were before it.
    """

    name: str
    kind: str
    start: int
    count: int
    seconds: int | None
    corpus: tuple[bytes, ...]


def remotely(item: Item) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Run an item on a worker: what came of it, and the files that it made."""
    from qemu_svm.errors import EnvironmentFault

    if item.kind == "guided" and importlib.util.find_spec("atheris") is None:
        raise EnvironmentFault("it has no atheris", hint="pip install 'atheris>=2.3'")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as made:
        folder = Path(made) / item.name
        (folder / "corpus").mkdir(parents=True)
        for data in item.corpus:
            (folder / "corpus" / _named(data)).write_bytes(data)
        (folder / "count.json").write_text(json.dumps({item.kind: item.start}))
        done = run(item.name, item.kind, item.count, item.seconds, Path(made))
        kept = [
            *folder.glob("failure-*"),
            *(folder.glob("corpus/*") if item.kind == "guided" else ()),
        ]
        return done, {str(one.relative_to(folder)): one.read_bytes() for one in kept}


def _named(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def spread(
    rounds: dict[str, list[tuple[str, int]]], seconds: int | None, address: str
) -> Iterator[dict[str, Any]]:
    """Run parts of several targets on a cluster: first all that are guided, then the others."""
    from qemu_svm.work.cluster import Cluster
    from qemu_svm.work.items import Lost

    cluster = Cluster(address, say=lambda words: print(words, file=sys.stderr))
    try:
        for kind in ("guided", "plain"):
            wanted = {name: count for name, all_ in rounds.items() for one, count in all_
                      if one == kind}  # fmt: skip
            sums = {name: [0, 0, {}] for name in wanted}
            for item, answer in cluster.results(remotely, _items(kind, wanted, seconds)):
                done, files = (
                    (
                        {
                            "executions": 0,
                            "seconds": 0,
                            "round": {"edges": 0},
                            "failures": {"the worker": answer.why},
                        },
                        {},
                    )
                    if isinstance(answer, Lost)
                    else answer
                )
                folder = OUT / item.name
                for name, data in files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(data)
                total = sums[item.name]
                total[0] += done["executions"]
                total[1] += done["seconds"]
                total[2] = done["failures"] | total[2]
                counts = counted(item.name)
                counts[kind] += done["executions"]
                counts["edges"] = max(counts["edges"], done["round"].get("edges", 0))
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "count.json").write_text(json.dumps(counts))
            for name, (executions, taken, failures) in sums.items():
                yield {"target": name, "part": kind, "executions": executions, "seconds": taken,
                       "round": counted(name), "failures": failures}  # fmt: skip
    finally:
        cluster.close()


def _items(kind: str, wanted: dict[str, int], seconds: int | None) -> Iterator[Item]:
    for name, count in wanted.items():
        corpus, start = tuple(_corpus(OUT / name)), counted(name)[kind]
        size = CHUNK if kind == "plain" else count
        end = start + count
        while start < end:
            many = min(size - start % size if kind == "plain" else size, end - start)
            yield Item(name, kind, start, many, seconds, corpus)
            start += many


def parts(name: str, total: int, *, plain: bool) -> list[tuple[str, int]]:
    """Return what is left of a round of ``total`` executions: the kinds, how many of each."""
    done = counted(name)
    left = max(total - done["guided"] - done["plain"], 0)
    first = 0 if plain else min(max(int(total * GUIDED) - done["guided"], 0), left)
    return [(kind, count) for kind, count in (("guided", first), ("plain", left - first)) if count]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--runs", type=int, help="executions of a round, instead of the table's")
    parser.add_argument("--seconds", type=int, help="at most this long for each part")
    parser.add_argument("--plain", action="store_true", help="random changes, no coverage")
    parser.add_argument("--again", action="store_true", help="begin a new round")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, to run it there")
    parser.add_argument("--here", choices=("guided", "plain"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    from qemu_svm.errors import EnvironmentFault

    if chosen.here:
        work = plainly if chosen.here == "plain" else guided
        work(chosen.targets[0], chosen.runs, chosen.seconds)
        return 0
    from tests.fuzz.targets import TARGETS

    plain = chosen.plain or importlib.util.find_spec("atheris") is None
    rounds = {}
    for name in chosen.targets or TARGETS:
        if chosen.again:
            (OUT / name / "count.json").unlink(missing_ok=True)
        rounds[name] = parts(name, chosen.runs or TARGETS[name].executions, plain=plain)
    if chosen.scheduler is None:
        every = (run(name, kind, count, chosen.seconds)
                 for name, all_ in rounds.items() for kind, count in all_)  # fmt: skip
    else:
        every = spread(rounds, chosen.seconds, chosen.scheduler)
    failed = False
    try:
        for done in every:
            print(json.dumps(done), flush=True)
            failed |= bool(done["failures"])
    except EnvironmentFault as error:
        print(f"{error}\neach worker: PYTHONPATH=CHECKOUT dask worker ADDRESS", file=sys.stderr)
        return 4
    return int(failed)


if __name__ == "__main__":
    sys.path.append(str(ROOT))  # last: a package that was built elsewhere comes first
    from tools.fuzz import main as entry  # workers import its functions by that name

    sys.exit(entry())
