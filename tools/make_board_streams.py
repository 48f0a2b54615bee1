"""Make a small stream of boards whose pages do not have 4096 bytes, with a real QEMU.

Usage: make_board_streams.py DIR [BOARD ...] [--folder FOLDER]

Nothing runs on the boards.  Most streams have no description (``suppress-vmdesc``), so
their page size must be found in the records.  Emulators are taken from FOLDER, else from
the PATH (Debian: qemu-system-arm, qemu-system-misc, qemu-system-sparc); those that are
missing are left out, and so are streams of more than 60 kB.  Each stream is written as
DIR/BOARD.mig.zst, with a line in DIR/boards.json: what made it and what it must contain.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent))

from make_streams import qemu, wait

FIRMWARE = "/usr/share/qemu"
LARGEST = 60_000
"""Bytes of a compressed stream that is kept."""


@dataclass(frozen=True)
class Board:
    """How to make one stream.

    :param page_size: of the target (``TARGET_PAGE_BITS``).
    """

    emulator: str
    machine: str
    page_size: int
    arguments: tuple[str, ...] = ()
    described: bool = False


BOARDS = {
    "avr": Board("avr", "mega2560", 256),
    "avr-described": Board("avr", "mega2560", 256, described=True),
    "alpha": Board("alpha", "clipper", 8192, ("-m", "16")),
    "sun4u": Board("sparc64", "sun4u", 8192, ("-m", "16")),
    "vexpress": Board("arm", "vexpress-a9", 1024, ("-m", "16")),
    "raspi": Board("arm", "raspi0", 1024),
    "ast2600": Board("arm", "ast2600-evb", 1024, ("-m", "1G")),
    "virt-arm": Board("arm", "virt", 4096, ("-m", "16")),
    "microbit": Board("arm", "microbit", 1024),
    "riscv": Board("riscv64", "virt", 4096, ("-m", "16")),
}


def make(board: Board, emulator: str, folder: Path) -> bytes:
    """Return the stream of a board on which nothing runs."""
    machine = board.machine if board.described else f"{board.machine},suppress-vmdesc=on"
    command = [emulator, "-M", machine, "-S", "-nodefaults", "-L", FIRMWARE]
    command += board.arguments
    out = folder / "main"
    with qemu(command, folder, "source") as qmp:
        qmp("migrate", uri=f"exec:cat>{out}")
        wait(qmp, "completed")
    return out.read_bytes()


def main() -> int:
    """Make what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--folder", help="of the emulators")
    parser.add_argument("boards", nargs="*", metavar="BOARD", help=", ".join(BOARDS))
    given = parser.parse_args()
    given.directory.mkdir(exist_ok=True)
    listing = given.directory / "boards.json"
    found = json.loads(listing.read_text()) if listing.exists() else {}
    for name in given.boards or BOARDS:
        board = BOARDS[name]
        emulator = shutil.which(f"qemu-system-{board.emulator}", path=given.folder)
        if emulator is None:
            print(f"{name}: no qemu-system-{board.emulator}; left out")
            continue
        version = subprocess.run(
            [emulator, "--version"], capture_output=True, text=True, check=True
        )
        with tempfile.TemporaryDirectory() as folder:
            stream = make(board, emulator, Path(folder))
        packed = zstandard.compress(stream, 19)
        print(f"{name}: {len(stream)} bytes, {len(packed)} compressed")
        if len(packed) > LARGEST:
            print(f"{name}: too large; left out")
            continue
        (given.directory / f"{name}.mig.zst").write_bytes(packed)
        found[name] = {
            "qemu": version.stdout.split()[3], "emulator": board.emulator,
            "machine": board.machine, "page_size": board.page_size,
            "described": board.described, "size": len(stream),
        }  # fmt: skip
    listing.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
