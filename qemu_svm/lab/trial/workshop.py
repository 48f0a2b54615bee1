"""Where a module is built: headers, source and compiler of one kernel, in a root of their own.

The root has packages of the kernel's suite, extracted like those of a box.  A build runs in
namespaces of its own (mount, process ids, network without any interface, IPC), changed to that
root, which is read-only, as a user without rights; what it writes is in memory with a limit
and is gone with it.  Source and patch go in, and module and types come out, through pipes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.host import host_faults, mortal
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import apt, build, cache
from qemu_svm.lab.suites.cache import Built, Named
from qemu_svm.lab.suites.catalogue import of_kernel
from qemu_svm.lab.suites.kernels import order_of
from qemu_svm.lab.trial.patches import Patch, PatchRefused

SECONDS = 900
"""Limit of a build."""
_MEMORY = 6 << 30  # bytes of address space of each process of a build
_DISK = 1500  # MiB that a build may write
_RESULT = 64 << 20  # bytes
_LOG = 1 << 20
_TOOLS = (
    "make",
    "dwarves",
    "patch",
    "dash",
    "coreutils",
    "sed",
    "grep",
    "mawk",
    "findutils",
    "tar",
)
_SOURCE = ("arch/x86/kvm", "virt/kvm")
_WARNING = re.compile(r"^\S*?(arch/x86/kvm/\S+): (warning|error): (.*)$", re.M)
_PATCH_FAILED, _NO_TYPES = 10, 12

_ENTER = """\
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount -t tmpfs -o size={disk}m,mode=0777 build "$1/build"
mount -t tmpfs -o size=200m,mode=1777 tmp "$1/tmp"
mount --bind /dev/null "$1/dev/null"
mount -t proc proc "$1/proc"
exec chroot {user} "$1" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/tmp LC_ALL=C /bin/sh -c "$2"
"""

_BUILD = """\
ulimit -v {memory}
cd /build && tar -xf - || exit 1
if [ -f change.patch ]; then
    patch -p1 --force --no-backup-if-mismatch < change.patch >&2 || exit {patch_failed}
fi
cd arch/x86/kvm
sed -e '/^include .*Makefile.kvm/d' -e '/^obj-/d' -e 's,$(srctree)/arch/x86/kvm,$(src),g' \
    Makefile > Kbuild
echo 'obj-m := kvm-amd.o' >> Kbuild
echo 'ccflags-y += -I $(src) -I $(src)/../../../virt/kvm' >> Kbuild
make -s -C /usr/src/linux-headers-{release} M=$PWD CC={compiler} HOSTCC={compiler} -j2 modules >&2 \
    || exit 11
cp kvm-amd.ko /build/types.ko
LLVM_OBJCOPY=objcopy pahole -J /build/types.ko >&2 || exit {no_types}
cd /build
objcopy -O binary --only-section=.BTF --set-section-flags .BTF=alloc types.ko types \\
    || exit {no_types}
strip -g arch/x86/kvm/kvm-amd.ko -o kvm-amd.ko || exit {no_types}
tar -cf - kvm-amd.ko types
"""


@dataclass(frozen=True, slots=True)
class Module:
    """A kvm-amd that was built.

    :param content: the file ``kvm-amd.ko``, without debug information.
    :param types: its BTF.
    :param remarks: what GNU patch said about hunks that did not fit exactly.
    :param warnings: of the compiler: file and line, text.
    """

    content: bytes
    types: bytes
    remarks: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Identifies it (hexadecimal)."""
        return hashlib.sha256(self.content).hexdigest()


