"""Restore of a stream into a real KVM in a box, and observation of the guest.

It is not sufficient that QEMU loads it: L2 must continue to count, and L1 must still
get its exits.  A failure is a result too: QEMU or KVM refuses the stream, the guest
makes no progress, or the host's kernel crashes.
"""

from __future__ import annotations

import functools
import re
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum

from qemu_svm.errors import LabError, QmpError, Refused
from qemu_svm.lab import linux
from qemu_svm.lab.box.console import headline
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.guests import GUESTS, LINUX, Guest, assemble, values
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.recording import recorded
from qemu_svm.lab.vm import Settings, Vm, running
from qemu_svm.machine import Machine
from qemu_svm.source import Source

_MOVE_SECONDS = 20.0
_POLL_SECONDS = 0.1
_OOPS_SECONDS = 2.0
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # anything else could be QEMU options
_GOOD = "L2 counts and L1 gets its exits"
_REGISTERS = "registers change; the guest has no counters that this version of the lab knows"
_MIB = 1 << 20
_CHUNK = 1 << 20


class Verdict(StrEnum):
    """The result of a restore."""

    GOES_ON = "goes on"
    REFUSED = "refused"
    STANDS_STILL = "stands still"
    STOPPED = "stopped by QEMU"
    WRONG_EXIT = "wrong exit"
    CRASH = "host crashed"
    NOT_SAVED = "not saved"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict and its reason.

    :param guest: name of the guest that was recognised; None if it is not one of ours.
    :param moved: counters that changed after the restore.
    """

    verdict: Verdict
    reason: str
    guest: str | None = None
    moved: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether the guest continues as before."""
        return self.verdict is Verdict.GOES_ON


def settings_of(machine: Machine, name: str | None = None) -> Settings:
    """Return the settings of a QEMU that can load this stream.

    Serial ports are derived from the stream; other optional devices are not.

    :param name: machine type; None for the stream's.
    :raises Refused: the stream has no machine type that can be used, or no RAM.
    """
    if name is None and machine.name is not None and not _TYPE.fullmatch(machine.name):
        raise Refused("the stream's machine type is invalid", hint="give one with --machine")
    name = name or machine.name
    main = max(machine.blocks, key=lambda block: block.used_length, default=None)
    if name is None or main is None:
        raise Refused("the stream has no machine type or no RAM", hint="give one with --machine")
    serials = sum(record.name == "serial" for record in machine.stream.sections())
    return Settings(
        machine=name,
        smp=max(len(machine.vcpus), 1),
        memory=main.used_length // _MIB,
        devices=("-serial", "null") * serials,
    )


def copy_to_share(box: BoxSession, source: Source) -> str:
    """Copy a stream, decompressed, into a box's share; return its name there.

    :raises LabError: the share cannot be written.
    :raises SourceError: the stream cannot be read.
    """
    name = f"stream-{secrets.token_hex(4)}.mig"
    path = box.share / name
    with host_faults(f"write {path}"), path.open("wb") as file:
        offset = 0
        while data := source.read_at(offset, _CHUNK):
            file.write(data)
            offset += len(data)
    return name


def restore(
    box: BoxSession, name: str, settings: Settings, *, record: str | None = None, how: str = "auto"
) -> Outcome:
    """Restore a stream in a box, resume the guest, and observe it.

    :param name: of a file in the box's share.
    :param record: file for a recording of QEMU's ioctls.
    :param how: of the recording: ``auto``, ``bpf`` or ``ptrace``.
    :raises LabError: the box died for another reason than the restore, or before it.
    """
    trouble = box.oops()
    if trouble is not None:
        raise LabError(
            f"the kernel in the box has crashed before: {headline(trouble)}",
            hint="use a new box",
        )
    try:
        with ExitStack() as stack:
            prefix = () if record is None else stack.enter_context(recorded(box, record, how=how))
            vm = stack.enter_context(running(box, settings, prefix=prefix))
            vm.load(name)
            return _watch(vm)
    except Refused as error:
        return _crashed(box) or Outcome(Verdict.REFUSED, error.what)
    except (QmpError, LabError):
        crash = _crashed(box)
        if crash is None:
            raise
        return crash


def _crashed(box: BoxSession) -> Outcome | None:
    # The kernel's message may appear a moment after its effect.
    end = time.monotonic() + _OOPS_SECONDS
    while time.monotonic() < end:
        trouble = box.oops()
        if trouble is not None:
            return Outcome(Verdict.CRASH, headline(trouble))
        time.sleep(_POLL_SECONDS)
    return None


def recognise(vm: Vm) -> Guest | None:
    """Return which of our guests this is, by the image in its memory; else None."""
    known = _images()
    words = vm.words(values.IMAGE, max(map(len, known.values())) // 4 + 1)
    memory = b"".join(word.to_bytes(4, "little") for word in words)
    return next((GUESTS[name] for name, data in known.items() if memory.startswith(data)), None)


@functools.cache
def _images() -> dict[str, bytes]:
    return {name: assemble(guest).data for name, guest in GUESTS.items()}


def _watch(vm: Vm) -> Outcome:
    guest = recognise(vm)
    if guest is None:
        return _watch_registers(vm)
    before = vm.counts()
    moved: tuple[str, ...] = ()

    def goes_on() -> bool:
        nonlocal moved
        counts = vm.counts()
        moved = tuple(name for name, move in counts.advanced(before).items() if move)
        return counts.stop is not None or set(guest.counters) <= set(moved)

    if not _until(vm, goes_on):
        still = ", ".join(name for name in guest.counters if name not in moved)
        why = f"no change of {still} within {_MOVE_SECONDS:g} s"
        return _halted(vm, why, guest.name, moved)
    stop = vm.counts().stop
    if stop is not None:
        return Outcome(Verdict.WRONG_EXIT, f"L1 got #VMEXIT {stop:#x}", guest.name, moved)
    return Outcome(Verdict.GOES_ON, _GOOD, guest.name, moved)


def _watch_registers(vm: Vm) -> Outcome:
    if linux.is_running(vm):
        name = LINUX.name
        if linux.moves(vm, _MOVE_SECONDS):
            return Outcome(Verdict.GOES_ON, _GOOD, name, ("exits", "l2"))
        return _halted(vm, f"L2 does not count within {_MOVE_SECONDS:g} s", name, ())
    before = vm.monitor("info registers -a")
    if _until(vm, lambda: vm.monitor("info registers -a") != before):
        return Outcome(Verdict.GOES_ON, _REGISTERS)
    return _halted(vm, f"no register changes within {_MOVE_SECONDS:g} s", None, ())


def _until(vm: Vm, done: Callable[[], bool]) -> bool:
    end = time.monotonic() + _MOVE_SECONDS
    while not done():
        if time.monotonic() > end or not vm.qmp.status().running:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _halted(vm: Vm, why: str, guest: str | None, moved: tuple[str, ...]) -> Outcome:
    crash = _crashed(vm.box)
    if crash is not None:
        return crash
    status = vm.qmp.status()
    if status.running:
        return Outcome(Verdict.STANDS_STILL, why, guest, moved)
    reason = f"state {status.state}: {vm.error()}"
    return Outcome(Verdict.STOPPED, reason, guest, moved)
