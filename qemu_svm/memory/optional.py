"""Packages that only some verbs on memory need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from qemu_svm.errors import EnvironmentFault


def optional(package: str, why: str) -> ModuleType:
    """Import an optional package.

    :param why: what needs it, in words.
    :raises EnvironmentFault: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise EnvironmentFault(
            f"{why} needs the Python package '{package}'", hint=f"pip install {package}"
        ) from error
