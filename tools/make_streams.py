"""Make one small stream of every kind with a real QEMU.

Usage: make_streams.py DIR [--qemu COMMAND] [KIND ...]

The guest is a boot sector that counts in 64 pages, so that pages are sent again.
Kinds that a QEMU does not support are reported and left out.  Kinds marked with a
version need at least that QEMU; Debian 12's 7.2 makes the others.  Kinds of another
architecture are made if that QEMU is installed (Debian: qemu-system-ppc,
qemu-system-misc) or given with --qemu.  Each stream is written as
DIR/qemuVERSION-KIND.mig.zst (further channels as .channelN), with a line in
DIR/kinds.json: how it was made and what it must contain.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

# mov ax,0x2000; next: mov ds,ax; inc dword [0]; add ax,0x100; cmp ax,0x6000;
# jne next; jmp start
BOOT = bytes.fromhex("b80020 8ed8 66ff060000 050001 3d0060 75f1 ebec")
BOOT_SECTOR = BOOT.ljust(510, b"\0") + b"\x55\xaa"

# li r3,8 (H_ENTER); r4 flags, r5 index 16, r6 valid, r7 memory coherence; sc 1; b .
PPC64 = bytes(0x100) + bytes.fromhex(
    "38600008 38800000 38a00010 38c00001 38e00010 44000022 48000000"
)
# A short PSW that points to 0x1000, and there: lghi r2,0x2000; lhi r1,0x30; lhi r3,16;
# sske r1,r2; aghi r2,4096; brct r3,sske; j .
S390X = bytes.fromhex("00080000 80001000").ljust(0x1000, b"\0") + bytes.fromhex(
    "a7292000 a7180030 a7380010 b22b0012 a72b1000 a736fffc a7f40000"
)


@dataclass(frozen=True)
class Kind:
    """How to make one kind: capabilities, parameters, arguments, target.

    ``{folder}`` in ``arguments`` is the working directory, ``before`` are QMP
    commands that are sent first, ``image`` is the program of a guest that is not a PC.
    """

    capabilities: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    target: str = "exec"
    least: tuple[int, int] = (5, 2)
    most: tuple[int, int] = (99, 0)
    running: bool = True
    about: str = ""
    before: tuple[tuple[str, dict[str, Any]], ...] = ()
    emulator: str = "x86_64"
    image: bytes = b""


# Firmware is large and not needed if no guest runs.
EMPTY = ("-bios", "{folder}/empty")
DISK = (*EMPTY, "-drive", "if=none,id=disk,node-name=node,file={folder}/disk,format=qcow2",
        "-device", "virtio-blk-pci,drive=disk")  # fmt: skip
WRITE = ("human-monitor-command", {"command-line": 'qemu-io disk "write -P 7 1M 128k"'})
BITMAPS = (
    ("block-dirty-bitmap-add", {"node": "node", "name": "kept", "persistent": True}),
    ("block-dirty-bitmap-add", {"node": "node", "name": "lost", "granularity": 4096}),
)
SHARED = ("-object", "memory-backend-file,id=pc.ram,size=16M,share=on,mem-path={folder}/ram",
          "-machine", "memory-backend=pc.ram")  # fmt: skip

KINDS: dict[str, Kind] = {
    "plain": Kind(running=False, about="ordinary precopy"),
    "resent": Kind(about="pages sent again and again"),
    "xbzrle": Kind(("xbzrle",), about="XBZRLE deltas"),
    "compress": Kind(("compress",), {"compress-threads": 1}, most=(9, 0), about="zlib pages"),
    "ignore-shared": Kind(("x-ignore-shared",), arguments=SHARED, about="RAM left out"),
    "multifd": Kind(("multifd",), {"multifd-channels": 2}, target="socket"),
    "multifd-zlib": Kind(
        ("multifd",), {"multifd-channels": 2, "multifd-compression": "zlib"}, target="socket"
    ),
    "multifd-zstd": Kind(
        ("multifd",), {"multifd-channels": 2, "multifd-compression": "zstd"}, target="socket"
    ),
    "mapped-ram": Kind(("mapped-ram",), target="file", least=(9, 0)),
    "mapped-ram-multifd": Kind(
        ("mapped-ram", "multifd"), {"multifd-channels": 2}, target="file", least=(9, 0)
    ),
    "background-snapshot": Kind(("background-snapshot",), least=(6, 0)),
    "no-description": Kind(arguments=("-machine", "suppress-vmdesc=on"), running=False),
    "postcopy": Kind(("postcopy-ram",), target="postcopy", about="devices in a package"),
    "postcopy-preempt": Kind(
        ("postcopy-ram", "postcopy-preempt"), {"max-postcopy-bandwidth": 100 << 10},
        target="postcopy", least=(7, 2), about="pages that were asked for, on a second connection",
    ),
    "dirty-bitmap": Kind(
        ("dirty-bitmaps",), arguments=DISK, before=(*BITMAPS, WRITE), running=False,
        about="two dirty bitmaps of a disk",
    ),
    "block": Kind(
        ("block",), arguments=DISK, before=(WRITE,), most=(9, 0), running=False,
        about="a disk of 4 MiB in chunks",
    ),
    "slirp": Kind(
        arguments=(*EMPTY, "-netdev", "user,id=net", "-device", "e1000,netdev=net,romfile="),
        running=False, about="user network and its card",
    ),
    "htab": Kind(
        arguments=("-M", "pseries", "-m", "256", "-nodefaults", "-bios", "{folder}/image"),
        emulator="ppc64", image=PPC64, about="ppc64 with an entry in its hash page table",
    ),
    "s390x": Kind(
        arguments=("-M", "s390-ccw-virtio", "-m", "16", "-nodefaults", "-kernel", "{folder}/image"),
        emulator="s390x", image=S390X, about="s390x with storage keys and attributes",
    ),
}  # fmt: skip


class Qmp:
    """A minimal QMP client on a socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        for _ in range(200):
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                time.sleep(0.05)
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


