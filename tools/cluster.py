"""Everything that takes --scheduler, without and with a cluster of two workers: the same results.

A scheduler and two workers are started here.  While a verb works, one worker is killed and
another one started.  The workers start boxes of their own.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from measure import PROGRAM  # noqa: E402

from tests.support.dask import Dask, dask  # noqa: E402

STREAM = "streams/qemu7.2-linux6.1-nested-npt.mig.zst"
KILL_AFTER = 4.0  # seconds


def main() -> int:
    wanted = {
        "survey": [*PROGRAM, "survey", "streams", "--jsonl"],
        "lab conform": [*PROGRAM, "lab", "conform", "--sequences", "1300", "--json", STREAM],
        "lab matrix": [*PROGRAM, "lab", "matrix", "--guest", "nested-npt", "--host", "6.1/7.2",
                       "--host", "6.12/10.0", "--json"],
        "fuzz": [sys.executable, "tools/fuzz.py", "frames", "plans", "--plain", "--again",
                 "--runs", "45000"],
    }  # fmt: skip
    chosen = sys.argv[1:] or wanted
    failed = False
    for name in chosen:
        alone, seconds = answer(wanted[name])
        with dask(2) as made:
            threading.Thread(target=replace_one, args=(made,), daemon=True).start()
            there, spread = answer([*wanted[name], "--scheduler", made.address])
        same = read(name, alone) == read(name, there)
        failed |= not same
        words = "the same" if same else "DIFFERENT"
        print(f"{name}: {words}; alone {seconds:.0f} s, two workers {spread:.0f} s", flush=True)
        if not same:
            print(*difflib.unified_diff(*(one.decode().splitlines() for one in (alone, there)),
                                        lineterm="", n=0), sep="\n")  # fmt: skip
    return int(failed)


def replace_one(made: Dask) -> None:
    time.sleep(KILL_AFTER)
    made.workers[0].kill()
    made.work()


def answer(command: list[str]) -> tuple[bytes, float]:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, FUZZ_OUT=folder)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, check=False
        )
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}")
    return done.stdout, time.monotonic() - start


def read(name: str, text: bytes) -> Any:
    """What must be the same: all but times, and what depends on them."""
    if name == "survey":
        return text
    documents = map(json.loads, text.splitlines() if name == "fuzz" else [text])
    return [{key: one[key] for key in one if key not in ("seconds", "repeated")}
            for one in documents]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
