"""The recorder in a box: the ioctls of a command there, in a file here."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qemu_svm.errors import OutputExists
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.box.share import forget
from qemu_svm.lab.host import host_faults
from qemu_svm.recorder.probe import program


def refuse_existing(path: str) -> None:
    """Refuse a file that exists, before a box is started for it.

    :raises OutputExists: it exists.
    """
    if os.path.lexists(path):
        raise OutputExists(path)


@contextmanager
def recorded(
    box: BoxSession, path: str, *, how: str = "auto", buffer: int | None = None
) -> Iterator[Sequence[str]]:
    """Give the beginning of a command line whose rest is recorded in the box.

    Its exit status is that of the rest.  The recordings are here when the context ends, however
    it ends: those of further processes beside the first, with their number before the suffix.

    :param path: of the recording, JSON lines if it ends in ``.jsonl``; it must not exist.
    :param how: ``auto``, ``bpf`` or ``ptrace``.
    :param buffer: MiB between kernel and recorder (eBPF), a power of two; None for the usual size.
    :raises OutputExists: it exists.
    :raises LabError: the share or the file cannot be written.
    """
    refuse_existing(path)
    name = f"record-{secrets.token_hex(4)}"
    suffix = ".jsonl" if path.endswith(".jsonl") else ".rec"
    script = box.share / f"{name}.py"
    try:
        with host_faults(f"write {script}"):
            script.write_text(program())
        yield (
            "python3", f"/share/{name}.py", "-q", "--how", how,
            *(() if buffer is None else ("--buffer", str(buffer))),
            "-o", f"/share/{name}{suffix}", "--",
        )  # fmt: skip
    finally:
        forget(script)
        for made in sorted(box.share.glob(f"{name}*{suffix}")):
            _take(made, path, made.name.removeprefix(name).removesuffix(suffix))


def _take(made: Path, path: str, process: str) -> None:
    # A recording out of the share; `process` is empty for the first one.
    stem, suffix = os.path.splitext(path)
    target = f"{stem}{process}{suffix}"
    try:
        with host_faults(f"write {target}"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with made.open("rb") as source, open(os.open(target, flags, 0o600), "wb") as out:
                shutil.copyfileobj(source, out)
    finally:
        forget(made)
