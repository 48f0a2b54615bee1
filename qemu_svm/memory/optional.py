"""Packages that only some verbs need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from qemu_svm.errors import EnvironmentFault


def optional(package: str, why: str, distribution: str = "") -> ModuleType:
    """Import an optional package.

    :param why: what needs it, in words.
    :param distribution: what pip installs, if it has another name.
    :raises EnvironmentFault: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise EnvironmentFault(
            f"{why} needs the Python package '{distribution or package}'",
            hint=f"pip install {distribution or package}",
        ) from error
