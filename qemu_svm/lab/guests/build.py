"""Assembly of a guest into an image for QEMU's ``-kernel``, with GNU binutils.

Nothing is cached: assembling takes less time than looking up an old result.
The same sources and values result in the same bytes.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.guests import values
from qemu_svm.lab.guests.catalogue import Guest
from qemu_svm.lab.host import host_faults

_HERE = Path(__file__).parent
_PREFIXES = ("", "x86_64-linux-gnu-")  # the second is the cross tools' on other machines
_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Image:
    """An assembled guest.

    :param data: multiboot image, loaded at ``values.IMAGE``.
    :param symbols: addresses by label.
    """

    data: bytes
    symbols: Mapping[str, int]


def assemble(guest: Guest) -> Image:
    """Assemble and link a guest.

    :raises LabError: GNU binutils are missing, or report an error.
    """
    assembler, linker, lister = (_tool(name) for name in ("as", "ld", "nm"))
    table = values.symbols(guest.mode, nested_paging=guest.nested_paging) | dict(guest.symbols)
    with (
        host_faults(f"assemble the guest '{guest.name}'"),
        tempfile.TemporaryDirectory(prefix="svmstream-guest-") as folder,
    ):
        work = Path(folder)
        lines = [f".set {name}, {value:#x}\n" for name, value in table.items()]
        (work / "values.s").write_text("".join(lines) + '.include "common.inc"\n')
        # The assembler concatenates its files: first the values, then the guest.
        _run(assembler, "--64", "-I", _HERE, "-o", work / "guest.o", work / "values.s",
             _HERE / guest.source)  # fmt: skip
        start = f"{values.IMAGE:#x}"
        link = (linker, "-m", "elf_x86_64", f"-Ttext={start}", "-e", start)
        _run(*link, "-o", work / "guest.elf", work / "guest.o")
        _run(*link, "--oformat=binary", "-o", work / "guest.bin", work / "guest.o")
        symbols = {}
        for line in _run(lister, work / "guest.elf").splitlines():
            address, _kind, name = line.split()
            symbols[name] = int(address, 16)
        return Image((work / "guest.bin").read_bytes(), symbols)


def _tool(name: str) -> str:
    for prefix in _PREFIXES:
        found = shutil.which(prefix + name)
        if found is not None:
            return found
    raise LabError(
        f"the guests are assembled with GNU binutils, and '{name}' is not installed",
        hint="install the package binutils (on other than x86: binutils-x86-64-linux-gnu)",
    )


def _run(*argv: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in argv],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
        env={"LC_ALL": "C"},
    )
    if done.returncode:
        raise LabError(f"{Path(argv[0]).name} failed: {done.stderr.strip()}")
    return done.stdout
