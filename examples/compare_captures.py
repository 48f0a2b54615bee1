"""Say what changed from each capture to the next: fields, and pages of RAM.

Usage: compare_captures.py FILE FILE ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from qemu_svm.errors import SvmStreamError
from qemu_svm.findings.diff import compare
from qemu_svm.findings.ram_diff import compare_ram
from qemu_svm.machine import Machine, read_machine
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from qemu_svm.stream.ram.read import read_ram


@contextmanager
def opened(path: str) -> Iterator[Machine]:
    with open_source(path) as source:
        yield read_machine(read_stream(source))


def changes(before: str, after: str) -> tuple[list[str], int]:
    """Return the paths of the fields that changed, and how many pages did."""
    with opened(before) as one, opened(after) as two:
        fields = [difference.path for difference in compare(one, two).counting]
        pages = compare_ram(read_ram(one.stream), read_ram(two.stream))
        return fields, sum(block.different for block in pages.blocks)


def main() -> int:
    files = sys.argv[1:]
    if len(files) < 2:
        print(__doc__)
        return 2
    try:
        for before, after in pairwise(files):
            fields, pages = changes(before, after)
            print(f"{before} -> {after}: {len(fields)} fields, {pages} pages")
            for path in fields:
                print(f"  {path}")
    except SvmStreamError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
