#!/usr/bin/env python3
"""List the fields of QEMU's device state whose number of elements is not fixed.

Usage: qemu_arrays.py SOURCE ...

SOURCE is an unpacked source of QEMU.  Such a field is declared by a macro with VARRAY or
VBUFFER in its name; where it has no elements, neither the stream nor its description has it.
Printed are the lines of findings/qemu_arrays.py: the description's name and the fields.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

_DECLARED = re.compile(r"(#define\s+)?VMSTATE_\w*(?:VARRAY|VBUFFER)\w*\(\s*([\w.]+)\s*,")
_NAME = re.compile(r'\.name\s*=\s*(?:"([^"\n]+)"|(TYPE_\w+))')
_TYPE = re.compile(r'#define\s+(TYPE_\w+)\s+"([^"\n]+)"')
_ELSEWHERE = frozenset({"tests", "roms", "subprojects"})


def main(sources: list[str]) -> None:
    """Print the lines of the table for all sources."""
    found: dict[str, set[str]] = defaultdict(set)
    for source in map(Path, sources):
        files = [
            file for ending in ("*.c", "*.h", "*.inc") for file in source.rglob(ending)
            if not _ELSEWHERE & set(file.relative_to(source).parts)
        ]  # fmt: skip
        texts = [file.read_text(errors="replace") for file in files]
        types = {name: value for text in texts for name, value in _TYPE.findall(text)}
        for text in texts:
            for one in _DECLARED.finditer(text):
                names = _NAME.findall(text, 0, one.start())
                if not one[1] and names:
                    literal, symbol = names[-1]
                    found[literal or types[symbol]].add(one[2])
    for name, fields in sorted(found.items()):
        print(f'    "{name}": ({", ".join(f"{field!r}" for field in sorted(fields))},),')


if __name__ == "__main__":
    main(sys.argv[1:])
