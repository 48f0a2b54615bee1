"""Many streams at once: ``survey`` beside ``xargs -P2 svmstream check``, and on two Dask workers.

All take turns on the same captures, so the ratios count: other load of the machine affects all.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from measure import PROGRAM, table, take_turns

from qemu_svm.source import open_source

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from tests.support.dask import dask  # noqa: E402

FILES = 400
CHECKED = 20  # by xargs, which takes twenty times as long
ROUNDS = 3
TO = "6.1.170"


def make(folder: Path, count: int) -> None:
    """Fill a folder with captures of 0.7 MB, as plain files."""
    packed = sorted((ROOT / "streams").glob("*.mig.zst"))
    folder.mkdir()
    for number, path in enumerate(packed[:count]):
        with open_source(str(path)) as source:
            (folder / f"{number:05}.mig").write_bytes(source.read_at(0, source.size()))
    for number in range(len(packed), count):
        os.link(folder / f"{number % len(packed):05}.mig", folder / f"{number:05}.mig")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the workers end with us
    with tempfile.TemporaryDirectory() as made:
        one, two, few = (Path(made) / name for name in ("one", "two", "few"))
        make(one, FILES)
        make(two, 2 * FILES)
        make(few, CHECKED)
        survey = [*PROGRAM, "survey", "-q", "--to", TO]
        check = shlex.join([*PROGRAM, "check", "--kernel", TO])
        here = [*survey, "-j", "2"]
        with dask(2) as cluster:
            commands = {
                f"survey, {FILES}": [*here, str(one)],
                f"survey, {2 * FILES}": [*here, str(two)],
                f"two workers, {FILES}": [*survey, "--scheduler", cluster.address, str(one)],
                f"xargs -P2, {CHECKED}": [
                    "sh", "-c", f"ls {shlex.quote(str(few))}/* | xargs -P2 -n1 {check} || true",
                ],
            }  # fmt: skip
            figures = take_turns(commands, ROUNDS)
    table("many streams", figures, (f"survey, {FILES}",))
    pool, xargs = figures[f"survey, {FILES}"], figures[f"xargs -P2, {CHECKED}"]
    print(f"  {1e3 * FILES / pool.wall:.0f} files a second; "
          f"{xargs.wall / CHECKED / (pool.wall / FILES):.1f} times as fast as xargs")  # fmt: skip


if __name__ == "__main__":
    main()