@contextmanager
def qemu(command: list[str], folder: Path, name: str, *extra: str) -> Iterator[Qmp]:
    """Run a QEMU with QMP; it is ended in any case."""
    path = folder / f"{name}.qmp"
    process = subprocess.Popen(
        [*command, "-accel", "tcg", "-display", "none", "-qmp",
         f"unix:{path},server=on,wait=off", *extra],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Qmp(path)
    finally:
        process.kill()
        process.wait()


def wait(qmp: Qmp, *states: str) -> dict[str, Any]:
    for _ in range(1200):
        info: dict[str, Any] = qmp("query-migrate")
        if info.get("status") in states:
            return info
        if info.get("status") == "failed":
            raise RuntimeError(f"migration failed: {info.get('error-desc')}")
        time.sleep(0.05)
    raise RuntimeError("the migration does not end")


def sink(path: Path, folder: Path) -> list[Path]:
    """Store each connection to a socket in a separate file."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    files: list[Path] = []

    def store(connection: socket.socket, file: Path) -> None:
        with connection, file.open("wb") as out:
            while data := connection.recv(1 << 16):
                out.write(data)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            files.append(folder / f"connection{len(files)}")
            threading.Thread(target=store, args=(connection, files[-1]), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return files


def proxy(path: Path, behind: Path, folder: Path) -> list[Path]:
    """Forward connections, and store the bytes from the source to the destination."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(4)
    files: list[Path] = []

    def carry(one: socket.socket, other: socket.socket, out: Any) -> None:
        while data := one.recv(1 << 16):
            if out:
                out.write(data)
                out.flush()
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)

    def accept() -> None:
        while True:
            near, _ = listener.accept()
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(behind))
            files.append(folder / f"connection{len(files)}")
            out = files[-1].open("wb")
            threading.Thread(target=carry, args=(near, far, out), daemon=True).start()
            threading.Thread(target=carry, args=(far, near, None), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return files


def make(kind: Kind, command: list[str], folder: Path) -> list[Path]:
    """Make one stream; return its files, the main channel first."""
    extra = [word.format(folder=folder) for word in kind.arguments]
    image = folder / "image"
    image.write_bytes(kind.image or BOOT_SECTOR)
    (folder / "empty").write_bytes(bytes(1 << 16))
    if not kind.image:
        extra += ["-vga", "none", "-net", "none", "-m", "16", "-boot", "order=a"]
        extra += ["-drive", f"if=floppy,format=raw,readonly=on,file={image}"]
    if "{folder}/disk" in " ".join(kind.arguments):
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", folder / "disk", "4M"], check=True
        )
    extra += [] if kind.running else ["-S"]
    with qemu(command, folder, "source", *extra) as qmp:
        if kind.running:
            time.sleep(3)
        for name, arguments in kind.before:
            qmp(name, **arguments)
        for capability in kind.capabilities:
            qmp("migrate-set-capabilities",
                capabilities=[{"capability": capability, "state": True}])  # fmt: skip
        if kind.parameters and kind.target != "postcopy":
            qmp("migrate-set-parameters", **kind.parameters)
        out = folder / "main"
        if kind.target == "socket":
            files = sink(folder / "sink", folder)
            qmp("migrate", uri=f"unix:{folder}/sink")
            wait(qmp, "completed")
            time.sleep(0.3)
            return sorted(files, key=lambda f: not f.read_bytes().startswith(b"QEVM"))
        if kind.target == "postcopy":
            return _postcopy(kind, qmp, command, folder, extra)
        uri = f"file:{out}" if kind.target == "file" else f"exec:cat>{out}"
        if kind.running:
            # Slow enough that pages change meanwhile.
            qmp("migrate-set-parameters", **{"max-bandwidth": 2 << 20, "downtime-limit": 1})
        qmp("migrate", uri=uri)
        if kind.running:
            time.sleep(1)
            qmp("stop")
        qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30, "downtime-limit": 2000})
        wait(qmp, "completed")
        return [out]


