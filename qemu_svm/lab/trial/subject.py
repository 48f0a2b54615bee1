"""What is on trial: a patch, modules, a tree, or a whole kernel."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import SourceError
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import build, cache, kernels
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.trial.ko import LIMIT, Ko, checked
from qemu_svm.lab.trial.patches import LIMIT as PATCH_LIMIT
from qemu_svm.lab.trial.patches import Patch, read_patch
from qemu_svm.lab.trial.workshop import Module, built_module, packed_source, types_of

_NO_TYPES = (
    "kvm-amd.ko has neither types (BTF) nor debug information: members of its structures are "
    "taken to be where the kernel's own kvm-amd has them"
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a kernel is tried with; one of the last four is given.

    :param name: for the report.
    :param modules: content of kvm-amd.ko, kvm.ko or both, by path.
    :param source: a kernel tree.
    :param own: image and directory of modules of a kernel.
    """

    name: str
    patch: Patch | None = None
    modules: Mapping[str, bytes] | None = None
    source: Path | None = None
    own: tuple[Path, Path] | None = None

    def made(self, kernel: Built, *, progress: Progress = SILENT) -> Module:
        """Return the modules to load in place of the kernel's, built if need be.

        :param kernel: in the cache.
        :raises Refused: a patch does not apply or compile, or a module does not fit.
        :raises SourceError: a file is no module, or a directory no kernel tree.
        :raises LabError: packages or programs are missing.
        """
        if self.modules is not None:
            files = checked(kernel, self.modules)
            content = files.get("kvm-amd.ko")
            if content is None:
                return Module(files, None)
            types = types_of(kernel, content, progress=progress)
            bare = types is None and Ko("kvm-amd.ko", content).section(".BTF") is None
            return Module(files, types, remarks=(_NO_TYPES,) if bare else ())
        if self.own is not None:
            return Module({}, None)
        source = None if self.source is None else packed_source(self.source, kernel)
        return built_module(kernel, self.patch, source=source, progress=progress)


def read_modules(paths: tuple[Path, ...]) -> dict[str, bytes]:
    """Return the content of modules by path.

    :raises SourceError: one has more than 256 MiB.
    :raises LabError: one cannot be read.
    """
    found = {}
    for path in paths:
        with host_faults(f"read {path}"), path.open("rb") as file:
            found[str(path)] = file.read(LIMIT + 1)
        if len(found[str(path)]) > LIMIT:
            raise SourceError(f"{path} has more than {LIMIT >> 20} MiB: that is no module of KVM")
    return found


def read_patch_file(path: Path) -> Patch:
    """Return the patch in a file.

    :raises SourceError: it is no patch.
    :raises PatchRefused: it changes something that is not built here.
    :raises LabError: it cannot be read.
    """
    with host_faults(f"read {path}"), path.open("rb") as file:
        return read_patch(file.read(PATCH_LIMIT + 1), path.name)


def subject_of(patch: Path | None, modules: tuple[Path, ...]) -> Subject:
    """Return what is on trial: the patch in a file, or modules.

    :raises SourceError: a file is no patch, or too large.
    :raises PatchRefused: the patch changes something that is not built here.
    :raises LabError: a file cannot be read.
    """
    if patch is not None:
        return Subject(patch.name, patch=read_patch_file(patch))
    return Subject(" and ".join(path.name for path in modules), modules=read_modules(modules))


def modules_for(
    kernel: str,
    subject: Subject,
    *,
    mirror: str | None = None,
    progress: Progress = SILENT,
) -> Module:
    """Return the modules with which a box with a kernel is started to try a subject.

    :param kernel: see :func:`qemu_svm.lab.suites.kernels.wanted`.
    :raises Refused: a patch does not apply or compile, or a module does not fit.
    :raises LabError: something cannot be had or built.
    """
    with build.using(kernels.wanted(kernel), mirror=mirror, progress=progress) as held:
        return subject.made(held, progress=progress)


_AMD = "kvm-amd.ko"
TYPES_BESIDE = ".btf"
"""End of the name of a file with a module's types."""


def as_files(module: Module) -> dict[str, Path]:
    """Write the modules into the cache, for another process; return their paths by name.

    The types of kvm-amd, if they are known, are beside it: :data:`TYPES_BESIDE`.

    :raises LabError: the cache cannot be written.
    """
    found = {}
    folder = cache.folder() / cache.MODULES
    with host_faults(f"write {folder}", hint=cache.HINT):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in module.files.items():
            path = folder / f"{hashlib.sha256(content).hexdigest()[:24]}-{name}"
            _write(path, content)
            if name == _AMD and module.types is not None:
                _write(path.with_name(path.name + TYPES_BESIDE), module.types)
            found[name] = path
    return found


def _write(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).rename(path)
