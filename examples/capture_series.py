"""Take a series of captures of a running guest, at a fixed pace.

Usage: capture_series.py SOCKET DIRECTORY [COUNT [SECONDS]]

For each the time is printed for which the guest was stopped.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import qemu_svm as svm


def capture_series(socket: str, directory: Path, count: int, seconds: float) -> list[Path]:
    """Return the files, in order."""
    files = []
    with svm.connect(socket) as qmp:
        begin = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, begin + number * seconds - time.monotonic()))
            path = directory / f"{number:04}.bin"
            done = qmp.capture(str(path))
            stopped = 1000 * (done.stopped or 0)
            print(f"{path.name}: {done.size} bytes, stopped for {stopped:.1f} ms", flush=True)
            files.append(path)
    return files


def main() -> int:
    if len(sys.argv) < 3:
        print(__doc__)
        return 2
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 10
    seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 1.0
    try:
        capture_series(sys.argv[1], Path(sys.argv[2]), count, seconds)
    except svm.SvmStreamError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
