"""Where modules are built: headers, source and compiler of one kernel, in a root of their own.

The root has packages of the kernel's suite, extracted like those of a box.  A build runs in
namespaces of its own (mount, process ids, network without any interface, IPC), where that
root is mounted read-only and nothing else of the host is, as a user without rights; what it
writes is in memory with a limit and is gone with it.  Source and patch go in, and modules and
types come out, through pipes.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu_svm.errors import LabError, SourceError
from qemu_svm.lab.host import host_faults, mortal
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import build, cache
from qemu_svm.lab.suites.cache import Built, Named
from qemu_svm.lab.suites.catalogue import SUITES
from qemu_svm.lab.suites.kernels import order_of
from qemu_svm.lab.trial.ko import Ko
from qemu_svm.lab.trial.packages import fetched
from qemu_svm.lab.trial.patches import SOURCE, Patch, PatchRefused

SECONDS = 600
"""Limit of a build."""
ROOT = "/build/"
"""The directory of the source in a workshop."""
_LAYOUT = 2  # of a workshop; another one is made again
_MEMORY = 6 << 30  # bytes of address space of each process of a build
_PROCESSES = 200
_DISK = 1500  # MiB that a build may write
_FILE = 256 << 20  # bytes of each file
_RESULT = 64 << 20  # bytes
_LOG = 1 << 20
_SHOWN = 20  # remarks and warnings of a build
_ANYBODY = 1_900_000_000  # user ids from here on belong to nobody
_TOOLS = (
    *("make", "dwarves", "patch", "dash", "coreutils", "sed", "grep", "mawk", "findutils", "tar"),
    *("util-linux", "mount"),
)
_WARNING = re.compile(r"^\S*?((?:arch/x86|virt/kvm|include)/\S+): (warning|error): (.*)$", re.M)
_FILE_PATCHED = re.compile(r"(?:patching|checking) file '?([^']*)'?")
_HUNK = re.compile(r"Hunk #\d+ .*")
_MANIFEST = "workshop.json"
_OBJECTS = frozenset({".o", ".ko", ".cmd", ".mod", ".a"})
_COMPILER = re.compile(r"(?:x86_64-linux-gnu-)?gcc-\d+")
_ASSIGNMENT = re.compile(r"^(VERSION|PATCHLEVEL) *= *(\d+)$", re.M)
_LINES = "lines/"
# A function of one of the modules in an oops: RIP, and the call trace without its guesses.
_FRAME = re.compile(
    r"(?:RIP: [0-9a-f]+:|^ *)(?P<function>\w+)(?P<part>[\w.]*)\+(?P<offset>0x[0-9a-f]{1,6})/0x"
    r"[0-9a-f]+ \[(?P<module>kvm|kvm_amd)\b",
    re.M,
)
_PATCH_FAILED, _ALREADY, _NO_MODULE, _NO_TYPES = 10, 13, 11, 12

# The root becomes "/", and the host's is unmounted, before any of the patch is read.
_ENTER = """\
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount -t tmpfs -o size={disk}m,mode=0777 build "$1/build"
mount -t tmpfs -o size=200m,mode=1777 tmp "$1/tmp"
mount --bind /dev/null "$1/dev/null"
mount -t proc proc "$1/proc"
cd "$1"
pivot_root . host
exec /usr/bin/env -i PATH=/usr/bin:/bin HOME=/tmp LC_ALL=C \
    /usr/bin/dash -c '/usr/bin/umount -l /host && exec /usr/bin/prlimit {limits} \
    /usr/bin/setpriv {user} --no-new-privs --inh-caps=-all --bounding-set=-all \
    /usr/bin/dash -c "$0"' "$2"
"""

# Some suites have binutils under the names of a cross compiler only.
_NAMES = """\
mkdir /tmp/bin
for tool in objcopy objdump strip addr2line; do
    command -v $tool >/dev/null || ln -s /usr/bin/x86_64-linux-gnu-$tool /tmp/bin/$tool
