"""A box whose emulator has svmtrace in it, and restores in it.

One box serves many restores, one after the other: what a restore did is the part of
the log behind the last record that was there before.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from qemu_svm.errors import LabError, QmpError, StreamError
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
from qemu_svm.vmruns.log import Log, read_log
from qemu_svm.vmruns.reader import LogReader
from qemu_svm.vmruns.roles import Role

_POLL_SECONDS = 0.5
EMULATOR = svmtrace.EMULATORS[0]


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a log: the records from ``since`` on.  ``path`` is the log's."""

    path: Path
    since: int


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
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def restore(self, source: Source, settings: Settings, *, seconds: float) -> Span:
        """Restore a stream by QEMU, and let it run until L1 had control and gave it back.

        :param seconds: how long to wait for that.
        :raises Refused: QEMU or KVM says no.
        """
        span = self.now()
        name = put(self.box, source)
        try:
            with running(self.box, settings) as vm:
                vm.load(name)
                end = time.monotonic() + seconds
                while not self._enough(span) and time.monotonic() < end:
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
        return span

    def now(self) -> Span:
        """Everything that comes from now on."""
        last = 0
        with open_source(str(self.log)) as source, suppress(StreamError):
            for event in LogReader(source):
                last = event.number
        return Span(self.log, last + 1)

    def _enough(self, span: Span) -> bool:
        with open_source(str(span.path)) as source, suppress(StreamError):
            return came_back(read_log(source, since=span.since))
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
    span = bench.restore(machine.stream.source, settings_of(machine), seconds=seconds)
    with open_source(str(span.path)) as source:
        log = read_log(source, since=span.since)
        return witness(log, saved, simulation, npt=bench.npt)


def came_back(log: Log) -> bool:
    """Whether L2 was entered again after L1 had control."""
    had_l1 = False
    for known in log.runs():
        if known.role is Role.L1:
            had_l1 = True
        elif known.role is Role.L2 and had_l1:
            return True
    return False


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
