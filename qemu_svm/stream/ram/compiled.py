"""The compiled module, ``ram``; None if there was no compiler at installation.

Every function in it has an equivalent in Python, which is used then.
"""

from __future__ import annotations

_INTERFACE = 4  # version of the functions that this package calls

try:
    from qemu_svm.stream.ram import _ram as ram

    if ram.INTERFACE != _INTERFACE:  # built for another version
        raise ImportError
except ImportError:
    ram = None  # type: ignore[assignment]

__all__ = ["ram"]
