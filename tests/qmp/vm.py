"""A real, tiny QEMU: a guest that counts, its QMP socket, and a proxy to break."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from qemu_svm.errors import QmpError
from qemu_svm.qmp import sync

# 64 pages, each with a counter in its first four bytes, counted up in turn:
# mov ax,0x2000; next: mov ds,ax; inc dword [0]; add ax,0x100; cmp ax,0x6000;
# jne next; jmp start
_CODE = bytes.fromhex("b80020 8ed8 66ff060000 050001 3d0060 75f1 ebec")
BOOT_SECTOR = _CODE.ljust(510, b"\0") + b"\x55\xaa"
COUNTERS = range(0x20000, 0x60000, 0x1000)

QEMU = ("qemu-system-x86_64",)
UNMEASURED = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
"""Environment of a process that must not write, or wake up, for the measuring of coverage."""


class Vm:
    """A running QEMU with the counting guest; ended by :meth:`end`."""

    def __init__(
        self, folder: Path, *extra: str, command: tuple[str, ...] = QEMU, memory: int = 8,
        name: str = "vm", boots: bool = True,
    ) -> None:  # fmt: skip
        self.socket = folder / f"{name}.qmp"
        self.socket.unlink(missing_ok=True)
        self.log = folder / f"{name}.log"
        boot = folder / "boot.img"
        boot.write_bytes(BOOT_SECTOR)
        self.arguments = [
            *("-accel", "tcg", "-display", "none", "-vga", "none", "-net", "none"),
            *("-m", str(memory), "-boot", "order=a"),
            *("-drive", f"if=floppy,format=raw,readonly=on,file={boot}", *extra),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # The guest never rests: what tests it comes first.
                [*("nice", "-n", "5"), *command, *self.arguments]
                + ["-qmp", f"unix:{self.socket},server=on,wait=off"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._wait(boots and "-S" not in extra and "-incoming" not in extra)
        except BaseException:
            self.end()
            raise

    def _wait(self, boots: bool) -> None:
        end = time.monotonic() + 60
        while not self.socket.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
        while True:  # the socket's name is there before somebody listens
            try:
                qmp = sync.connect(self.address, connect_timeout=30.0)
                break
            except QmpError:
                assert time.monotonic() < end
                time.sleep(0.01)
        with qmp:
            while boots:
                text = qmp.execute("human-monitor-command", {"command-line": "xp /1wx 0x20000"})
                if int(text.split()[-1], 16):
                    break
                assert time.monotonic() < end
                time.sleep(0.02)

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    end = kill


@contextlib.contextmanager
def running(folder: Path, *extra: str, **options: object) -> Iterator[Vm]:
    machine = Vm(folder, *extra, **options)  # type: ignore[arg-type]
    try:
        yield machine
    finally:
        machine.end()


class Proxy:
    """Stands between a client and a QMP socket, and can cut the line."""

    def __init__(self, behind: Path, folder: Path) -> None:
        self.path = folder / "proxy.qmp"
        self.path.unlink(missing_ok=True)
        self._behind = behind
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(4)
        self._open: list[socket.socket] = []
        self.connections = 0
        self.asked = bytearray()  # by the clients
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._behind))
                self.connections += 1
                self._open += [near, far]
                for ends in ((near, far, self.asked), (far, near, bytearray())):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket, said: bytearray) -> None:
        # Descriptors are passed on too.
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(one, 1 << 16, 4)
                if not data:
                    break
                said += data
                if fds:
                    socket.send_fds(other, [data], fds)
                    for fd in fds:
                        socket.close(fd)
                else:
                    other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        # Not those that come in meanwhile.
        doomed, self._open = self._open, []
        for one in doomed:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        self.cut()
        self._listener.close()
