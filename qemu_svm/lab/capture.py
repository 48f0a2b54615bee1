"""Captures of the guests, each demonstrably in the state that it is made for.

A save comes at any moment, so it is looked at: if a vCPU is not in the wanted
state, or a value is not where it belongs, the guest goes on and is saved again,
a bounded number of times.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.guests import Guest, Image, differences
from qemu_svm.lab.vm import Vm
from qemu_svm.machine import read_machine
from qemu_svm.model.releases import release
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
    :param flags: of the nested state of each vCPU, None where there is none.
    """

    path: Path
    tries: int
    flags: tuple[int | None, ...]


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
    kernel = line_of(vm.box.versions["kernel"])
    tries = STEADY_TRIES if guest.steady else RARE_TRIES
    wrong: list[str] = []
    for number in range(1, tries + 1):
        path = vm.save()
        flags, wrong = examine(guest, image, path, kernel)
        if not wrong:
            return Capture(path, number, flags)
        path.unlink()
        vm.qmp.execute("cont")
    raise LabError(
        f"guest '{guest.name}' was saved {tries} times and never as it should be: "
        + "; ".join(wrong[:3])
    )


def examine(
    guest: Guest, image: Image, path: Path, kernel: str
) -> tuple[tuple[int | None, ...], list[str]]:
    """Return the nested flags of each vCPU, and what is not as the guest is made to show it."""
    with open_source(str(path)) as source:
        machine = read_machine(read_stream(source))
        wrong = [str(problem) for problem in (*machine.stream.problems, *machine.problems)]
        wrong += differences(guest, image, machine, kernel)
    flags = (None if vcpu.nested is None else vcpu.nested.flags for vcpu in machine.vcpus)
    return tuple(flags), wrong


def line_of(version: str) -> str:
    """Release line of a kernel's package version: ``6.1`` of ``6.1.176-1``."""
    found = release(version)
    return "" if found is None else f"{found.major}.{found.minor}"