done
PATH=$PATH:/tmp/bin
"""

_BUILD = """\
cd /build && tar -xf - || exit 1
if [ -f change.patch ]; then
    try() {{ patch -p1 --force --no-backup-if-mismatch "$@" < change.patch >&2; }}
    try --dry-run || {{ try -R --dry-run >/dev/null 2>&1 && exit {already}; exit {patch_failed}; }}
    try >/dev/null 2>&1 || exit {patch_failed}
fi
cd arch/x86/kvm
sed -e '/^obj-/d' -e 's,$(srctree)/arch/x86/kvm,$(src),g' \
    -e 's,$(srctree)/virt/kvm,$(src)/../../../virt/kvm,g' Makefile > Kbuild
echo 'obj-m := {objects}' >> Kbuild
echo 'ccflags-y += -I $(src) -I $(src)/../../../virt/kvm' >> Kbuild
own=
for place in arch/x86/include include arch/x86/include/uapi include/uapi; do
    own="$own -I/build/$place"
done
make -s -C /usr/src/linux-headers-{release} M=$PWD CC={compiler} HOSTCC={compiler} -j2 \
    NOSTDINC_FLAGS="-nostdinc$own -isystem $({compiler} -print-file-name=include)" modules >&2 \
    || exit {no_module}
cp kvm-amd.ko /build/types.ko
LLVM_OBJCOPY=objcopy pahole -J /build/types.ko >&2 || exit {no_types}
cd /build
objcopy -O binary --only-section=.BTF --set-section-flags .BTF=alloc types.ko types \\
    || exit {no_types}
mkdir lines
for file in {files}; do
    strip -g arch/x86/kvm/$file -o $file || exit {no_types}
    objcopy --compress-debug-sections=zlib arch/x86/kvm/$file lines/$file || exit {no_types}