def built_module(kernel: Built, patch: Patch | None, *, progress: Progress = SILENT) -> Module:
    """Return kvm-amd of a kernel, with a patch or as it is; built if it is not in the cache.

    :param kernel: a suite's.
    :raises PatchRefused: the patch does not apply, or what it makes does not compile.
    :raises LabError: packages or programs are missing.
    """
    version = kernel.manifest.kernel
    key = hashlib.sha256(f"{version} {_BUILD} {patch.digest if patch else ''}".encode()).hexdigest()
    path = cache.folder() / cache.MODULES / f"{kernel.name}-{key[:24]}.tar"
    with contextlib.suppress(FileNotFoundError):
        return _unpacked(path.read_bytes())
    place = _workshop(kernel, progress)
    progress.step(f"building kvm-amd {version}" + (" with the patch" if patch else ""))
    data, log = _build(place, kernel, patch)
    remarks = [line for line in log.splitlines() if line.startswith("Hunk #")] if patch else []
    warnings = [f"{where}: {text}" for where, _kind, text in _WARNING.findall(log)]
    made = _with_words(data, {"remarks": remarks, "warnings": warnings})
    with host_faults(f"write {path}", hint=cache.HINT):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(made)
        os.rename(file.name, path)
    return _unpacked(made)


def own_types(version: str, *, progress: Progress = SILENT) -> bytes:
    """Return the BTF of a kernel's kvm-amd, built from the same source.

    :param version: of the kernel's package.
    :raises LabError: it is no kernel of a suite, or cannot be built.
    """
    series = "{}.{}".format(*order_of(version))
    kernel = cache.find(of_kernel(series))
    if kernel is None or kernel.manifest.kernel != version:
        raise LabError(f"no suite in the cache has the source of Linux {version}")
    return built_module(kernel, None, progress=progress).types


