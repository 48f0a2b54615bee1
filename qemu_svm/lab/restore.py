"""A stream restored into a real KVM in the box, and watched.

It is not enough that QEMU loads it: L2's counter must go on, and L1 must still
get its exits.  What does not work is an answer too: QEMU or KVM refuse, the
guest stands still, or the host's kernel crashes.
"""

from __future__ import annotations

import functools
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from qemu_svm.errors import LabError, QmpError, Refused
from qemu_svm.lab import linux
from qemu_svm.lab.box.console import headline
from qemu_svm.lab.box.session import Session
from qemu_svm.lab.guests import GUESTS, LINUX, Guest, assemble, values
from qemu_svm.lab.vm import Settings, Vm, running
from qemu_svm.machine import Machine
from qemu_svm.source import Source

_MOVE_SECONDS = 20.0
_POLL_SECONDS = 0.1
_OOPS_SECONDS = 2.0
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # else it could be options of QEMU
_GOOD = "L2 counts and L1 gets its exits"
_MIB = 1 << 20
_CHUNK = 1 << 20


class Verdict(StrEnum):
    """What became of a restore."""

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

    :param guest: name of the guest that was recognised, None if it is not one of ours.
    :param moved: counters that went on.
    """

    verdict: Verdict
    reason: str
    guest: str | None = None
    moved: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether the guest goes on as before."""
        return self.verdict is Verdict.GOES_ON


def settings_of(machine: Machine, name: str | None = None) -> Settings:
    """Return what a QEMU must be started with to take this stream.

    Serial ports are seen in the stream; other devices, that a machine need not have, are not.

    :param name: machine type if the stream's is not to be used.
    :raises Refused: the stream does not say it.
    """
    if name is None and machine.name is not None and not _TYPE.fullmatch(machine.name):
        raise Refused("the stream's machine type is no name", hint="name one with --machine")
    name = name or machine.name
    main = max(machine.blocks, key=lambda block: block.used_length, default=None)
    if name is None or main is None:
        raise Refused("the stream names no machine type or no RAM", hint="name one with --machine")
    serials = sum(record.name == "serial" for record in machine.stream.sections())
    return Settings(
        machine=name,
        smp=max(len(machine.vcpus), 1),
        memory=main.used_length // _MIB,
        devices=("-serial", "null") * serials,
    )


def put(box: Session, source: Source) -> str:
    """Copy a stream, decompressed, into a box's share; return its name there."""
    name = f"stream-{secrets.token_hex(4)}.mig"
    with (box.share / name).open("wb") as file:
        offset = 0
        while data := source.read_at(offset, _CHUNK):
            file.write(data)
            offset += len(data)
    return name


def restore(box: Session, name: str, settings: Settings) -> Outcome:
    """Restore a stream in a box, let it run, and say how it goes.

    :param name: of a file in the box's share.
    :raises LabError: the box died for another reason than the restore.
    """
    trouble = box.oops()
    if trouble is not None:
        raise LabError(
            f"the kernel in the box has crashed before: {headline(trouble)}",
            hint="take a fresh box",
        )
    try:
        with running(box, settings) as vm:
            vm.load(name)
            return _watch(vm)
    except Refused as error:
        return _crashed(box) or Outcome(Verdict.REFUSED, error.what)
    except (QmpError, LabError):
        crash = _crashed(box)
        if crash is None:
            raise
        return crash


def _crashed(box: Session) -> Outcome | None:
    # The kernel's words may come a moment after its deeds.
    end = time.monotonic() + _OOPS_SECONDS
    while time.monotonic() < end:
        trouble = box.oops()
        if trouble is not None:
            return Outcome(Verdict.CRASH, headline(trouble))
        time.sleep(_POLL_SECONDS)
    return None


def recognise(vm: Vm) -> Guest | None:
    """Which of our guests this is, by the image in its memory."""
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
        return _halted(vm, f"no move of {still} in {_MOVE_SECONDS:g} s", guest.name, moved)
    stop = vm.counts().stop
    if stop is not None:
        return Outcome(Verdict.WRONG_EXIT, f"L1 got #VMEXIT {stop:#x}", guest.name, moved)
    return Outcome(Verdict.GOES_ON, _GOOD, guest.name, moved)


def _watch_registers(vm: Vm) -> Outcome:
    if linux.is_running(vm):
        name = LINUX.name
        if linux.moves(vm, _MOVE_SECONDS):
            return Outcome(Verdict.GOES_ON, _GOOD, name, ("exits", "l2"))
        return _halted(vm, f"L2 does not count in {_MOVE_SECONDS:g} s", name, ())
    before = vm.monitor("info registers -a")
    if _until(vm, lambda: vm.monitor("info registers -a") != before):
        return Outcome(Verdict.GOES_ON, "not a guest of this project; its registers move")
    return _halted(vm, f"no register moves in {_MOVE_SECONDS:g} s", None, ())


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
    told = f"state {status.state}: {vm.last_words()}"
    return Outcome(Verdict.STOPPED, told, guest, moved)
