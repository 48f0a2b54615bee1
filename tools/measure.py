"""Measure whole processes: common code of the benchmarks.

Commands take turns, so that other load on the machine affects all of them.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = [sys.executable, str(Path(sys.executable).with_name("svmstream"))]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qemu-svm"


@dataclass(frozen=True)
class Figures:
    """Milliseconds of wall and CPU time; for commands also the peak memory in MiB."""

    wall: float
    cpu: float
    memory: float | None = None


# A separate small process starts each command: the memory of the forked child before
# it executes another program would count as that program's.
LAUNCH = """
import os, sys, time
start = time.perf_counter()
null = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=null)
_, status, used = os.wait4(pid, 0)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(command: Sequence[str], folder: Path | None = None) -> Figures:
    """Run a command once."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCH, *command]
    done = subprocess.run(launcher, stdout=subprocess.PIPE, check=False, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}")
    wall, cpu, memory = done.stdout.split()
    return Figures(1e3 * float(wall), 1e3 * float(cpu), int(memory) / 1024)


def take_turns(
    commands: Mapping[str, Sequence[str]], rounds: int, folder: Path | None = None
) -> dict[str, Figures]:
    """Run all commands in turns, after one warm-up round.

    :param folder: working directory, emptied before each command.
    """
    seen: dict[str, list[Figures]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            figures = run(command, folder)
            if number:
                seen[name].append(figures)
    return {
        name: Figures(
            statistics.median(one.wall for one in all_),
            statistics.median(one.cpu for one in all_),
            max(one.memory or 0 for one in all_),
        )
        for name, all_ in seen.items()
    }


def table(title: str, figures: Mapping[str, Figures], than: Sequence[str]) -> None:
    """Print figures and their ratios to others: wall / CPU."""
    others = [name for name in than if name in figures]
    print(f"\n{title}\n  {'':22}{'wall ms':>9}{'CPU ms':>9}{'MiB':>6}", end="")
    print("".join(f"{name:>16}" for name in others))
    for name, one in figures.items():
        memory = "" if one.memory is None else f"{one.memory:.0f}"
        print(f"  {name:22}{one.wall:9.0f}{one.cpu:9.0f}{memory:>6}", end="")
        for other in (figures[other] for other in others):
            ratios = f"{one.wall / other.wall:.2f} / {one.cpu / max(other.cpu, 1):.2f}"
            print(f"{ratios:>16}", end="")
        print()
    sys.stdout.flush()
