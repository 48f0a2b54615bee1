"""Build of a suite: download, extract, record the versions, rename into place.

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
from qemu_svm.lab.host import host_faults, mortal
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import apt, cache
from qemu_svm.lab.suites.cache import Built, Manifest
from qemu_svm.lab.suites.catalogue import (
    DEFAULT_KERNEL,
    PACKAGES,
    Suite,
    is_of_line,
    of_kernel,
    of_qemu,
)
from qemu_svm.lab.suites.foreign import on_host

SPACE = 700 << 20
"""Bytes that must be free to build one suite: archives and extracted files together."""

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


def need(suite: Suite, *, mirror: str | None = None, progress: Progress = SILENT) -> Built:
    """Return a suite from the cache; build it if it is not there.

    :raises LabError: it cannot be built; the hint says what to do.
    """
    found = cache.find(suite)
    if found:
        return found
    with cache.lock(suite, shared=False, progress=progress):
        return cache.find(suite) or _build(suite, mirror or apt.host_mirror(), progress)


def need_for_box(options: Mapping[str, Any], progress: Progress = SILENT) -> str:
    """Build the suites that a box needs; return the release line of its kernel.

    :param options: arguments of :class:`qemu_svm.lab.Box`.
    :raises LabError: one cannot be built.
    """
    kernel = str(options.get("kernel", DEFAULT_KERNEL))
    suites = [of_kernel(kernel)]
    suites += [of_qemu(options[name]) for name in ("qemu", "emulator") if name in options]
    for suite in suites:
        need(suite, mirror=options.get("mirror"), progress=progress)
    return kernel


@contextlib.contextmanager
def using(
    suite: Suite, *, mirror: str | None = None, progress: Progress = SILENT
) -> Iterator[Built]:
    """Hold a suite, so that it is not removed meanwhile; build it if it is not in the cache.

    :raises LabError: it cannot be built.
    """
    while True:
        need(suite, mirror=mirror, progress=progress)
        with cache.lock(suite, shared=True, progress=progress):
            found = cache.find(suite)
            if found:
                yield found
                return


def _build(suite: Suite, mirror: str, progress: Progress) -> Built:
    # The lock is held.
    apt.require_tools()
    for path in cache.leftovers(suite):
        progress.note(f"{suite.name}: removing the files of an interrupted build")
        cache.remove(path)
    target = cache.folder() / suite.name
    if target.exists():
        cache.remove(target)  # another layout
    _check_space(suite)
    with host_faults(f"make a directory in {cache.folder()}", hint=cache.HINT):
        work = Path(tempfile.mkdtemp(prefix=f".{suite.name}.", dir=cache.folder()))
    try:
        manifest = _fill(suite, mirror, work, progress)
        manifest.save(work / "manifest.json")
        work.chmod(0o755)
        subprocess.run(["sync", "--file-system", str(work)], check=False)
        work.rename(target)
    except BaseException as error:
        cache.remove(work)
        if isinstance(error, (OSError, subprocess.SubprocessError)):
            raise LabError(
                f"{suite.name} cannot be built: {error}",
                hint=f"the cache is in {cache.folder()}; to move it, set XDG_CACHE_HOME",
            ) from error
        raise
    return Built(suite, target, manifest)


def _check_space(suite: Suite) -> None:
    free = shutil.disk_usage(cache.folder()).free
    if free < SPACE:
        raise LabError(
            f"no space to build {suite.name}: {free >> 20} MiB are free in {cache.folder()}, "
            f"{SPACE >> 20} MiB are needed",
            hint="free some, remove suites with `svmstream lab clean`, or set XDG_CACHE_HOME",
        )


def _fill(suite: Suite, mirror: str, work: Path, progress: Progress) -> Manifest:
    private = work / "apt"
    source, remarks = _updated(suite, mirror, private, progress)
    archives = source.download(PACKAGES, progress)
    root = work / "root"
    _extract(suite, list(archives.values()), root, progress)
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


def _updated(
    suite: Suite, mirror: str, private: Path, progress: Progress
) -> tuple[apt.Apt, list[str]]:
    # The mirror as given; without a check of its date if that has passed; the archive if the
    # suite has moved there.
    remarks: list[str] = []
    strict = True
    for _attempt in range(3):
        shutil.rmtree(private, ignore_errors=True)
        source = apt.Apt(private, suite.name, mirror, strict=strict)
        progress.step(f"{suite.name}: list of packages from {mirror}")
        try:
            source.update()
        except apt.Expired as error:
            if not strict:
                raise
            strict = False
            remarks.append(
                f"the Release file of {suite.name} on {mirror} expired {error.age} ago; "
                "it was used nevertheless"
            )
        except apt.Gone:
            if mirror == apt.ARCHIVE:
                raise
            remarks.append(f"{mirror} does not have {suite.name}; taken from {apt.ARCHIVE}")
            mirror = apt.ARCHIVE
        else:
            return source, remarks
        progress.note(remarks[-1])
    raise LabError(f"{suite.name} is not available from {mirror}")


def _extract(suite: Suite, archives: list[Path], root: Path, progress: Progress) -> None:
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    out = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
    for number, archive in enumerate(archives, 1):
        progress.step(f"{suite.name}: extracting", number, len(archives))
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
