"""A virtual machine under test: a QEMU with KVM in a box, controlled over QMP.

The counters of L1 and L2 are at known addresses of the guest's memory
(:mod:`qemu_svm.lab.guests.values`), so that progress can be observed without the
guest's cooperation.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import LabError, QmpError, Refused, SvmStreamError
from qemu_svm.lab.box.command import Command, Done
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.box.share import forget
from qemu_svm.lab.guests.values import ADDRESSES, WORLD
from qemu_svm.lab.host import host_faults
from qemu_svm.qmp import sync

_START_SECONDS = 60.0
_QUIT_SECONDS = 10.0
_POLL_SECONDS = 0.02
_MIGRATION_SECONDS = 600.0  # Linux as L1 has hundreds of MB to save
_COUNTER_WORDS = 8
_REASONS = 3
_ERRORS = 1 << 20  # bytes of QEMU's messages that are kept, the last
_REGISTERS = re.compile(r"[A-Z][A-Z0-9]{1,5} ?=|Code=")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a QEMU is started.

    :param machine: machine type, with options if any.
    :param cpu: CPU model of the guest.
    :param smp: number of vCPUs.
    :param memory: MiB.
    :param devices: further arguments of QEMU, which has no default devices.
    """

    machine: str = "pc"
    cpu: str = "host,+svm"
    smp: int = 1
    memory: int = 32
    devices: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Return QEMU's command line, without image, stream and monitor."""
        return [
            "qemu-system-x86_64", "-accel", "kvm", "-M", self.machine, "-cpu", self.cpu,
            "-m", str(self.memory), "-smp", str(self.smp), "-nodefaults", "-display", "none",
            *self.devices,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Counts:
    """The guest's counters, 32 bits each.

    :param exits: #VMEXITs that L1 has handled.
    :param l1, l2: iterations of L1's and of L2's loop.
    :param smm: SMIs that were handled.
    :param events: interrupts that L2 has taken.
    :param stop: exit code that L1 did not expect and stopped at; None if there is none.
    """

    exits: int
    l1: int
    l2: int
    smm: int
    events: int
    stop: int | None

    def advanced(self, before: Counts) -> dict[str, bool]:
        """Return whether each counter has changed since ``before``, by name."""
        names = ("exits", "l1", "l2", "smm", "events")
        return {name: getattr(self, name) != getattr(before, name) for name in names}


class Vm:
    """A QEMU in a box; made by :func:`running`."""

    def __init__(self, box: BoxSession, name: str, command: Command, errors: bytearray) -> None:
        self.box = box
        self._name = name
        self._command = command
        self._errors = errors
        self._qmp: sync.Connection | None = None

    @property
    def qmp(self) -> sync.Connection:
        """The QMP connection.

        :raises QmpError: it has none yet, or it was closed.
        """
        if self._qmp is None:
            raise QmpError("the QEMU in the box has no QMP connection")
        return self._qmp

    def connect(self, socket: Path) -> None:
        """Wait until QEMU listens on a QMP socket, and connect.

        :raises Refused: QEMU exited with an error instead.
        :raises QmpError: it does not listen.
        """
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._qmp = sync.connect(f"unix:{socket}")
            except QmpError:
                if not self._command.running():
                    raise Refused(f"QEMU does not start: {self.error()}") from None
                if time.monotonic() > end:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def words(self, address: int, count: int) -> list[int]:
        """Read 32-bit words of guest-physical memory.

        :raises LabError: there is no memory at this address.
        """
        text = self.monitor(f"xp /{count}wx {address:#x}")
        found = [word for line in text.splitlines() for word in line.partition(":")[2].split()]
        with suppress(ValueError):
            numbers = [int(word, 16) for word in found]
            if len(numbers) == count:
                return numbers
        raise LabError(f"QEMU's monitor shows no memory at {address:#x}: {text[:80]!r}")

    def monitor(self, line: str) -> str:
        """Run a command of the human monitor and return its output."""
        arguments = {"command-line": line}
        return str(self.qmp.execute("human-monitor-command", arguments))

    def counts(self) -> Counts:
        """Read the counters of L1 and L2."""
        start = ADDRESSES["L1_EXITS"]
        l1 = self.words(start, _COUNTER_WORDS)
        l2 = self.words(WORLD + start, _COUNTER_WORDS)

        def word(words: list[int], name: str) -> int:
            return words[(ADDRESSES[name] - start) // 4]

        return Counts(
            exits=word(l1, "L1_EXITS"),
            l1=word(l1, "L1_COUNT"),
            l2=word(l2, "L2_COUNT"),
            smm=word(l1, "SMM_COUNT"),
            events=word(l2, "L2_EVENTS"),
            stop=word(l1, "L1_STOPPED") if word(l1, "L1_STOPS") else None,
        )

    def save(self) -> Path:
        """Save into a file of the share; the guest is stopped afterwards.

        :returns: the path of the file on the host; the caller removes it.
        :raises Refused: QEMU refuses, or the migration fails.
        :raises LabError: the migration does not end.
        """
        name = f"{self._name}-{secrets.token_hex(4)}.mig"
        self.qmp.execute("migrate", {"uri": f"exec:cat > /share/{name}"})
        end = time.monotonic() + _MIGRATION_SECONDS
        while True:
            migration = self.qmp.migration()
            if migration.status == "completed":
                return self.box.share / name
            if migration.status in ("failed", "cancelled"):
                raise Refused(f"QEMU cannot save: {migration.error or migration.status}")
            if time.monotonic() > end:
                raise LabError(f"the migration did not end within {_MIGRATION_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)

    def load(self, name: str) -> None:
        """Restore from a file of the share and resume the guest.

        :param name: of the file in the share.
        :raises Refused: QEMU or KVM refuses the stream; the reason is QEMU's.
        :raises LabError: the restore does not end.
        :raises QmpError: the connection was lost, and QEMU gave no reason.
        """
        try:
            self.qmp.execute("migrate-incoming", {"uri": f"exec:cat /share/{name}"})
            self._loaded()
            if self.qmp.status().state == "paused":
                self.qmp.execute("cont")
        except QmpError:
            if self.box.oops() or self.ended() is None:
                raise
            raise Refused(self.error()) from None

    def _loaded(self) -> None:
        end = time.monotonic() + _MIGRATION_SECONDS
        while self.qmp.status().state == "inmigrate":
            migration = self.qmp.migration()
            if migration.status == "failed":
                raise Refused(migration.error or self.error())
            if time.monotonic() > end:
                raise LabError(f"the restore did not end within {_MIGRATION_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)

    def ended(self) -> Done | None:
        """Return the result of QEMU's process; None while it runs."""
        with suppress(LabError):
            # A connection is lost a moment before the end of its process.
            end = time.monotonic() + _QUIT_SECONDS
            while self._command.running() and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
            if not self._command.running():
                return self._command.wait(_QUIT_SECONDS)
        return None

    def error(self) -> str:
        """Return the reason that QEMU wrote to standard error, without warnings and registers."""
        text = self._errors.decode(errors="replace")
        lines = [line.removeprefix("qemu-system-x86_64: ") for line in text.splitlines() if line]
        reasons = [
            line for line in lines if not line.startswith("warning:") and not _REGISTERS.match(line)
        ]
        return "; ".join(reasons[-_REASONS:]) or "it gave no reason"

    def close(self) -> None:
        """End QEMU; never fails."""
        qmp, self._qmp = self._qmp, None
        if qmp is not None:
            with suppress(SvmStreamError):
                qmp.execute("quit")
            with suppress(SvmStreamError):
                qmp.close()
        with suppress(LabError):
            self._command.wait(_QUIT_SECONDS)


@contextmanager
def running(
    box: BoxSession,
    settings: Settings,
    *,
    image: bytes | None = None,
    waits: bool = True,
    trace: str | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Vm]:
    """Start a virtual machine in a box and end it with the context.

    :param image: of the guest, for ``-kernel``; without it QEMU waits for a stream.
    :param waits: False if QEMU shall not wait for a stream without an image either.
    :param trace: name of a file in the share for the log of ``kvm_vcpu_ioctl``.
    :param prefix: what is put before QEMU's command line.
    :raises Refused: QEMU does not start.
    :raises LabError: the share cannot be written, or the box has died.
    """
    name = f"vm-{secrets.token_hex(4)}"
    argv = [*prefix, *settings.arguments(), "-qmp", f"unix:/run/{name}.qmp,server=on,wait=off"]
    with ExitStack() as stack:
        if image is None and waits:
            argv += ["-incoming", "defer"]
        elif image is not None:
            file = box.share / f"{name}.image"
            stack.callback(forget, file)
            with host_faults(f"write {file}"):
                file.write_bytes(image)
            argv += ["-kernel", f"/share/{file.name}"]
        if trace is not None:
            argv += ["-trace", "kvm_vcpu_ioctl", "-D", f"/share/{trace}"]
        errors = bytearray()

        def keep(_stream: int, data: bytes) -> None:
            errors.extend(data)
            del errors[:-_ERRORS]

        vm = Vm(box, name, box.start(argv, sink=keep), errors)
        stack.callback(vm.close)
        vm.connect(box.forward(f"/run/{name}.qmp"))
        yield vm