def _postcopy(
    kind: Kind, qmp: Qmp, command: list[str], folder: Path, extra: list[str]
) -> list[Path]:
    with qemu(command, folder, "destination", "-incoming", "defer", *extra) as other:
        on = [{"capability": name, "state": True} for name in kind.capabilities]
        other("migrate-set-capabilities", capabilities=on)
        other("migrate-incoming", uri=f"unix:{folder}/incoming")
        files = proxy(folder / "proxy", folder / "incoming", folder)
        qmp("migrate-set-parameters", **{"max-bandwidth": 200 << 10, "downtime-limit": 1})
        qmp("migrate-set-parameters", **kind.parameters)
        qmp("migrate", uri=f"unix:{folder}/proxy")
        time.sleep(1)
        qmp("migrate-start-postcopy")
        time.sleep(1)
        qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30, "max-postcopy-bandwidth": 0})
        wait(qmp, "completed")
        time.sleep(0.3)
    return files


@cache
def version_of(command: tuple[str, ...]) -> str:
    text = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\d+\.\d+\.\d+)", text.stdout)
    assert found is not None
    return found[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="*", help=", ".join(KINDS))
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    arguments = parser.parse_args()
    words = shlex.split(arguments.qemu)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    index = arguments.folder / "kinds.json"
    entries: dict[str, Any] = json.loads(index.read_text()) if index.exists() else {}
    for name in arguments.kinds or KINDS:
        kind = KINDS[name]
        command = [word.replace("system-x86_64", f"system-{kind.emulator}") for word in words]
        try:
            full = version_of(tuple(command))
        except OSError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        version = tuple(map(int, full.split(".")[:2]))
        if not kind.least <= version <= kind.most:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                files = make(kind, command, Path(folder))
            except (RuntimeError, OSError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            stem = f"qemu{version[0]}.{version[1]}-{name}"
            for number, file in enumerate(files):
                suffix = f".channel{number - 1}" if number else ".mig"
                data = zstandard.ZstdCompressor(level=19).compress(file.read_bytes())
                (arguments.folder / f"{stem}{suffix}.zst").write_bytes(data)
                print(f"{stem}{suffix}.zst {file.stat().st_size} -> {len(data)}")
            entries[stem] = {
                "qemu": full,
                "kind": name,
                "emulator": kind.emulator,
                "about": kind.about or name,
                "channels": len(files) - 1,
                "size": files[0].stat().st_size,
                "capabilities": list(kind.capabilities),
                "parameters": kind.parameters,
            }
    index.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
