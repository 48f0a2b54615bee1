"""Capture many running VMs and judge them before the hosts' kernel is upgraded.

Usage: judge_before_upgrade.py KERNEL DIRECTORY SOCKET ...

Each VM is captured into DIRECTORY while it runs, and its nested state is checked for
KERNEL, such as 6.12. A VM that cannot be captured is reported, and the others go on.
The exit status is 1 if any VM could not be captured or would not be restored correctly.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import qemu_svm as svm

AT_ONCE = 4
"""Captures at the same time."""


def judge(socket: str, path: Path, kernel: str) -> tuple[bool, str]:
    """Return whether the VM can be moved to the kernel, and why."""
    try:
        svm.capture_stream(socket, path)
        with svm.open(path) as dump:
            report = dump.check(kernel)
            verdicts = [one.verdict for of in report.verdicts.values() for one in of.values()]
    except svm.SvmStreamError as error:
        return False, f"not judged: {error}"
    words = sorted({f"{one.rule}: {one.message}" for one in report.findings})
    good = dump.complete and all(verdict == "right" for verdict in verdicts)
    return good, "; ".join(words) or ("accepted" if good else "see svmstream check")


def main() -> int:
    if len(sys.argv) < 4:
        print(__doc__)
        return 2
    kernel, folder, sockets = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    files = [folder / f"{number:03}-{Path(name).stem}.bin" for number, name in enumerate(sockets)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(judge, sockets, files, [kernel] * len(sockets)))
    for socket, (good, words) in zip(sockets, answers, strict=True):
        print(
            f"{'ok' if good else 'NO':3} {socket}: {words}", file=sys.stdout if good else sys.stderr
        )
    print(f"{sum(good for good, _ in answers)} of {len(answers)} VMs can be moved to {kernel}")
    return 0 if all(good for good, _ in answers) else 1


if __name__ == "__main__":
    sys.exit(main())
