"""A box whose emulator has svmtrace in it, and restores in it.

One box serves many restores, one after the other: what a restore did is the part of
the log behind the last record that was there before.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from qemu_svm.errors import LabError, QmpError, Truncated
from qemu_svm.findings.witness import Witness, witness
from qemu_svm.lab import suites, svmtrace
from qemu_svm.lab.box import Box
from qemu_svm.lab.console import headline
from qemu_svm.lab.restore import put, settings_of
from qemu_svm.lab.vm import Settings, running
from qemu_svm.machine import Machine
from qemu_svm.restore import plan as plans
from qemu_svm.restore.kernels import measured_on
from qemu_svm.restore.saved import from_vcpu, guest_cpuid
from qemu_svm.restore.simulate import simulate
from qemu_svm.restore.vcpu import Host
from qemu_svm.source import Source, open_source
from qemu_svm.vmruns.log import read_log
from qemu_svm.vmruns.reader import Event, LogReader
from qemu_svm.vmruns.structs import Kind

_POLL_SECONDS = 0.1
EMULATOR = svmtrace.EMULATORS[0]


class WitnessBox:
    """A box and the log of its processor.  Use it with ``with``.

    :param box: more arguments of :class:`qemu_svm.lab.Box`.
    """

    def __init__(
        self, kernel: str, *, emulator: str = EMULATOR, npt: bool = True, **box: Any
    ) -> None:
        if emulator not in svmtrace.EMULATORS:
            known = ", ".join(svmtrace.EMULATORS)
            raise LabError(
                f"QEMU {emulator} cannot show what the processor is given",
                hint=f"the plugin svmtrace works in {known}",
            )
        self.npt = npt
        self._make: Callable[..., Box] = partial(Box, kernel, emulator=emulator, npt=npt, **box)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="svmtrace-"))
            self.log = Path(folder) / "log"
            made = self._make(emulator_args=svmtrace.arguments(self.log))
            self.box = stack.enter_context(made)
            self._follower = Follower(stack.enter_context(open_source(str(self.log))))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def restore(self, source: Source, settings: Settings, *, seconds: float) -> range:
        """Restore a stream by QEMU, and let it run until L1 had control and gave it back.

        :param seconds: how long to wait for that.
        :returns: the numbers of the records that tell of it.
        :raises Refused: QEMU or KVM says no.
        """
        first = self._follower.skip()
        name = put(self.box, source)
        try:
            with running(self.box, settings) as vm:
                vm.load(name)
                end = time.monotonic() + seconds
                while not self._follower.came_back() and time.monotonic() < end:
                    time.sleep(_POLL_SECONDS)
                    if not vm.qmp.status().running:
                        break
        except QmpError:
            trouble = self.box.oops()
            if trouble is None:
                raise
            raise LabError(f"the kernel in the box died: {headline(trouble)}") from None
        finally:
            with suppress(OSError):
                (self.box.share / name).unlink()
        return range(first, self._follower.last + 1)


class Follower:
    """Reads a log while it grows.  ``last`` is the number of the last record it took."""

    def __init__(self, source: Source) -> None:
        self._reader = LogReader(source)
        self._gave_up = False
        self.last = 0

    def _events(self) -> Iterator[Event]:
        try:
            for event in self._reader:
                self.last = event.number
                yield event
        except Truncated:
            return  # the rest is being written

    def skip(self) -> int:
        """Take all there is; return the number of the next record."""
        for _ in self._events():
            pass
        self._gave_up = False
        return self.last + 1

    def came_back(self) -> bool:
        """Whether, since the last skip, a guest executed VMRUN and another entry followed."""
        for event in self._events():
            if event.kind != Kind.VMRUN:
                continue
            if self._gave_up and not event.in_guest:
                return True
            self._gave_up = self._gave_up or event.in_guest
        return False


def hear(
    bench: WitnessBox, machine: Machine, plan: str | None = None, *, seconds: float
) -> Witness:
    """Restore a stream under the witness, and hold it against stream and model.

    :param plan: by these ioctls; None lets QEMU do it.
    :raises Refused: QEMU or KVM says no.
    """
    if plan is not None:
        raise LabError("a plan")
    saved = from_vcpu(machine.vcpus[0])
    kernel = measured_on(bench.box.versions["kernel"])
    if kernel is None:
        raise LabError(f"there is no profile of kernel {bench.box.versions['kernel']}")
    steps = plans.parse("qemu" if plan is None else plan)
    host = Host(npt=bench.npt, cpuid=guest_cpuid(saved))
    simulation = simulate(kernel, saved, steps, host=host)
    failed = next((one for one in simulation.results if one.failed), None)
    if failed is not None:
        # QEMU ends the put of a vCPU at the first error; up to 8.x it runs it all the same.
        steps = (*steps[: failed.number], *plans.parse("run"))
        simulation = simulate(kernel, saved, steps, host=host)
    part = bench.restore(machine.stream.source, settings_of(machine), seconds=seconds)
    with open_source(str(bench.log)) as source:
        return witness(read_log(source, part), saved, simulation, npt=bench.npt)


def qemu_for(machine: str | None, kernel: str) -> str:
    """Release line of the QEMU that is to load a stream: the kernel's own, or a newer one.

    :param machine: type with version, such as ``pc-i440fx-10.0``.
    """
    own = suites.of_kernel(kernel).qemu
    found = re.search(r"-(\d+)\.(\d+)$", machine or "")
    if found is None:
        return own
    wanted = int(found[1]), int(found[2])
    lines = [own, *suites.QEMUS]
    return next((line for line in lines if _version(line) >= wanted), own)


def _version(line: str) -> tuple[int, int]:
    major, minor = line.split(".")
    return int(major), int(minor)
