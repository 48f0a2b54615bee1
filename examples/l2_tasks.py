"""Show the tasks of an L2 that is a Linux, out of a stream saved while a vCPU ran it.

Usage: l2_tasks.py FILE VMLINUX

Needs drgn, and the symbols of L2's kernel.
"""

from __future__ import annotations

import sys
from typing import Any

import qemu_svm as svm


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    try:
        with svm.open(sys.argv[1]) as dump:
            show(dump.drgn("l2"), sys.argv[2])
    except svm.SvmStreamError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def show(l2: Any, symbols: str) -> None:
    from drgn.helpers.linux.pid import for_each_task

    l2.load_debug_info([symbols])
    print(l2["init_uts_ns"].name.release.string_().decode())
    for task in for_each_task(l2):
        print(f"{task.pid.value_():6} {task.comm.string_().decode()}")


if __name__ == "__main__":
    sys.exit(main())