done
tar -cf - {files} types lines
"""

_TYPES = """\
cd /build && tar -xf - || exit 1
LLVM_OBJCOPY=objcopy pahole -J types.ko >&2 || exit 1
objcopy -O binary --only-section=.BTF --set-section-flags .BTF=alloc types.ko types || exit 1
cat types
"""

_FIND_LINE = """\
cd /build && tar -xf - || exit 1
set -- $(objdump -t {file} | awk '$NF == "{function}" && / F / {{ print $1, $(NF - 2); exit }}')
[ $# = 2 ] || exit 1
addr2line -e {file} -j "$2" -f $(printf '%#x' $((0x$1 + {offset})))
"""


@dataclass(frozen=True, slots=True)
class Module:
    """A kvm-amd that was built, and the kvm that it needs if that was built as well.

    :param files: the modules by file name (``kvm-amd.ko``), without debug information.
    :param types: BTF of kvm-amd; None if its kernel has it, or nobody does.
    :param lines: the modules with debug information, by file name.
    :param remarks: what GNU patch said about hunks that did not fit exactly.
    :param warnings: of the compiler: file and line, text.
    :param source: the package of the source, and the suite that it is from.
    """

    files: Mapping[str, bytes]
    types: bytes | None
    lines: Mapping[str, bytes] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    source: str = ""


def built_module(
    kernel: Built,
    patch: Patch | None,
    *,
    source: bytes | None = None,
    progress: Progress = SILENT,
) -> Module:
    """Return kvm-amd of a kernel, with a patch or as it is; built if it is not in the cache.

    kvm is built too where the patch reaches it, or the source is another one.

    :param kernel: in the cache.
    :param source: in place of the kernel's, see :func:`packed_source`.
    :raises PatchRefused: the patch does not apply, or what it makes does not compile.
    :raises LabError: packages or programs are missing, or no suite has the source.
    """
    both = source is not None or (patch is not None and patch.reaches_kvm)
    names = ("kvm.ko", "kvm-amd.ko") if both else ("kvm-amd.ko",)
    version = kernel.manifest.kernel
    what = f"{version} {_BUILD} {names} {patch.digest if patch else ''}"
    key = hashlib.sha256(what.encode() + (source or b"")).hexdigest()
    path = cache.folder() / cache.MODULES / f"{kernel.name}-{key[:24]}.tar"
    with contextlib.suppress(FileNotFoundError):
        return _unpacked(path.read_bytes())
    item = Named(f"{cache.WORKSHOP}{version}")
    place = _workshop(item, kernel, progress)
    with cache.lock(item, shared=True, progress=progress):
        progress.step(f"building {' and '.join(names)} of {version}"
                      + (" with the patch" if patch else ""))  # fmt: skip
        origin = json.loads((place / _MANIFEST).read_text())["source"]
        if source is None:
            given = (place / "source.tar").read_bytes()
        else:
            given, origin = source, "a tree of its own"
        data, log = _build(place, kernel, _with_patch(given, patch), names,
                           changed=both or patch is not None)  # fmt: skip
    words = {
        "remarks": _hunks(log) if patch else [],
        "warnings": [f"{where}: {text}" for where, _, text in _WARNING.findall(log)][:_SHOWN],
        "source": origin,
    }
    made = _with_words(data, words)
    with host_faults(f"write {path}", hint=cache.HINT):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(made)
        os.rename(file.name, path)
    return _unpacked(made)


def own_types(version: str, *, progress: Progress = SILENT) -> bytes:
    """Return the BTF of a kernel's kvm-amd, built from the same source.

    :param version: of the kernel's package.
    :raises LabError: it is not in the cache, or cannot be built.
    """
    suites = [found for suite in SUITES if (found := cache.find(suite))]
    for kernel in (*suites, *cache.kernels()):
        if kernel.manifest.kernel == version:
            types = built_module(kernel, None, progress=progress).types
            assert types is not None
            return types
    raise LabError(f"Linux {version} is not in the cache")


def place_of(kernel: Built, module: Module, trouble: str) -> str:
    """Return function, file and line of the first function of KVM that an oops names.

    :param kernel: that the module is for.
    :param trouble: the oops as the kernel printed it.
    :returns: such as ``svm_set_nested_state, arch/x86/kvm/svm/nested.c:1669``; the function
        alone if it is not in the module, and an empty text if no function of KVM is named.
    """
    frame = _FRAME.search(trouble)
    if frame is None:
        return ""
    function = frame["function"] + frame["part"]
    file = frame["module"].replace("_", "-") + ".ko"
    root = cache.folder() / f"{cache.WORKSHOP}{kernel.manifest.kernel}" / "root"
    if file not in module.lines or not root.exists():
        return function
    script = _FIND_LINE.format(file=file, function=function, offset=frame["offset"])
    given = io.BytesIO()
    with tarfile.open(fileobj=given, mode="w") as archive:
        _add(archive, file, module.lines[file])
    status, out, _log = _in_workshop(root, script, given.getvalue())
    lines = out.decode(errors="replace").splitlines()
    if status or len(lines) != 2 or ":" not in lines[1]:
        return function
    inlined = "" if lines[0] == function else f" (inlined: {lines[0][:80]})"
    return f"{function}{inlined}, {lines[1].partition(' ')[0].removeprefix(ROOT)[:160]}"


def _hunks(log: str) -> list[str]:
    # What GNU patch says of hunks that did not fit exactly, by file and hunk.
    file, found = "", []
    for line in log.splitlines():
        if named := _FILE_PATCHED.match(line):
            file = named[1]
        elif _HUNK.match(line):
            found.append(f"{file}: {line[:160]}")
        elif line.startswith("can't find file to patch"):
            found.append("a file that is changed does not exist")
    return found[:_SHOWN]


def _with_words(data: bytes, words: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in (*_members(data).items(), ("words", json.dumps(words).encode())):
            _add(archive, name, content)
    return out.getvalue()


def _members(data: bytes) -> dict[str, bytes]:
    # The build is a stranger's: nothing in it is larger than what was read of it.
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for entry in archive:
                if entry.isreg() and not entry.issparse() and entry.size <= len(data):
                    content = archive.extractfile(entry)
                    found[entry.name] = content.read() if content is not None else b""
    except (tarfile.TarError, OSError, ValueError) as error:
        raise LabError(f"the build's result cannot be read: {error}") from None
    return found


def _unpacked(data: bytes) -> Module:
    members = _members(data)
    try:
        words = json.loads(members["words"])
        found = {name: content for name, content in members.items() if name.endswith(".ko")}
        lines = {name.removeprefix(_LINES): content for name, content in found.items()
                 if name.startswith(_LINES)}  # fmt: skip
        return Module(
            {name: content for name, content in found.items() if "/" not in name},
            members["types"], lines, tuple(words["remarks"]), tuple(words["warnings"]),
            words["source"],
        )  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        raise LabError(f"a module in the cache is damaged: {error}",
                       hint="remove the directory modules of the cache") from None  # fmt: skip


def _build(
    place: Path, kernel: Built, given: bytes, names: Sequence[str], *, changed: bool
) -> tuple[bytes, str]:
    root = place / "root"
    script = _BUILD.format(
        release=kernel.manifest.release, compiler=_compiler(root), files=" ".join(names),
        objects=" ".join(name.removesuffix(".ko") + ".o" for name in names),
        patch_failed=_PATCH_FAILED, already=_ALREADY, no_module=_NO_MODULE, no_types=_NO_TYPES,
    )  # fmt: skip
    status, result, words = _in_workshop(root, script, given)
    version = kernel.manifest.kernel
    if status == _ALREADY:
        raise PatchRefused(f"the patch does not apply to {version}: all of it is in it already")
    if status == _PATCH_FAILED:
        failed = [line for line in _hunks(words) if "succeeded" not in line]
        raise PatchRefused(f"the patch does not apply to {version}: {'; '.join(failed)}"
                           if failed else f"the patch does not apply to {version}")  # fmt: skip
    if status == 0 and len(result) <= _RESULT and {*names, "types"} <= _members(result).keys():
        return result, words
    where = _reasons(words)
    if not changed or status not in (0, _NO_MODULE, _NO_TYPES):
        hint = "it needs root, or user namespaces"
        raise LabError(f"KVM of {version} cannot be built: {where}", hint=hint)
    raise PatchRefused(f"the patched KVM does not compile: {where}")


def _reasons(log: str) -> str:
    # The first errors of a build: the compiler's, without make's summary of them.
    lines = [line.strip().removeprefix(ROOT) for line in log.splitlines()]
    wrong = [line for line in lines if "error" in line.lower()]
    own = [line for line in wrong if not line.startswith("make")]
    return "; ".join(line[:160] for line in (own or wrong or lines[-4:])[:4])


def _in_workshop(root: Path, script: str, given: bytes) -> tuple[int, bytes, str]:
    # Run a script in the root; return its status, what it wrote to standard output, and its log.
    own = os.geteuid() == 0
    limits = f"--as={_MEMORY} --fsize={_FILE} --core=0"
    user = ""
    if own:
        number = _ANYBODY + os.getpid()
        limits += f" --nproc={_PROCESSES}"
        user = f"--reuid={number} --regid={number} --clear-groups"
    enter = _ENTER.format(disk=_DISK, limits=limits, user=user)
    command = ["unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"]
    command += [] if own else ["--user", "--map-root-user"]
    command += ["--", "sh", "-c", enter, "build", str(root), _NAMES + script]
    with host_faults("start the build"), tempfile.TemporaryFile() as file:
        file.write(given)
        file.seek(0)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
            try:
                status = subprocess.run(
                    mortal(command), stdin=file, stdout=out, stderr=log, timeout=SECONDS,
                    check=False,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                raise PatchRefused(f"the build takes more than {SECONDS} s") from None
            out.seek(0)
            log.seek(0)
            return status, out.read(_RESULT + 1), log.read(_LOG).decode(errors="replace")


def _compiler(root: Path) -> str:
    names = sorted(path.name for path in (root / "usr/bin").glob("*gcc-[0-9]*"))
    found = [name for name in names if _COMPILER.fullmatch(name)]
    if not found:
        raise LabError("the workshop has no compiler", hint=f"remove {root.parent}")
    return found[-1]


def _with_patch(source: bytes, patch: Patch | None) -> bytes:
    if patch is None:
        return source
    out = io.BytesIO(source)
    with tarfile.open(fileobj=out, mode="a") as archive:
        _add(archive, "change.patch", patch.text)
    return out.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def packed_source(tree: Path, kernel: Built) -> bytes:
    """Return what a build needs of a kernel tree: KVM and its headers.

    Symbolic links and objects are left out.

    :raises SourceError: it is no kernel tree, or one of another series than the kernel.
    """
    series = "{}.{}".format(*order_of(kernel.manifest.kernel))
    with host_faults(f"read {tree}"):
        if not (tree / "arch/x86/kvm/svm/svm.c").is_file():
            raise SourceError(f"{tree} is no kernel tree: it has no arch/x86/kvm/svm/svm.c")
        top = tree / "Makefile"
        made = dict(_ASSIGNMENT.findall(top.read_text(errors="replace") if top.is_file() else ""))
        found = f"{made.get('VERSION')}.{made.get('PATCHLEVEL')}"
        if made and found != series:
            raise SourceError(f"{tree} is Linux {found}, the kernel of the box is {series}",
                              hint=f"--kernel {found}, if a suite has it")  # fmt: skip
        paths = sorted(
            path
            for pattern in SOURCE
            for place in tree.glob(pattern)
            for path in (place.rglob("*") if place.is_dir() else (place,))
            if path.is_file() and not path.is_symlink() and path.suffix not in _OBJECTS
        )
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for path in paths:
                if out.tell() > _RESULT:
                    raise SourceError(f"KVM in {tree} has more than {_RESULT >> 20} MiB")
                _add(archive, str(path.relative_to(tree)), path.read_bytes())
    return out.getvalue()


def types_of(kernel: Built, content: bytes, *, progress: Progress = SILENT) -> bytes | None:
    """Return the BTF of a kvm-amd that was built elsewhere, from its debug information.

    :param kernel: that it is for.
    :returns: None if it has no debug information.
    :raises LabError: packages or programs are missing.
    """
    if Ko("kvm-amd.ko", content).section(".debug_info") is None:
        return None
    item = Named(f"{cache.WORKSHOP}{kernel.manifest.kernel}")
    place = _workshop(item, kernel, progress)
    with cache.lock(item, shared=True, progress=progress):
        progress.step("reading the debug information of kvm-amd.ko")
        given = io.BytesIO()
        with tarfile.open(fileobj=given, mode="w") as archive:
            _add(archive, "types.ko", content)
        status, result, _log = _in_workshop(place / "root", _TYPES, given.getvalue())
    return result if status == 0 and result else None


def _workshop(item: Named, kernel: Built, progress: Progress) -> Path:
    path = cache.folder() / item.name
    with cache.lock(item, shared=False, progress=progress):
        for left in cache.leftovers(item):
            cache.remove(left)
        try:
            if json.loads((path / _MANIFEST).read_text())["layout"] == _LAYOUT:
                return path
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if path.exists():
            cache.remove(path)  # another layout
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
    version = kernel.manifest.kernel
    packages = fetched(kernel.manifest, _TOOLS, work / "apt", progress)
    build.extract(version, packages.tools, work / "root", progress)
    progress.step(f"{version}: extracting the source of KVM")
    build.extract(version, [packages.source], work / "source", progress)
    (packed,) = (work / "source/usr/src").glob("linux-source-*.tar.xz")
    top = packed.name.removesuffix(".tar.xz")
    tree = work / "tree"
    tree.mkdir()
    subprocess.run(
        mortal(["tar", "-C", str(tree), "--strip-components=1", "--no-same-owner", "--wildcards",
                "-xJf", str(packed), *(f"{top}/{name}" for name in SOURCE)]),
        check=True, capture_output=True,
    )  # fmt: skip
    places = sorted(path.name for path in tree.iterdir())
    subprocess.run(mortal(["tar", "-C", str(tree), "-cf", str(work / "source.tar"), *places]),
                   check=True, capture_output=True)  # fmt: skip
    for name in ("apt", "source", "tree"):
        shutil.rmtree(work / name)
    root = work / "root"
    for name in ("build", "proc", "dev", "tmp", "host"):
        (root / name).mkdir(exist_ok=True)
    (root / "dev/null").touch()
    for name, target in (("sh", "dash"), ("awk", "mawk")):
        if not os.path.lexists(root / "usr/bin" / name):
            (root / "usr/bin" / name).symlink_to(target)
    manifest = {"layout": _LAYOUT, "source": packages.origin}
    (work / _MANIFEST).write_text(json.dumps(manifest) + "\n")
