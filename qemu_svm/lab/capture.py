"""Captures of the guests, each verified to be in the state that the guest is made for.

A guest is saved at an arbitrary moment, so the stream is examined: if a vCPU is not
in the wanted state, or a value is not where it belongs, the guest is resumed and
saved again, a limited number of times.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.box.share import forget
from qemu_svm.lab.guests import Guest, Image, differences
from qemu_svm.lab.vm import Vm
from qemu_svm.machine import read_machine
from qemu_svm.model.kernels.release import parse_if_any
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream

STEADY_TRIES = 12
"""How often a guest is saved that is in its state nearly always."""

RARE_TRIES = 60
"""How often a guest is saved whose state lasts only for a moment."""

_ALIVE_SECONDS = 60.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Capture:
    """A stream in the wanted state.

    :param path: a file in the box's share.
    :param tries: number of saves, this one included.
    :param flags: of the nested state of each vCPU; None if it has none.
    """

    path: Path
    tries: int
    flags: tuple[int | None, ...]


def wait_alive(vm: Vm, guest: Guest) -> None:
    """Wait until all counters of the guest have changed.

    :raises LabError: some do not, or L1 got a #VMEXIT that it did not expect.
    """
    before = vm.counts()
    end = time.monotonic() + _ALIVE_SECONDS
    while True:
        counts = vm.counts()
        if counts.stop is not None:
            raise LabError(
                f"guest '{guest.name}' stopped: L1 got #VMEXIT {counts.stop:#x}",
                hint="0xffffffff is VMEXIT_INVALID: the host refuses to run this L2",
            )
        moved = counts.advanced(before)
        if all(moved[name] for name in guest.counters):
            return
        if time.monotonic() > end:
            still = ", ".join(name for name in guest.counters if not moved[name])
            raise LabError(
                f"guest '{guest.name}' does not run: no change of {still} "
                f"within {_ALIVE_SECONDS:g} s"
            )
        time.sleep(_POLL_SECONDS)


def capture(vm: Vm, guest: Guest, image: Image) -> Capture:
    """Save a running guest, repeatedly until the stream is in the wanted state.

    The guest is stopped afterwards; ``cont`` resumes it.

    :raises LabError: no save was in the wanted state.
    :raises Refused: QEMU cannot save the guest.
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
        forget(path)
        vm.qmp.execute("cont")
    raise LabError(
        f"guest '{guest.name}' was saved {tries} times, never in the wanted state: "
        + "; ".join(wrong[:3])
    )


def examine(
    guest: Guest, image: Image, path: Path, kernel: str
) -> tuple[tuple[int | None, ...], list[str]]:
    """Return the nested flags of each vCPU, and the differences from the wanted state.

    :param kernel: release line of the host's kernel.
    :raises SourceError: the file cannot be read.
    """
    with open_source(str(path)) as source:
        machine = read_machine(read_stream(source))
        wrong = [str(problem) for problem in (*machine.stream.problems, *machine.problems)]
        wrong += differences(guest, image, machine, kernel)
    flags = (None if vcpu.nested is None else vcpu.nested.flags for vcpu in machine.vcpus)
    return tuple(flags), wrong


def line_of(version: str) -> str:
    """Return the release line of a kernel's package version: ``6.1`` for ``6.1.176-1``."""
    found = parse_if_any(version)
    return "" if found is None else f"{found.major}.{found.minor}"
