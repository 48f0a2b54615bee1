"""Packages that only some verbs need: the extras."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from qemu_svm.errors import EnvironmentFault


def optional(package: str, why: str, distribution: str = "", install: str = "") -> ModuleType:
    """Import an optional package.

    :param why: what needs it, in words.
    :param distribution: what pip installs, if it has another name.
    :param install: the command that installs it, if that takes more.
    :raises EnvironmentFault: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        name = distribution or package.partition(".")[0]
        raise EnvironmentFault(
            f"{why} needs the Python package '{name}'", hint=install or f"pip install {name}"
        ) from error
