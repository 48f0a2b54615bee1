"""Show what changed from each capture to the next: fields, and pages of RAM.

Usage: compare_captures.py FILE FILE ...
"""

from __future__ import annotations

import sys
from itertools import pairwise

import qemu_svm as svm


def main() -> int:
    files = sys.argv[1:]
    if len(files) < 2:
        print(__doc__)
        return 2
    try:
        for before, after in pairwise(files):
            found = svm.diff(before, after, ram=True)
            pages = sum(block.different for block in found.pages.blocks)
            print(f"{before} -> {after}: {len(found.differences)} fields, {pages} pages")
            for one in found.differences:
                print(f"  {one.path}")
    except svm.SvmStreamError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
