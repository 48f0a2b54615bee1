"""The compiled part, ``ram``; None where there was no compiler at installation.

Everything in it has a twin in Python, which is used then.
"""

from __future__ import annotations

_INTERFACE = 2  # of the functions that this version of the package calls

try:
    from qemu_svm.stream.ram import _ram as ram

    if ram.INTERFACE != _INTERFACE:  # left over from another version
        raise ImportError
except ImportError:
    ram = None  # type: ignore[assignment]

__all__ = ["ram"]
