"""The options of verbs that judge streams for a destination: its kernel, QEMU and processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from qemu_svm.cli import options, qemus

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

qemu_option = click.option(
    "--qemu", "qemu_version", type=qemus.version, metavar="VERSION|BINARY",
    help="The destination's QEMU.",
)  # fmt: skip


def destination_options(command: _Decorated) -> _Decorated:
    """Add all of them; a command takes ``kernels`` and ``destination`` through :func:`chosen`."""
    for option in reversed((
        options.kernel_option("all releases"),
        options.release_option("--to", "destination", "The same, for one destination."),
        options.release_option("--from", "source", "The source's kernel."),
        qemu_option,
        options.host_npt_option,
        options.cpu_option,
        options.maxphyaddr_option,
    )):  # fmt: skip
        command = option(command)
    return command


def chosen(kernels: tuple[str, ...], destination: str | None) -> tuple[str, ...]:
    """Return the kernels that are asked about.

    :raises click.UsageError: they are given in both ways.
    """
    if destination is None:
        return kernels
    if kernels:
        raise click.UsageError("--to and --kernel have the same meaning; use one of them")
    return (destination,)
