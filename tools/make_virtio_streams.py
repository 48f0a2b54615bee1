"""Make streams of machines whose virtio devices a Linux guest drives.

Usage: make_virtio_streams.py --linux ROOT [--qemu COMMAND] DIR [KIND ...]

ROOT is a folder with the unpacked packages (``dpkg-deb -x``) of a Debian 12 kernel and of
busybox-static; the guest is that kernel with all its virtio drivers.  RAM stays on the
host (x-ignore-shared), so a stream has device state only.  Of the stopped VM is recorded,
as DIR/qemuVERSION-KIND.truth.json, what QEMU says (x-query-virtio-status and
-queue-status; 5.2 has neither, and 11.1.2 ends in an assertion at the first) and what
Linux said (sysfs: features, status, PCI configuration space).  With --lspci also what that
program prints in the guest.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zstandard

MODULES = (
    "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_net",
    "virtio_console", "virtio_balloon", "virtio_rng", "virtio_input", "evdev", "virtio_gpu",
    "9pnet_virtio", "virtio_pmem", "virtio_iommu", "virtio_mem",
)  # fmt: skip

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module; done
/bin/busybox sleep 2
/bin/busybox ifconfig eth0 up
for disk in /dev/vda /dev/sda; do
    /bin/busybox dd if=$disk of=/dev/null bs=4096 count=16
done
/bin/busybox dd if=/dev/hwrng of=/dev/null bs=16 count=1
/bin/busybox sleep 1
for device in /sys/bus/virtio/devices/*; do
    parent=$(/bin/busybox readlink -f $device/..)
    state="$(/bin/busybox cat $device/features) $(/bin/busybox cat $device/status)"
    echo "VIRTIO ${parent##*/} $state"
    [ -e $parent/config ] && /bin/busybox hexdump -v -e '"PCI " 64/1 "%02x" "\\n"' $parent/config
done
[ -x /bin/lspci ] && /bin/lspci -nvv -A linux-sysfs | /bin/busybox sed 's/^/LSPCI /'
echo DONE
while true; do /bin/busybox sleep 1000; done
"""

# A named file: since 10.0 x-ignore-shared leaves out no other.
MEMORY = (
    "-m", "256",
    "-object", "memory-backend-file,id=ram,size=256M,share=on,mem-path={folder}/ram",
)  # fmt: skip
DISK = ("-drive", "if=none,id=DISK,file={folder}/disk,format=raw,snapshot=on")


def disk(name: str) -> tuple[str, ...]:
    """Arguments for one disk without a device."""
    return tuple(part.replace("DISK", name) for part in DISK)


def devices(*names: str) -> tuple[str, ...]:
    """Arguments for devices."""
    return tuple(part for name in names for part in ("-device", name))


BACKENDS = (
    *disk("blk"), *disk("scsi"), "-netdev", "user,id=net", "-chardev", "null,id=con",
    "-chardev", "null,id=port", "-object", "rng-random,id=rng,filename=/dev/urandom",
)  # fmt: skip

