"""A real QEMU that does not run its guest: RAM with known content, saved in every way.

What is extracted from a stream is compared with what ``pmemsave`` of the same QEMU
says the guest's memory is.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

from qemu_svm.lab.box.emulator import program
from qemu_svm.lab.suites import build
from qemu_svm.lab.suites import catalogue as suites

PAGE = 4096
MIB = 1 << 20
MEMORY = 16
START = 1 << 20
"""Below are holes and device memory, which pmemsave shows and RAM does not."""
PATTERN_AT = 0x200000


@cache
def command(version: str) -> tuple[str, ...]:
    """Start of the command line of a QEMU: 7.2 is the host's, others come out of the cache."""
    installed = shutil.which("qemu-system-x86_64")
    assert installed is not None
    if version == "7.2":
        return (installed,)
    return tuple(program(build.need(suites.of_qemu(version))))


@cache
def pattern() -> bytes:
    """2.7 MiB: random pages, zero pages, text that compresses, half-empty pages."""
    rng = random.Random(1)
    kinds = (rng.randbytes(PAGE), bytes(PAGE), b"words " * 682 + b"done", rng.randbytes(9))
    return b"".join(
        (n.to_bytes(4, "big") + kinds[rng.randrange(4)])[:PAGE].ljust(PAGE, b"\0")
        if n % 5
        else bytes(PAGE)
        for n in range(700)
    )


class Monitor:
    """A QMP socket, as plainly as can be."""

    def __init__(self, path: Path) -> None:
        for _ in range(400):
            self._socket = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(OSError):
                self._socket.connect(str(path))
                break
            self._socket.close()
            time.sleep(0.05)
        self._file = self._socket.makefile("rw")
        self.run("qmp_capabilities")

    def run(self, name: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "return" in answer:
                return answer["return"]
            assert "error" not in answer, answer

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Guest:
    """QEMU with a guest that stands still; ended on every way out of ``with``."""

    def __init__(self, folder: Path, version: str = "7.2", *extra: str, name: str = "vm") -> None:
        self.folder = folder
        self.name = name
        self._kept: bytes | None = None
        (folder / "pattern").write_bytes(pattern())
        paths = {key: folder / f"{name}.{key}" for key in ("qmp", "qtest")}
        self._process = subprocess.Popen(
            [*command(version), "-accel", "tcg", "-M", "pc", "-m", str(MEMORY), "-nodefaults", "-S"]
            + ["-display", "none", "-qmp", f"unix:{paths['qmp']},server=on,wait=off"]
            + ["-qtest", f"unix:{paths['qtest']},server=on,wait=off", "-qtest-log", "none"]
            + ["-device", f"loader,file={folder}/pattern,addr={PATTERN_AT:#x},force-raw=on"]
            + list(extra),
            stdin=subprocess.DEVNULL,
        )
        try:
            self.monitor = Monitor(paths["qmp"])
            self._qtest = socket.socket(socket.AF_UNIX)
            self._qtest.connect(str(paths["qtest"]))
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.monitor.close()
        self._qtest.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, name: str, **arguments: Any) -> Any:
        return self.monitor.run(name, **arguments)

    def capabilities(self, *names: str) -> None:
        on = [{"capability": name, "state": True} for name in names]
        self.run("migrate-set-capabilities", capabilities=on)

    def parameters(self, **values: Any) -> None:
        self.run("migrate-set-parameters", **{k.replace("_", "-"): v for k, v in values.items()})

    def write(self, address: int, data: bytes) -> None:
        """Write memory as a device would: QEMU notes the page as dirty."""
        line = f"write {address:#x} {len(data)} 0x{data.hex()}\n"
        self._qtest.sendall(line.encode())
        assert self._qtest.recv(64).startswith(b"OK")

    def migrate(self, uri: str) -> None:
        self.run("migrate", uri=uri)

    def wait(self, status: str = "completed") -> None:
        for _ in range(3000):
            found = self.run("query-migrate")
            if found.get("status") == status:
                return
            assert found.get("status") != "failed", found
            time.sleep(0.02)
        raise AssertionError(found)

    def keep(self) -> None:
        """Take the memory down now: :meth:`truth` is what it is at this moment."""
        self._kept = self.truth()

    def truth(self) -> bytes:
        """The guest's memory from :data:`START` to its end."""
        if self._kept is not None:
            return self._kept
        path = self.folder / f"{self.name}.truth"
        size = (MEMORY << 20) - START
        self.run("pmemsave", val=START, size=size, filename=str(path))
        return path.read_bytes()


class Sink:
    """Stores what comes over each connection of a unix socket; may pass it on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.behind: Path | None = None
        self.got: list[bytearray] = []
        self._pairs: list[tuple[socket.socket, ...]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                ends: tuple[socket.socket, ...] = (near,)
                if self.behind is not None:
                    far = socket.socket(socket.AF_UNIX)
                    far.connect(str(self.behind))
                    ends = (near, far)
                    self._start(far, bytearray(), near)
                self._pairs.append(ends)
                self.got.append(bytearray())
                self._start(near, self.got[-1], ends[1] if len(ends) > 1 else None)

    def _start(self, one: socket.socket, into: bytearray, other: socket.socket | None) -> None:
        thread = threading.Thread(target=self._carry, args=(one, into, other), daemon=True)
        thread.start()
        self._threads.append(thread)  # only now: streams() waits for those in the list

    @staticmethod
    def _carry(one: socket.socket, into: bytearray, other: socket.socket | None) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                into += data
                if other is not None:
                    other.sendall(data)
        if other is not None:
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_WR)

    def wait_for_more(self, size: int) -> None:
        """Wait until so many bytes came since now."""
        have = sum(map(len, self.got))
        for _ in range(3000):
            if sum(map(len, self.got)) >= have + size:
                return
            time.sleep(0.01)
        raise AssertionError("nothing comes any more")

    def cut(self) -> None:
        """Break all connections, as a network does."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def streams(self) -> tuple[bytes, list[bytes]]:
        """The main stream and the others, when all connections have ended."""
        for thread in self._threads:
            thread.join(30)
        main = next(bytes(data) for data in self.got if data.startswith(b"QEVM"))
        return main, [bytes(data) for data in self.got if not data.startswith(b"QEVM")]

    def close(self) -> None:
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                end.close()


@contextlib.contextmanager
def sink(path: Path) -> Iterator[Sink]:
    """A :class:`Sink`, closed on every way out."""
    found = Sink(path)
    try:
        yield found
    finally:
        found.close()


def touch(guest: Guest, pages: Sequence[int], number: int) -> None:
    """Change a few bytes of each page."""
    for page in pages:
        guest.write(page + number % 1000, number.to_bytes(4, "big"))


def resend(guest: Guest, pages: Sequence[int]) -> None:
    """Change pages while a migration with XBZRLE goes on, until all are in its cache."""
    for number in range(1, 2000):
        touch(guest, pages, number)
        found = guest.run("query-migrate")
        if found.get("xbzrle-cache", {}).get("cache-miss", 0) >= len(pages):
            return
        assert found["status"] in ("setup", "active"), found
        time.sleep(0.05)
    raise AssertionError("no page was sent again")
