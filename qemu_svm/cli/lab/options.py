"""Options of the lab's verbs: those of a box, and which box is meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qemu_svm.cli import qemus
from qemu_svm.lab.suites.catalogue import KERNELS, QEMUS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_Command = TypeVar("_Command", bound=Callable[..., Any])

WHICH_BOX = """\b
Which box: the one named by --name; with any option of a box, a new one;
else the one that is up; if none is up, a new one."""
"""Epilogue of verbs that use a box."""


class KernelName(click.ParamType[str]):
    """A kernel of the lab: a suite's by its line, or one by its version."""

    name = "kernel"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text; a text that names no kernel is a usage error."""
        if value in KERNELS:
            return value
        from qemu_svm.errors import PlanError
        from qemu_svm.lab.suites.kernels import wanted

        try:
            wanted(value)
        except PlanError as error:
            self.fail(str(error), param, ctx)
        return value

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the lines of the suites and the kernels in the cache."""
        from click.shell_completion import CompletionItem

        from qemu_svm.errors import LabError
        from qemu_svm.lab.suites import cache, kernels

        try:
            exact = [kernels.upstream_of(one.manifest.kernel) for one in cache.kernels()]
        except LabError:
            exact = []
        names = dict.fromkeys((*KERNELS, *exact))
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


KERNEL = KernelName()

mirror_option = click.option(
    "--mirror", metavar="URL", help="Debian mirror.  [default: the host's own, or deb.debian.org]"
)
name_option = click.option("--name", metavar="NAME", help="Name of the box.")

record_option = click.option(
    "--record", metavar="OUT",
    help="Record the KVM ioctls of what runs in the box; JSON lines if OUT ends in .jsonl.",
)  # fmt: skip

_BOX_OPTIONS = (
    click.option("--kernel", type=KERNEL, metavar="KERNEL",
                 help="Kernel of the box: 5.10, 6.1, 6.12, 7.2, or one by its version, such as "
                 "6.12.105.  [default: 6.1]"),
    click.option("--qemu", type=qemus.line, shell_complete=qemus.lines, metavar="VERSION|BINARY",
                 help=f"QEMU and user land in the box ({', '.join(QEMUS)}).  "
                 "[default: of the kernel's suite]"),
    click.option("--npt", type=click.Choice(("on", "off")), help="Nested paging.  [default: on]"),
    click.option("--cpu", metavar="MODEL", help="CPU model of the box.  [default: EPYC]"),
    click.option("--smp", type=click.IntRange(1, 64), metavar="N", help="CPUs.  [default: 1]"),
    click.option("--memory", type=click.IntRange(256), metavar="MIB",
                 help="Memory.  [default: 2048]"),
    click.option("--emulator", type=click.Choice(QEMUS),
                 help="QEMU that emulates the host.  [default: the one installed here]"),
    click.option("--share", metavar="DIR", help="Directory that is /share in the box.",
                 type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)),
    mirror_option,
)  # fmt: skip


def box_options(function: _Command) -> _Command:
    """Add the options of a box; :func:`box_arguments` takes their values."""
    for option in reversed(_BOX_OPTIONS):
        function = option(function)
    return function


def box_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a box that were given, as arguments of :class:`qemu_svm.lab.Box`."""
    given = {name: value for name, value in options.items() if value is not None}
    if "npt" in given:
        given["npt"] = given["npt"] == "on"
    return given
