"""Captures of the guests, each demonstrably in the state that it is made for.

A save comes at any moment, so it is looked at: if a vCPU is not in the wanted
state, or a value is not where it belongs, the guest goes on and is saved again,
a bounded number of times.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.guests import Guest, Image, differences
from qemu_svm.lab.vm import Vm
from qemu_svm.machine import read_machine
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream

STEADY_TRIES = 12
"""Saves of a guest that nearly always is in its state."""

RARE_TRIES = 60
"""Saves of a guest whose state lasts for a moment only."""

_ALIVE_SECONDS = 60.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Capture:
    """A stream that shows what it should.

    :param path: a file in the box's share.
    :param tries: saves that it took.
    """

    path: Path
    tries: int


def wait_alive(vm: Vm, guest: Guest) -> None:
    """Wait until everything that the guest counts has moved.

    :raises LabError: it does not, or L1 took an exit that it did not expect.
    """
    before = vm.counts()
    end = time.monotonic() + _ALIVE_SECONDS
    while True:
        counts = vm.counts()
        if counts.stop is not None:
            raise LabError(
                f"guest '{guest.name}' stopped: L1 got #VMEXIT {counts.stop:#x}",
                hint="0xffffffff is INVALID: the host does not let this L2 run",
            )
        moved = counts.advanced(before)
        if all(moved[name] for name in guest.counters):
            return
        if time.monotonic() > end:
            still = ", ".join(name for name in guest.counters if not moved[name])
            raise LabError(
                f"guest '{guest.name}' does not run: no move in {_ALIVE_SECONDS:g} s of {still}"
            )
        time.sleep(_POLL_SECONDS)


def capture(vm: Vm, guest: Guest, image: Image) -> Capture:
    """Save a running guest, again and again until the stream shows what it should.

    The guest is left stopped; ``cont`` lets it go on.

    :raises LabError: it never was met in its state.
    """
    wait_alive(vm, guest)
    tries = STEADY_TRIES if guest.steady else RARE_TRIES
    wrong: list[str] = []
    for number in range(1, tries + 1):
        path = vm.save()
        wrong = list(examine(guest, image, path))
        if not wrong:
            return Capture(path, number)
        path.unlink()
        vm.qmp.execute("cont")
    raise LabError(
        f"guest '{guest.name}' was saved {tries} times and never as it should be: "
        + "; ".join(wrong[:3])
    )


def examine(guest: Guest, image: Image, path: Path) -> Iterator[str]:
    """Tell what in a stream is not as the guest is made to show it."""
    with open_source(str(path)) as source:
        machine = read_machine(read_stream(source))
        for problem in (*machine.stream.problems, *machine.problems):
            yield str(problem)
        yield from differences(guest, image, machine)
