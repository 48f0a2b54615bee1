"""Build of a suite or a kernel: download, extract, record the versions, rename into place.

No package is configured (no maintainer script runs), so no root is needed: a box
needs the files only.  Documentation, and drivers of hardware that the emulated
host does not have, are left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qemu_svm.errors import LabError
from qemu_svm.lab.box.emulator import program
from qemu_svm.lab.host import host_faults, mortal
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import apt, cache, kernels
from qemu_svm.lab.suites.cache import Built, Manifest
from qemu_svm.lab.suites.catalogue import (
    DEFAULT_KERNEL,
    PACKAGES,
    SUITES,
    Suite,
    is_of_line,
    of_qemu,
)
from qemu_svm.lab.suites.foreign import on_host
from qemu_svm.lab.suites.kernels import Kernel, Wanted
from qemu_svm.lab.suites.own import own_kernel

SPACE = 700 << 20
"""Bytes that must be free for one build: archives and extracted files together."""

What = Suite | Kernel | Wanted
"""What can be built: a suite, a kernel of an archive, or a kernel that is still to be found."""

_MERGED = ("bin", "sbin", "lib", "lib64")
_EMPTY = ("etc", "dev", "proc", "sys", "run", "tmp", "root", "share", "mnt", "var/tmp")
_LEFT_OUT = (
    "./usr/share/doc", "./usr/share/man", "./usr/share/info", "./usr/share/locale",
    "./boot/System.map-*",
    *(
        f"*/kernel/{name}"
        for name in (
            "sound", "drivers/gpu", "drivers/media", "drivers/net", "drivers/infiniband",
            "drivers/iio", "drivers/scsi", "drivers/usb", "drivers/staging", "drivers/hwmon",
            "drivers/input", "drivers/mtd", "drivers/isdn", "drivers/platform",
        )
    ),
)  # fmt: skip


def need(what: What, *, mirror: str | None = None, progress: Progress = SILENT) -> Built:
    """Return a suite or a kernel from the cache; build it if it is not there.

    A kernel that is wanted by its version may be that of a suite in the cache.

    :raises LabError: it cannot be had or built; the hint says what to do.
    """
    if isinstance(what, Wanted):
        kept = _kept(what)
        if kept and not what.whole_series:
            return kept
        try:
            what = kernels.find(what, mirror=mirror, progress=progress)
        except LabError:
            if kept is None:
                raise
            return kept  # without a network, the newest that is there
    found = cache.find(what)
    if found:
        return found
    with cache.lock(what, shared=False, progress=progress):
        return cache.find(what) or _build(what, mirror, progress)


def _kept(wanted: Wanted) -> Built | None:
    # The kernel as it is in the cache: the newest package of it, a suite's before others.
    suites = [found for suite in SUITES if (found := cache.find(suite))]
    met = [
        built for built in (*cache.kernels(), *suites)
        if wanted.is_met_by(built.manifest.kernel, built.manifest.release)
    ]  # fmt: skip
    return max(met, key=lambda built: kernels.sorting(built.manifest.kernel), default=None)


def need_for_box(options: Mapping[str, Any], progress: Progress = SILENT) -> str:
    """Build what a box needs; return the release of its kernel, as ``uname -r`` says it.

    :param options: arguments of :class:`qemu_svm.lab.Box`.
    :raises LabError: one cannot be built.
    """
    if "own" in options:
        return own_kernel(*map(Path, options["own"])).manifest.release
    kernel = kernels.wanted(str(options.get("kernel", DEFAULT_KERNEL)))
    needed: list[What] = [kernel]
    needed += [of_qemu(options[name]) for name in ("qemu", "emulator") if name in options]
    if "qemu" not in options:
        needed.append(kernels.user_land(kernel))
    built = [need(one, mirror=options.get("mirror"), progress=progress) for one in needed]
    return built[0].manifest.release


def require_for_box(kernel: str, *, qemu: str | None = None, emulator: str | None = None) -> None:
    """Check that a box can be started with what is here: a worker of others fetches nothing.

    :param kernel, qemu, emulator: arguments of :class:`qemu_svm.lab.Box`.
    :raises LabError: the emulator, the kernel or a suite is missing; the hint has the command.
    """
    program(None if emulator is None else cache.find(of_qemu(emulator)))
    wanted = kernels.wanted(kernel)
    there = _kept(wanted) if isinstance(wanted, Wanted) else cache.find(wanted)
    options = [] if there else [f"--kernel {kernel}"]
    suites = [kernels.user_land(wanted) if qemu is None else of_qemu(qemu)]
    suites += [] if emulator is None else [of_qemu(emulator)]
    options += [f"--qemu {one.qemu}" for one in suites
                if not cache.find(one) and f"--kernel {one.kernel}" not in options]  # fmt: skip
    if options:
        raise LabError(
            f"the lab's cache {cache.folder()} lacks what the box needs",
            hint=f"svmstream lab build {' '.join(dict.fromkeys(options))}",
        )


@contextlib.contextmanager
def using(what: What, *, mirror: str | None = None, progress: Progress = SILENT) -> Iterator[Built]:
    """Hold a suite or a kernel, so that it is not removed meanwhile; build it if need be.

    :raises LabError: it cannot be had or built.
    """
    while True:
        built = need(what, mirror=mirror, progress=progress)
        with cache.lock(built, shared=True, progress=progress):
            if cache.find(built) == built:
                yield built
                return


def _build(what: Suite | Kernel, mirror: str | None, progress: Progress) -> Built:
    # The lock is held.
    apt.require_tools()
    for path in cache.leftovers(what):
        progress.note(f"{what.name}: removing the files of an interrupted build")
        cache.remove(path)
    target = cache.folder() / what.name
    if target.exists():
        cache.remove(target)  # another layout
    _check_space(what)
    with host_faults(f"make a directory in {cache.folder()}", hint=cache.HINT):
        work = Path(tempfile.mkdtemp(prefix=f".{what.name}.", dir=cache.folder()))
    try:
        if isinstance(what, Suite):
            manifest = _fill(what, mirror or apt.host_mirror(), work, progress)
        else:
            manifest = _fill_kernel(what, work, progress)
        manifest.save(work / "manifest.json")
        work.chmod(0o755)
        subprocess.run(["sync", "--file-system", str(work)], check=False)
        work.rename(target)
    except BaseException as error:
        cache.remove(work)
        if isinstance(error, (OSError, subprocess.SubprocessError)):
            raise LabError(
                f"{what.name} cannot be built: {error}",
                hint=f"the cache is in {cache.folder()}; to move it, set XDG_CACHE_HOME",
            ) from error
        raise
    return Built(what.name, target, manifest)


def _check_space(what: cache.Item) -> None:
    free = shutil.disk_usage(cache.folder()).free
    if free < SPACE:
        raise LabError(
            f"no space to build {what.name}: {free >> 20} MiB are free in {cache.folder()}, "
            f"{SPACE >> 20} MiB are needed",
            hint="free some, remove suites with `svmstream lab clean`, or set XDG_CACHE_HOME",
        )


def _fill(suite: Suite, mirror: str, work: Path, progress: Progress) -> Manifest:
    private = work / "apt"
    source, remarks = apt.updated(suite.name, mirror, private, progress, archive=apt.ARCHIVE)
    archives = source.download(PACKAGES, progress)
    root = work / "root"
    extract(suite.name, list(archives.values()), root, progress)
    progress.step(f"{suite.name}: finishing")
    _finish(root)
    shutil.rmtree(private)
    packages = {name: apt.version_of(path) for name, path in archives.items()}
    release = _release(root)
    manifest = Manifest(
        suite=suite.name,
        mirror=source.mirror,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        release=release,
        packages=packages,
        remarks=tuple(remarks),
    )
    _check_lines(suite, manifest)
    return manifest


def _fill_kernel(kernel: Kernel, work: Path, progress: Progress) -> Manifest:
    private = work / "apt"
    source, remarks = apt.updated(kernel.suite, kernel.mirror, private, progress, archive=None)
    archives = source.download_only(kernel.packages, kernel.version, progress)
    root = work / "root"
    extract(kernel.name, list(archives.values()), root, progress)
    shutil.rmtree(private)
    release = _release(root)
    if release != kernel.release:
        raise LabError(f"{kernel.packages[0]} contains Linux {release}, not {kernel.release}")
    return Manifest(
        suite=kernel.suite,
        mirror=source.mirror,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        release=release,
        packages={name: apt.version_of(path) for name, path in archives.items()},
        remarks=tuple(remarks),
    )


def extract(name: str, archives: list[Path], root: Path, progress: Progress) -> None:
    """Extract packages into a root, without what a box does not need.

    :raises LabError: one cannot be extracted.
    """
    for place in _MERGED:
        (root / "usr" / place).mkdir(parents=True)
        (root / place).symlink_to(f"usr/{place}")
    out = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
    for number, archive in enumerate(archives, 1):
        progress.step(f"{name}: extracting", number, len(archives))
        with subprocess.Popen(
            mortal(["dpkg-deb", "--fsys-tarfile", str(archive)]), stdout=subprocess.PIPE
        ) as deb:
            tar = subprocess.run(
                mortal(["tar", "-C", str(root), "-xf", "-", "--keep-directory-symlink",
                        "--no-same-owner", *out]),
                stdin=deb.stdout, capture_output=True, text=True, check=False,
            )  # fmt: skip
        if tar.returncode or deb.returncode:
            raise LabError(
                f"{archive.name} cannot be extracted: {tar.stderr.strip()[-200:]}",
                hint="the disk is full, or the download is damaged: try again",
            )


def _finish(root: Path) -> None:
    # Do what maintainer scripts would do, as far as a box needs it.
    for name in _EMPTY:
        (root / name).mkdir(parents=True, exist_ok=True)
    applets = subprocess.run(
        [str(root / "usr/bin/busybox"), "--list-full"], capture_output=True, text=True, check=True
    ).stdout.split()
    for applet in applets:
        name = Path(applet).name
        if not any(os.path.lexists(root / "usr" / place / name) for place in ("bin", "sbin")):
            (root / "usr/bin" / name).symlink_to("busybox")
    etc = root / "etc"
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (etc / "group").write_text("root:x:0:\n")
    (etc / "hostname").write_text("box\n")
    (etc / "hosts").write_text("127.0.0.1 localhost box\n")
    _compile_python(root)


def _compile_python(root: Path) -> None:
    # The root is read-only in a box, where compiling at every import takes seconds.
    for library in root.glob("usr/lib/python3.*"):
        subprocess.run(
            mortal([
                *on_host(root, "usr/bin/python3"), "-m", "compileall", "-q",
                "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/",
                "-x", "/(test|idlelib|lib2to3|tkinter|ensurepip|pydoc_data)/", str(library),
            ]),
            env={"PYTHONHOME": str(root / "usr"), "PATH": os.defpath}, cwd="/",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip


def _release(root: Path) -> str:
    found = sorted(path.name for path in (root / "usr/lib/modules").iterdir())
    if len(found) != 1:
        raise LabError(f"expected one kernel, found {', '.join(found) or 'none'}")
    return found[0]


def _check_lines(suite: Suite, manifest: Manifest) -> None:
    # Testing changes its versions; they must still be those of the catalogue.
    for what, line, version in (
        ("kernel", suite.kernel, manifest.kernel),
        ("QEMU", suite.qemu, manifest.qemu),
    ):
        if not is_of_line(version, line):
            raise LabError(
                f"{suite.name} on {manifest.mirror} has {what} {version} now, not {line}",
                hint="for an older state: --mirror "
                "http://snapshot.debian.org/archive/debian/YYYYMMDDT000000Z",
            )