def _with_words(data: bytes, words: dict[str, list[str]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in (*_members(data).items(), ("words", json.dumps(words).encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _members(data: bytes) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for entry in archive:
                content = archive.extractfile(entry) if entry.isreg() else None
                if content is not None:
                    found[entry.name] = content.read()
    except tarfile.TarError as error:
        raise LabError(f"the build's result cannot be read: {error}") from None
    return found


def _unpacked(data: bytes) -> Module:
    members = _members(data)
    try:
        words = json.loads(members["words"])
        return Module(members["kvm-amd.ko"], members["types"], tuple(words["remarks"]),
                      tuple(words["warnings"]))  # fmt: skip
    except (KeyError, ValueError) as error:
        raise LabError(f"a module in the cache is damaged: {error}",
                       hint="remove the directory modules of the cache") from None  # fmt: skip


def _build(place: Path, kernel: Built, patch: Patch | None) -> tuple[bytes, str]:
    root = place / "root"
    script = _BUILD.format(
        memory=_MEMORY >> 10, release=kernel.manifest.release, compiler=_compiler(root),
        patch_failed=_PATCH_FAILED, no_types=_NO_TYPES,
    )  # fmt: skip
    own = os.geteuid() == 0
    enter = _ENTER.format(disk=_DISK, user="--userspec=65534:65534" if own else "")
    command = ["unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"]
    command += [] if own else ["--user", "--map-root-user"]
    command += ["--", "sh", "-c", enter, "build", str(root), script]
    with host_faults("start the build"), tempfile.TemporaryFile() as given:
        given.write(_given(place, patch))
        given.seek(0)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
            try:
                status = subprocess.run(
                    mortal(command), stdin=given, stdout=out, stderr=log, timeout=SECONDS,
                    check=False,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                raise PatchRefused(f"the build takes more than {SECONDS} s") from None
            out.seek(0)
            log.seek(0)
            result, words = out.read(_RESULT + 1), log.read(_LOG).decode(errors="replace")
    if status == _PATCH_FAILED:
        lines = [line for line in words.splitlines() if "FAILED" in line or "can't find" in line]
        raise PatchRefused(f"the patch does not apply to {kernel.manifest.kernel}: "
                           + "; ".join(lines[:8]))  # fmt: skip
    if status or len(result) > _RESULT:
        lines = [
            line for line in words.splitlines() if "error" in line.lower()
        ] or words.splitlines()
        where = "; ".join(line.strip()[:160] for line in lines[:4])
        if patch is None or status == 1:
            raise LabError(
                f"kvm-amd cannot be built: {where}", hint="it needs root, or user namespaces"
            )
        raise PatchRefused(f"the patched kvm-amd does not compile: {where}")
    return result, words


def _compiler(root: Path) -> str:
    found = sorted(path.name for path in (root / "usr/bin").glob("gcc-[0-9]*"))
    if not found:
        raise LabError("the workshop has no compiler", hint=f"remove {root.parent}")
    return found[-1]


def _given(place: Path, patch: Patch | None) -> bytes:
    data = (place / "source.tar").read_bytes()
    if patch is None:
        return data
    out = io.BytesIO(data)
    with tarfile.open(fileobj=out, mode="a") as archive:
        entry = tarfile.TarInfo("change.patch")
        entry.size = len(patch.text)
        archive.addfile(entry, io.BytesIO(patch.text))
    return out.getvalue()


def _workshop(kernel: Built, progress: Progress) -> Path:
    item = Named(f"{cache.WORKSHOP}{kernel.manifest.kernel}")
    path = cache.folder() / item.name
    with cache.lock(item, shared=False, progress=progress):
        for left in cache.leftovers(item):
            cache.remove(left)
        if path.exists():
            return path
        with host_faults(f"make a directory in {cache.folder()}", hint=cache.HINT):
            work = Path(tempfile.mkdtemp(prefix=f".{item.name}.", dir=cache.folder()))
        try:
            _fill(kernel, work, progress)
            work.chmod(0o755)
            work.rename(path)
        except BaseException as error:
            cache.remove(work)
            if isinstance(error, (OSError, subprocess.SubprocessError)):
                raise LabError(f"{item.name} cannot be made: {error}", hint=cache.HINT) from error
            raise
    return path


def _fill(kernel: Built, work: Path, progress: Progress) -> None:
    manifest = kernel.manifest
    series = "{}.{}".format(*order_of(manifest.kernel))
    if manifest.suite != of_kernel(series).name:
        raise LabError(f"no suite of the catalogue has the source of {manifest.kernel}")
    source, _remarks = apt.updated(
        manifest.suite, manifest.mirror, work / "apt", progress, archive=apt.ARCHIVE
    )
    exact = (f"linux-headers-{manifest.release}", f"linux-source-{series}")
    wanted = (*(f"{name}={manifest.kernel}" for name in exact), *_TOOLS)
    archives = source.download(wanted, progress)
    sources = [path for name, path in archives.items() if name == exact[1]]
    others = [path for name, path in archives.items() if name != exact[1]]
    build.extract(manifest.kernel, others, work / "root", progress)
    progress.step(f"{manifest.kernel}: extracting the source of KVM")
    build.extract(manifest.kernel, sources, work / "source", progress)
    (packed,) = (work / "source/usr/src").glob("linux-source-*.tar.xz")
    top = packed.name.removesuffix(".tar.xz")
    tree = work / "tree"
    tree.mkdir()
    subprocess.run(
        mortal(["tar", "-C", str(tree), "--strip-components=1", "--no-same-owner", "-xJf",
                str(packed), *(f"{top}/{name}" for name in _SOURCE)]),
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(mortal(["tar", "-C", str(tree), "-cf", str(work / "source.tar"), *_SOURCE]),
                   check=True, capture_output=True)  # fmt: skip
    for name in ("apt", "source", "tree"):
        shutil.rmtree(work / name)
    root = work / "root"
    for name in ("build", "proc", "dev", "tmp"):
        (root / name).mkdir(exist_ok=True)
    (root / "dev/null").touch()
    for name, target in (("sh", "dash"), ("awk", "mawk")):
        if not os.path.lexists(root / "usr/bin" / name):
            (root / "usr/bin" / name).symlink_to(target)
