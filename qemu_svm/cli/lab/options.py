"""Options of the lab's verbs: those of a box, and which box is meant."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from qemu_svm.cli import qemus
from qemu_svm.lab.suites.catalogue import DEFAULT_KERNEL, KERNELS, QEMUS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from qemu_svm.lab.progress import Progress
    from qemu_svm.lab.trial.workshop import Module

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

_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)

patch_option = click.option(
    "--patch", metavar="PATCH", type=_FILE,
    help="Start the box with KVM built with this patch; see lab patch.",
)  # fmt: skip
module_option = click.option(
    "--module", "module_files", multiple=True, metavar="FILE.ko", type=_FILE,
    help="Start the box with this kvm-amd.ko or kvm.ko; may be given twice.",
)  # fmt: skip


def own_kernel_options(function: _Command) -> _Command:
    """Add --kernel-image and --modules; ``own`` is both paths, or None."""

    @functools.wraps(function)
    def combined(*, kernel_image: Path | None, modules_folder: Path | None, **given: Any) -> object:
        if (kernel_image is None) != (modules_folder is None):
            raise click.UsageError("--kernel-image needs --modules, and --modules --kernel-image")
        own = None if kernel_image is None else (kernel_image, modules_folder)
        return function(own=own, **given)

    image = click.option(
        "--kernel-image", metavar="BZIMAGE", type=_FILE, help="Boot this kernel of your own.",
    )  # fmt: skip
    folder = click.option(
        "--modules", "modules_folder", metavar="DIR", type=_FOLDER,
        help="Modules of --kernel-image: lib/modules/RELEASE, or what has it.",
    )  # fmt: skip
    return cast("_Command", image(folder(combined)))


def trial_options(function: _Command) -> _Command:
    """Add --patch and --module; :func:`modules_of` takes their values."""
    return patch_option(module_option(function))


def modules_of(
    kernel: str,
    patch: Path | None,
    module_files: tuple[Path, ...],
    *,
    mirror: str | None,
    progress: Progress,
) -> Module | None:
    """Return the modules of --patch or --module for a kernel, built if need be; or None."""
    if patch is not None and module_files:
        raise click.UsageError("--patch builds the modules, --module has them: give one")
    if patch is None and not module_files:
        return None
    from qemu_svm.lab.trial.subject import modules_for, subject_of

    subject = subject_of(patch, module_files)
    return modules_for(kernel, subject, mirror=mirror, progress=progress)


def box_options(function: _Command) -> _Command:
    """Add the options of a box; :func:`box_arguments` takes their values."""
    for option in reversed(_BOX_OPTIONS):
        function = option(function)
    return own_kernel_options(trial_options(function))


def box_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a box that were given, as arguments of :class:`qemu_svm.lab.Box`.

    ``patch`` and ``module_files`` are still to be made into ``modules``: :func:`with_modules`.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "npt" in given:
        given["npt"] = given["npt"] == "on"
    if "own" in given and "kernel" in given:
        raise click.UsageError("--kernel and --kernel-image: give one")
    if "share" in given and given.keys() & {"own", "patch", "module_files"}:
        raise click.UsageError("--share is not for a box with a foreign kernel or module, which "
                               "has a directory of its own only, with a limit")  # fmt: skip
    return given


def with_modules(
    arguments: dict[str, Any], progress: Progress, *, as_files: bool = False
) -> dict[str, Any]:
    """Return arguments with the modules of ``patch`` or ``module_files``, built if need be.

    :param as_files: name files of the cache, for another process.
    """
    made = dict(arguments)
    patch, files = made.pop("patch", None), made.pop("module_files", ())
    if patch is None and not files:
        return made
    if "own" in made:
        raise click.UsageError("--patch and --module are for the kernels of suites, "
                               "not for --kernel-image")  # fmt: skip
    module = modules_of(
        made.get("kernel", DEFAULT_KERNEL), patch, files, mirror=made.get("mirror"),
        progress=progress,
    )  # fmt: skip
    assert module is not None
    from qemu_svm.lab.trial.subject import as_files as written

    return made | {"modules": written(module) if as_files else module.files}