KINDS: dict[str, tuple[str, ...]] = {
    "pci": (
        "-M", "pc,memory-backend=ram", *BACKENDS, "-vga", "none",
        "-fsdev", "local,id=fs,path={folder},security_model=none",
        *devices(
            "virtio-blk-pci,drive=blk,num-queues=2", "virtio-scsi-pci,id=hba",
            "scsi-hd,drive=scsi,bus=hba.0", "virtio-net-pci,netdev=net,romfile=",
            "virtio-serial-pci,max_ports=40", "virtconsole,chardev=con",
            "virtserialport,chardev=port,name=port", "virtio-balloon-pci,deflate-on-oom=on",
            "virtio-rng-pci,rng=rng", "virtio-keyboard-pci", "virtio-gpu-pci",
            "virtio-9p-pci,fsdev=fs,mount_tag=tag",
        ),
    ),
    "packed": (
        "-M", "q35,memory-backend=ram", *BACKENDS, "-vga", "none",
        *devices(
            "pcie-root-port,id=p1,chassis=1", "virtio-blk-pci,drive=blk,bus=p1,packed=on",
            "pcie-root-port,id=p2,chassis=2", "virtio-net-pci,netdev=net,romfile=,bus=p2,packed=on",
            "pcie-root-port,id=p3,chassis=3", "virtio-scsi-pci,id=hba,bus=p3,packed=on",
            "scsi-hd,drive=scsi,bus=hba.0", "pcie-root-port,id=p4,chassis=4",
            "virtio-balloon-pci,bus=p4,packed=on,free-page-reporting=on",
        ),
    ),
    "legacy": (
        "-M", "pc,memory-backend=ram", *BACKENDS, "-vga", "none",
        *devices(
            "virtio-blk-pci,drive=blk,disable-modern=on,disable-legacy=off",
            "virtio-scsi-pci,id=hba,disable-modern=on,disable-legacy=off",
            "scsi-hd,drive=scsi,bus=hba.0",
            "virtio-net-pci,netdev=net,romfile=,disable-modern=on,disable-legacy=off,vectors=0",
            "virtio-rng-pci,rng=rng,disable-modern=on,disable-legacy=off",
        ),
    ),
    "mmio": (
        "-M", "microvm,memory-backend=ram", *BACKENDS,
        "-global", "virtio-mmio.force-legacy=false",
        *devices(
            "virtio-blk-device,drive=blk", "virtio-net-device,netdev=net",
            "virtio-scsi-device,id=hba", "scsi-hd,drive=scsi,bus=hba.0",
            "virtio-serial-device", "virtconsole,chardev=con", "virtio-rng-device,rng=rng",
            "virtio-balloon-device",
        ),
    ),
    "lspci": (
        "-M", "q35,memory-backend=ram", *BACKENDS, "-vga", "none",
        *devices(
            "pcie-root-port,id=p1,chassis=1,slot=1,addr=8",
            "virtio-net-pci,netdev=net,romfile=,bus=p1", "virtio-blk-pci,drive=blk",
            "virtio-rng-pci,rng=rng,disable-modern=on,disable-legacy=off",
            "nec-usb-xhci", "e1000", "ich9-intel-hda", "pci-bridge,id=b1,chassis_nr=2",
            "virtio-balloon-pci,bus=b1,addr=1",
        ),
    ),
    "memory": (
        "-M", "q35,memory-backend=ram", "-m", "256,maxmem=1G,slots=2", "-vga", "none",
        "-object", "memory-backend-file,id=plug,size=256M,share=on,mem-path={folder}/plug",
        "-object", "memory-backend-file,id=pmem,size=16M,share=on,mem-path={folder}/pmem",
        *devices(
            "virtio-iommu-pci,addr=3", "virtio-mem-pci,id=vm,memdev=plug,requested-size=128M",
            "virtio-pmem-pci,memdev=pmem",
        ),
    ),
}  # fmt: skip


