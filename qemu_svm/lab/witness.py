"""A box whose emulator runs with svmtrace, and restores in it.

One box serves many restores, one after the other: a restore is recorded by the part of
the log after the last record before it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

from qemu_svm.errors import LabError, QmpError, Truncated
from qemu_svm.findings.witness import Witness, l1_state, witness
from qemu_svm.lab import svmtrace
from qemu_svm.lab.box.box import Box
from qemu_svm.lab.box.console import headline
from qemu_svm.lab.box.share import forget
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.kvm import InBox
from qemu_svm.lab.restore import copy_to_share, settings_of
from qemu_svm.lab.suites import catalogue as suites
from qemu_svm.lab.suites.kernels import user_land, wanted
from qemu_svm.lab.vm import Settings, running
from qemu_svm.machine import Machine, Vcpu, type_version
from qemu_svm.model import plans
from qemu_svm.model.kernels.derive import profile_of
from qemu_svm.model.kernels.release import parse_if_any
from qemu_svm.model.plans import Step
from qemu_svm.model.saved import Saved, from_vcpu
from qemu_svm.model.scenario import scenario
from qemu_svm.model.simulate import Simulation
from qemu_svm.replay.job import ReplayJob, ReplayOptions, ReplayResult
from qemu_svm.replay.replay import replay
from qemu_svm.source import Source, open_source
from qemu_svm.vmruns.log import read_log
from qemu_svm.vmruns.reader import Event, LogReader
from qemu_svm.vmruns.roles import EntryState, state
from qemu_svm.vmruns.structs import RecordKind

_POLL_SECONDS = 0.1
_AT_ONCE = 10_000  # records between two looks at the clock
EMULATOR = svmtrace.EMULATORS[0]


class WitnessBox:
    """A box and the log of its emulated processor.  Use it with ``with``.

    :attr:`box` is the box, :attr:`log` the path of the log, which svmtrace writes.

    :param kernel: the box's kernel, see :class:`qemu_svm.lab.Box`.
    :param emulator: release line of the emulator, one of :data:`svmtrace.EMULATORS`.
    :param npt: load ``kvm_amd`` with nested paging.
    :param box: further arguments of :class:`qemu_svm.lab.Box`.
    :raises LabError: no such release line; on entering, the box does not start.
    """

    def __init__(
        self, kernel: str, *, emulator: str = EMULATOR, npt: bool = True, **box: Any
    ) -> None:
        if emulator not in svmtrace.EMULATORS:
            known = ", ".join(svmtrace.EMULATORS)
            raise LabError(
                f"QEMU {emulator} cannot record what the processor is given",
                hint=f"the plugin svmtrace works in {known}",
            )
        self.npt = npt
        self._foreign = "modules" in box or "own" in box
        self._make: Callable[..., Box] = partial(Box, kernel, emulator=emulator, npt=npt, **box)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with host_faults("make a directory for the log"):
            temporary = tempfile.TemporaryDirectory(prefix="svmtrace-")
        with ExitStack() as stack:
            self.log = Path(stack.enter_context(temporary)) / "log"
            made = partial(self._make, emulator_args=svmtrace.arguments(self.log))
            self._kvm = stack.enter_context(
                InBox(lambda share: made(share=share), foreign=self._foreign)
            )
            self.box = self._kvm.box
            self._follower = Follower(stack.enter_context(open_source(str(self.log))))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def restore(
        self,
        source: Source,
        settings: Settings,
        *,
        seconds: float,
        back: EntryState | None = None,
    ) -> range:
        """Restore a stream with QEMU, and let it run until L1 has run and L2 is entered again.

        :param seconds: how long to wait for that.
        :param back: RIP, RSP and RAX of the L1 that is meant, if the stream has several vCPUs.
        :returns: the numbers of the log's records of this restore.
        :raises Refused: QEMU or KVM refuses the stream.
        :raises LabError: the kernel in the box crashed.
        """
        first = self._follower.skip()
        name = copy_to_share(self.box, source)
        try:
            with running(self.box, settings) as vm:
                vm.load(name)
                end = time.monotonic() + seconds
                while not self._follower.returned_to_l1(back) and time.monotonic() < end:
                    time.sleep(_POLL_SECONDS)
                    if not vm.qmp.status().running:
                        break
        except QmpError:
            trouble = self.box.oops()
            if trouble is None:
                raise
            raise LabError(f"the kernel in the box crashed: {headline(trouble)}") from None
        finally:
            forget(self.box.share / name)
        return range(first, self._follower.last + 1)

    def replay(
        self,
        machine: Machine,
        saved: Saved,
        steps: tuple[Step, ...],
        *,
        seconds: float,
        vcpu: int = 0,
    ) -> tuple[range, ReplayResult, Simulation]:
        """Restore a vCPU by ioctls, without QEMU.

        :param seconds: how long each run may take.
        :param vcpu: CPU index; any but 0 waits for its start with an APIC in the kernel.
        :returns: the numbers of the log's records, KVM's answers, and the model's.
        :raises LabError: the kernel in the box crashed.
        """
        first = self._follower.skip()
        options = ReplayOptions(seconds=seconds, emulated=True, vcpu=vcpu)
        job = ReplayJob("witness", saved, steps, options)
        done = replay(machine, job, self._kvm)
        if done.result.host is not None:
            raise LabError(f"the kernel in the box crashed: {done.result.host}")
        assert done.simulation is not None
        last = self._follower.skip()
        return range(first, last), done.result, done.simulation


class Follower:
    """Reads a log while it grows; :attr:`last` is the number of the last record read."""

    def __init__(self, source: Source) -> None:
        self._reader = LogReader(source)
        self._gave_up = self._back = False
        self.last = 0

    def _events(self) -> Iterator[Event]:
        try:
            for event in self._reader:
                self.last = event.number
                yield event
        except Truncated:
            return  # the rest is not written yet

    def skip(self) -> int:
        """Read all records that were written; return the number of the next one."""
        for _ in self._events():
            pass
        self._gave_up = self._back = False
        return self.last + 1

    def returned_to_l1(self, back: EntryState | None = None) -> bool:
        """Return whether L1 has run since the last :meth:`skip`, and then L2 again.

        That is so if a guest has executed VMRUN, and KVM has entered a guest after it.

        :param back: RIP, RSP and RAX with which L1 has to be entered before that.
        """
        for event in islice(self._events(), _AT_ONCE):
            if event.kind != RecordKind.VMRUN:
                continue
            if back is not None and not self._back:
                self._back = event.page is not None and state(event.page) == back
                continue
            if self._gave_up and not event.in_guest:
                return True
            self._gave_up = self._gave_up or event.in_guest
        return False


def witness_restore(
    bench: WitnessBox,
    machine: Machine,
    plan: str | None = None,
    *,
    seconds: float,
    vcpu: int = 0,
) -> Witness:
    """Restore a stream in a witness box; compare what the processor got with stream and model.

    :param plan: restore by these ioctls; None to restore with QEMU.
    :param seconds: how long to wait, see :meth:`WitnessBox.restore`.
    :param vcpu: CPU index of the vCPU that is compared; QEMU restores all of them.
    :raises PathError: no such vCPU.
    :raises PlanError: an ioctl cannot be replayed.
    :raises Refused: QEMU or KVM refuses the stream.
    :raises LabError: the kernel in the box crashed, or there is no model of it.
    """
    one = machine.vcpu(vcpu)
    saved = from_vcpu(one)
    alone = plan is not None or len(machine.vcpus) == 1
    failed: tuple[str, ...] = ()
    if plan is None:
        simulation = _as_qemu_does(bench, machine, one)
        back = None if alone or not saved.guest_mode else l1_state(saved)
        part = bench.restore(
            machine.stream.source, settings_of(machine), seconds=seconds, back=back
        )
    else:
        steps = plans.parse(plan)
        part, replayed, simulation = bench.replay(machine, saved, steps, seconds=seconds, vcpu=vcpu)
        failed = tuple(_failures(replayed))
    with open_source(str(bench.log)) as source:
        log = read_log(source, part)
        return witness(log, saved, simulation, npt=bench.npt, failed=failed, alone=alone)


def _as_qemu_does(bench: WitnessBox, machine: Machine, vcpu: Vcpu) -> Simulation:
    version = bench.box.versions["kernel"]
    release = parse_if_any(version)
    kernel = None if release is None else profile_of(release)
    if kernel is None:
        raise LabError(f"no profile of kernel {version}")
    restore = scenario(machine, vcpu, "qemu", npt=bench.npt)
    simulation = restore.simulate(kernel)
    failed = next((one for one in simulation.results if one.failed), None)
    if failed is None:
        return simulation
    # QEMU ends the put of a vCPU at the first error; up to 8.x it runs the vCPU nevertheless.
    steps = (*restore.steps[: failed.number], *plans.parse("run"))
    return replace(restore, steps=steps).simulate(kernel)


def _failures(replayed: ReplayResult) -> Iterator[str]:
    for seen in replayed.steps:
        if seen.errno is not None:
            yield f"step {seen.number} ({seen.step.text}) failed with {seen.errno}"
        elif seen.run is not None and seen.run.result != "exit":
            yield f"step {seen.number} ({seen.step.text}) ended with {seen.run.result}"


def qemu_for(machine: str | None, kernel: str) -> str:
    """Return the release line of the QEMU to load a stream with: the kernel's, or a newer one.

    :param machine: machine type with version, such as ``pc-i440fx-10.0``.
    :param kernel: as :func:`qemu_svm.lab.suites.kernels.wanted` reads it.
    :raises PlanError: no name of a kernel.
    """
    own = user_land(wanted(kernel)).qemu
    needed = type_version(machine)
    if needed is None:
        return own
    lines = [own, *suites.QEMUS]
    return next((line for line in lines if _version(line) >= needed), own)


def _version(line: str) -> tuple[int, int]:
    major, minor = line.split(".")
    return int(major), int(minor)
