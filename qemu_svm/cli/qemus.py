"""The values of ``--qemu``: a version or a binary, whichever of the two a verb needs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from qemu_svm.lab.suites.cache import Built
    from qemu_svm.lab.suites.catalogue import Suite

_VERSION = re.compile(r"v?(\d{1,3}(?:\.\d{1,3}){0,2})", re.ASCII)
_SAID = re.compile(r"version (\d+\.\d+(?:\.\d+)?)", re.ASCII)
_NAMES = ("qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm", "kvm")
"""What distributions call QEMU."""

_ANSWER_SECONDS = 20


def version(text: str) -> str:
    """Return a version, such as ``7.2`` or ``7.2.22``; of a binary, the one that it reports.

    :raises BadParameter: it is neither.
    """
    return _stated(text) or _version_of(text)


def binary(text: str) -> str:
    """Return a binary; of a version, a QEMU of this host or of the lab's cache that has it.

    :raises EnvironmentFault: no QEMU has this version.
    """
    stated = _stated(text)
    return text if stated is None else _with_version(stated)


def line(text: str) -> str:
    """Return the release line of a QEMU of the lab; of a binary, the line that it is of.

    :raises BadParameter: the lab has none.
    """
    from qemu_svm.lab.suites.catalogue import QEMUS, is_of_line

    wanted = version(text)
    for one in QEMUS:
        if is_of_line(wanted, one):
            if wanted != one:
                said = f"svmstream: QEMU {wanted}: the lab has {one} as Debian updates it"
                click.echo(said, err=True)
            return one
    raise click.BadParameter(f"the lab has no QEMU {wanted}: it has {', '.join(QEMUS)}")


def lines(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the release lines of the lab, for completion."""
    from qemu_svm.lab.suites.catalogue import QEMUS

    return [one for one in QEMUS if one.startswith(incomplete)]


def _stated(text: str) -> str | None:
    found = _VERSION.fullmatch(text.strip())
    return None if found is None else found[1]


def _version_of(text: str) -> str:
    program = shutil.which(text)
    if program is None:
        raise click.BadParameter(f"{text!r} is neither a version such as 7.2 nor a QEMU")
    said = _said_by(program)
    if said is None:
        raise click.BadParameter(f"{text!r} does not say a QEMU version (--version)")
    return said


def _said_by(program: str) -> str | None:
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_ANSWER_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _SAID.search(done.stdout[:4096].decode("utf-8", "replace"))
    return None if found is None else found[1]


def _with_version(wanted: str) -> str:
    from qemu_svm.errors import EnvironmentFault
    from qemu_svm.lab.suites import cache
    from qemu_svm.lab.suites.catalogue import QEMUS, SUITES, is_of_line

    seen = []
    for program in dict.fromkeys(filter(None, map(shutil.which, _NAMES))):
        said = _said_by(program)
        if said is not None and is_of_line(said, wanted):
            return program
        if said is not None:
            seen.append(f"{program} is {said}")
    for suite in SUITES:
        built = cache.find(suite)
        if built is not None and is_of_line(built.manifest.qemu, wanted):
            return _script(suite, built)
    exact = wanted in QEMUS
    raise EnvironmentFault(
        f"no QEMU {wanted} on this host" + (f": {', '.join(seen)}" if seen else ""),
        hint=f"svmstream lab build --qemu {wanted}" if exact else "give the binary itself",
    )


def _script(suite: Suite, built: Built) -> str:
    # A QEMU of the cache needs its own loader, libraries and firmware: a script names them.
    from qemu_svm.lab.box.emulator import program
    from qemu_svm.lab.host import host_faults
    from qemu_svm.lab.suites import cache

    click.get_current_context().with_resource(cache.lock(suite, shared=True))
    folder = built.path / "on-host"
    script, binary = folder / "qemu-system-x86_64", folder / "qemu"
    original = built.root / "usr/bin/qemu-system-x86_64"
    words = [str(binary) if one == str(original) else one for one in program(built)]
    text = f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'.encode()
    with host_faults(f"write {script}", hint=cache.HINT):
        if not script.exists() or script.read_bytes() != text:
            folder.mkdir(exist_ok=True)
            _write(binary, original.read_bytes().replace(_HOST_MODULES, _NO_MODULES))
            _write(script, text)
    return str(script)


def _write(path: Path, content: bytes) -> None:
    # Whole or not at all: another process may do the same.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o755)
    os.replace(file.name, path)


_HOST_MODULES = b"\0/usr/lib/x86_64-linux-gnu/qemu\0"
_NO_MODULES = b"\0/dev/null".ljust(len(_HOST_MODULES) - 1, b"/") + b"\0"
"""Where QEMU looks for modules beside its own; with those of the host's QEMU it aborts."""
