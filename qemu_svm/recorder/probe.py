"""The recorder as one file, for a host without svmstream: the modules of this room in a row."""

from __future__ import annotations

from importlib.resources import files

MODULES = (
    "errors", "results", "kvm", "kvm.numbers", "recorder", "recorder.assembler",
    "recorder.shapes", "recorder.programs", "recorder.process", "recorder.events", "recorder.bpf",
    "recorder.by_bpf", "recorder.by_ptrace", "recorder.log", "recorder.calls",
    "recorder.redact", "recorder.command", "recorder.signals", "recorder.record",
    "recorder.alone",
)  # fmt: skip
"""In an order in which each imports only what precedes it."""

_BEGINNING = '''\
#!/usr/bin/env python3
"""Records the KVM ioctls of a VMM, with their data: svmstream's recorder in one file.

    python3 record.py --pid PID -o FILE
    python3 record.py -o FILE -- COMMAND...

It needs Linux on x86-64 and Python 3.9, nothing else. FILE is read by svmstream.
"""

import sys
import types


def _module(name, text):
    module = types.ModuleType(name)
    module.__path__ = []
    sys.modules[name] = module
    exec(compile(text, name, "exec"), module.__dict__)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


_module("qemu_svm", "")
'''

_END = """
if __name__ == "__main__":
    sys.exit(sys.modules["qemu_svm.recorder.alone"].main(sys.argv[1:]))
"""

_QUOTES = "'" * 3


def program() -> str:
    """Return the file's text."""
    modules = (
        f'\n_module("qemu_svm.{name}", r{_QUOTES}\n{_source(name)}{_QUOTES})\n' for name in MODULES
    )
    return "".join((_BEGINNING, *modules, _END))


def _source(name: str) -> str:
    place = files("qemu_svm").joinpath(*name.split("."))
    folder = files("qemu_svm").joinpath(*name.split(".")[:-1])
    file = folder / f"{name.rpartition('.')[2]}.py"
    text = (place / "__init__.py" if place.is_dir() else file).read_text(encoding="utf-8")
    assert _QUOTES not in text, name
    return text