class Qmp:
    """A minimal client."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run a command; the answer, or the error under ``error``."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                return answer


def archive(files: dict[str, bytes]) -> bytes:
    """A cpio archive (newc) of executable files, with their folders."""
    out = bytearray()
    folders = sorted({str(one) for name in files for one in Path(name).parents} - {"."})
    entries = [(name, 0o40755, b"") for name in folders]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    for number, (name, mode, data) in enumerate(entries):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields)
        out += name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def modules_of(root: Path) -> dict[str, bytes]:
    """The modules by file name, each after those that it depends on."""
    files = {path.name.partition(".")[0]: path for path in root.rglob("*.ko")}
    named = {name.replace("-", "_"): path for name, path in files.items()}
    found: dict[str, bytes] = {}

    def visit(name: str) -> None:
        path = named.get(name.replace("-", "_"))
        if path is None or path.name in found:
            return
        content = path.read_bytes()
        match = re.search(rb"\0depends=([^\0]*)\0", content)
        for one in (match[1].decode() if match else "").split(","):
            visit(one)
        found[path.name] = content

    for name in MODULES:
        visit(name)
    return found


def program(path: Path) -> dict[str, bytes]:
    """A program of this machine, and the libraries that it needs."""
    needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    libraries = map(Path, re.findall(r"(?<!\S)(/\S+)", needed))
    files = {str(library).lstrip("/"): library.read_bytes() for library in libraries}
    return {**files, f"bin/{path.name}": path.read_bytes()}


def guest(root: Path, folder: Path, programs: list[Path]) -> None:
    """Write kernel, initrd and disk."""
    modules = modules_of(root)
    files = {f"modules/{name}": data for name, data in modules.items()}
    files["modules/order"] = "\n".join(modules).encode()
    files["bin/busybox"] = next(root.rglob("bin/busybox")).read_bytes()
    for path in programs:
        files |= program(path)
    files["init"] = INIT.encode()
    (folder / "initrd").write_bytes(archive(files))
    (folder / "kernel").write_bytes(next(root.rglob("boot/vmlinuz-*")).read_bytes())
    (folder / "disk").write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))


@contextmanager
def running(qemu: list[str], kind: str, folder: Path) -> Iterator[Qmp]:
    """Run a VM until its guest has used all its devices."""
    console, control = folder / "console", folder / "qmp"
    for path in (console, control):
        path.unlink(missing_ok=True)
    accel = ("-accel", "tcg", "-cpu", "max", "-display", "none", "-monitor", "none", "-S")
    arguments = [part.format(folder=folder) for part in (*MEMORY, *KINDS[kind])]
    boot = ("-kernel", folder / "kernel", "-initrd", folder / "initrd")
    append = ("-append", "console=ttyS0 panic=-1 quiet nokaslr", "-serial", f"file:{console}")
    command = [*qemu, *arguments, *accel, *boot, *append]
    command += ["-qmp", f"unix:{control},server=on,wait=off"]
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL) as process:
        try:
            while not control.exists() and process.poll() is None:
                time.sleep(0.1)
            qmp = Qmp(control)
            qmp("cont")
            end = time.monotonic() + 300
            while b"DONE" not in (console.read_bytes() if console.exists() else b""):
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit(f"{kind}: the guest does not come up")
                time.sleep(0.5)
            qmp("stop")
            yield qmp
        finally:
            process.kill()


def of_qemu(qmp: Qmp, version: tuple[int, int]) -> list[dict[str, Any]]:
    """What QEMU says of its devices."""
    found = []
    listed = qmp("x-query-virtio")
    for device in listed if isinstance(listed, list) else ():
        one: dict[str, Any] = {"name": device["name"], "path": device["path"], "queues": []}
        if version < (11, 0):
            one["status"] = qmp("x-query-virtio-status", path=device["path"])
        while True:
            at = {"path": device["path"], "queue": len(one["queues"])}
            queue = qmp("x-query-virtio-queue-status", **at)
            if "error" in queue:
                break
            one["queues"].append(queue)
        found.append(one)
    return found


def of_guest(console: str) -> list[dict[str, Any]]:
    """What Linux said of them."""
    found: list[dict[str, Any]] = []
    for line in console.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "VIRTIO":
            parent, features, status = rest.split()
            value = sum(1 << bit for bit, digit in enumerate(features) if digit == "1")
            found.append({"parent": parent, "features": hex(value), "status": status, "config": ""})
        elif word == "PCI":
            found[-1]["config"] += rest
    return found


def of_lspci(console: str) -> list[str]:
    """What lspci printed in the guest; none if it was not there."""
    marked = (line.rstrip().partition("LSPCI ") for line in console.splitlines())
    return [text for before, mark, text in marked if mark and not before]


def make(qemu: list[str], kind: str, target: Path, folder: Path) -> None:
    """Make one stream and its truth."""
    with running(qemu, kind, folder) as qmp:
        full = qmp("query-version")["qemu"]
        version = (full["major"], full["minor"])
        console = (folder / "console").read_text(errors="replace")
        truth = {
            "qemu": f"{full['major']}.{full['minor']}.{full['micro']}",
            "linux": "6.1",
            "devices": of_qemu(qmp, version),
            "guest": of_guest(console),
        }
        if lines := of_lspci(console):
            truth["lspci"] = lines
        on = [{"capability": "x-ignore-shared", "state": True}]
        qmp("migrate-set-capabilities", capabilities=on)
        stream = folder / "stream"
        answer = qmp("migrate", uri=f"exec:cat > {stream}")
        if "error" in answer:
            raise SystemExit(f"not saved: {answer['error']['desc']}")
        while (status := qmp("query-migrate")["status"]) not in ("completed", "failed"):
            time.sleep(0.1)
        if status == "failed":
            raise SystemExit(f"not saved: {qmp('query-migrate')}")
    name = f"qemu{version[0]}.{version[1]}-{kind}"
    data = zstandard.ZstdCompressor(level=19).compress(stream.read_bytes())
    (target / f"{name}.mig.zst").write_bytes(data)
    (target / f"{name}.truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    print(f"{name}: {len(data)} bytes, {len(truth['guest'])} devices")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--linux", type=Path, required=True)
    parser.add_argument("--qemu", default="qemu-system-x86_64", type=shlex.split)
    parser.add_argument("--lspci", type=Path, action="append", default=[], metavar="PROGRAM")
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    chosen = parser.parse_args()
    chosen.target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        guest(chosen.linux, folder, chosen.lspci)
        for kind in chosen.kinds or KINDS:
            try:
                make(chosen.qemu, kind, chosen.target, folder)
            except (OSError, ValueError, SystemExit) as error:
                print(f"{kind}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
