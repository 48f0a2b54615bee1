"""Plans on a real KVM, compared with the same plans on the model."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import ClassVar

from qemu_svm.errors import PlanError
from qemu_svm.findings.recorded import Answer, RecordedDifference, first_difference
from qemu_svm.inside.layout import Layout
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.machine.recorded import CAP_EXCEPTION_PAYLOAD, CAP_TRIPLE_FAULT, RecordedPut
from qemu_svm.model.kvm.run import GuestCode
from qemu_svm.model.partial import check_plan, default_plan
from qemu_svm.model.recorded import PLAN, RAN
from qemu_svm.model.saved import from_vcpu
from qemu_svm.model.scenario import Scenario, steps_for
from qemu_svm.model.simulate import Simulation
from qemu_svm.replay.compare import Comparison, compare
from qemu_svm.replay.encode import check
from qemu_svm.replay.extras import extras
from qemu_svm.replay.job import (
    ReplayJob,
    ReplayOptions,
    ReplayResult,
    decode,
    encode,
    host_of,
    profile_of,
)
from qemu_svm.replay.memory import RamFile, can_shorten, extract_ram, with_idt
from qemu_svm.replay.target import Probe, Target
from qemu_svm.results import Result
from qemu_svm.source import Source


@dataclass(frozen=True, slots=True, repr=False)
class Replay(Result):
    """A plan on a real KVM.

    :param path: of the stream, as given.
    :param plan: as given.
    :param probe: the KVM.
    :param simulation: the plan on the model of this kernel; None if it was not compared.
    :param comparison: the differences; None if it was not compared.
    :param lost: the saved vCPU was in L2, and ran outside guest mode: L2's code as L1.
    :param put: the recorded put; None if the plan is another one.
    :param recorded: the first difference between its answers and those here, or None.
    """

    verb: ClassVar[str] = "replay"
    path: str
    plan: str
    probe: Probe
    result: ReplayResult
    simulation: Simulation | None = None
    comparison: Comparison | None = None
    lost: bool = False
    put: RecordedPut | None = None
    recorded: RecordedDifference | None = None

    @property
    def good(self) -> bool:
        """Whether model and kernel agree; if not compared, whether every step succeeded.

        A recorded put has to be answered as it was, too, and to restore L2.
        """
        if self.put is not None and (self.lost or self.recorded is not None):
            return False
        return self.result.clean if self.comparison is None else self.comparison.equal


def perform(
    target: Target,
    ram: RamFile,
    jobs: Sequence[ReplayJob],
    probe: Probe,
    inside: Layout | None = None,
) -> Iterator[ReplayResult]:
    """Perform jobs on a KVM, in order; each has one result, even if the host crashes.

    :param probe: that of ``target``.
    :param inside: ``target.layout()``, to read the vCPU in the kernel's memory after each
        step; None not to.
    :raises PlanError: a step that cannot be replayed.
    :raises EnvironmentFault: the kernel's memory cannot be read.
    """
    encoded = [encode(job, ram, probe) for job in jobs]
    for job, performed in zip(jobs, target.perform(ram, encoded, inside), strict=True):
        yield decode(job, performed, inside)


def against_model(
    job: ReplayJob, ram: RamFile, probe: Probe, result: ReplayResult
) -> tuple[Simulation, Comparison]:
    """Simulate a job on the model of the kernel that performed it, and compare.

    :raises EnvironmentFault: there is no profile of this kernel.
    """
    restore = Scenario(job.saved, job.steps, host_of(probe, job.options), ram.backed)
    kernel = profile_of(probe)
    shortened = job.options.shorten and can_shorten(ram.read, job.saved)
    while True:
        simulation = restore.simulate(kernel)
        comparison = compare(simulation, result, shortened=shortened)
        if comparison.stays is None:
            return simulation, comparison
        # What L2 did is known only now: it did nothing that L1 intercepts.
        code = {**restore.code, comparison.stays: GuestCode.STAYS}
        restore = replace(restore, code=code)


def prepare(
    machine: Machine,
    vcpu: Vcpu,
    plan: str | None,
    options: ReplayOptions,
    saved_in: Machine | None = None,
) -> ReplayJob:
    """Make the job of a plan for one vCPU of a stream.

    :param plan: see :mod:`qemu_svm.model.plans`; None for QEMU's, as far as the input has
        values for it, and without a run where it has no guest memory; of a recording, the
        recorded put with its bytes as they are.
    :param saved_in: the stream that a recording was to restore; its memory is used.
    :raises PlanError: an unknown step or setting, or one that cannot be replayed.
    """
    steps = steps_for(machine, vcpu, plan)
    saved = from_vcpu(vcpu if saved_in is None else saved_in.vcpu(vcpu.index))
    check_plan(machine, vcpu, steps)
    if machine.form is not None and not (saved_in or machine).blocks:
        if plan is not None and any(step.name == "run" for step in steps) and plan != PLAN:
            raise PlanError("'run' needs guest memory, which the input does not have")
        steps = tuple(step for step in steps if step.name != "run")
    options = replace(options, vcpu=vcpu.index)
    if vcpu.put is not None:
        known = frozenset((CAP_EXCEPTION_PAYLOAD, CAP_TRIPLE_FAULT))
        irqchip = options.irqchip and vcpu.put.irqchip is not False
        options = replace(
            options, capabilities=vcpu.put.capabilities & known, irqchip=irqchip, mce=vcpu.put.mce
        )
    if plan is None:
        plan = PLAN if vcpu.put is not None else default_plan(machine, vcpu)
        if machine.form is not None and plan != PLAN:
            plan = ",".join(step.text for step in steps)  # perhaps without the run
    check(saved, steps)
    put = vcpu.put if plan == PLAN else None
    if put is not None and any((RAN, 1) in step.settings for step in steps[:1]):
        late = next((step for step in steps[1:] if step.name == "cpuid"), None)
        if late is not None:
            raise PlanError(
                f"'{late.text}' cannot be replayed: the vCPU had run, and its CPUID is fixed "
                "from then on"
            )
    return ReplayJob(plan, saved, steps, options, extras(machine, vcpu), put)


def replay(
    machine: Machine,
    job: ReplayJob,
    target: Target,
    *,
    channels: Sequence[Source] = (),
    compared: bool = True,
    inside: bool = False,
    addresses: bool = False,
    saved_in: Machine | None = None,
) -> Replay:
    """Perform one job with the RAM of its stream.

    :param channels: other inputs with pages of the stream, as for ``read_ram``.
    :param compared: simulate the plan as well, and compare.
    :param inside: read the vCPU in the kernel's memory after each step.
    :param addresses: with addresses of the host.
    :param saved_in: the machine whose memory is used; None for ``machine``.
    :raises StreamError: there is no RAM, or it cannot be read completely.
    :raises EnvironmentFault: the KVM cannot be used, or there is no profile of its kernel.
    :raises LabError: a KVM in a box cannot be used.
    """
    path = target.folder / f"ram-{secrets.token_hex(4)}"
    try:
        shorten = job.options.shorten
        with closing(
            extract_ram(saved_in or machine, str(path), channels, reset_page=shorten)
        ) as ram:
            if shorten:
                job = replace(job, saved=with_idt(ram.read, job.saved))
            probe = target.probe()
            layout = target.layout() if inside else None
            if layout is not None and addresses:
                layout = layout.with_addresses()
            (result,) = perform(target, ram, [job], probe, layout)
            beside = against_model(job, ram, probe, result) if compared else (None, None)
    finally:
        path.unlink(missing_ok=True)
    put = job.put
    parted = None
    if put is not None:
        answers = [Answer(step.errno, step.state) for step in result.steps]
        parted = first_difference(put, job.steps, answers)
    simulation, comparison = beside
    return Replay(
        machine.stream.source.path, job.name, probe, result, simulation, comparison,
        _lost(job, result), put, parted,
    )  # fmt: skip


def _lost(job: ReplayJob, result: ReplayResult) -> bool:
    # Whether code that the saved vCPU had in L2 was entered outside guest mode.
    before = False
    for step in result.steps:
        if step.run is not None:
            return job.saved.guest_mode and not before
        before = step.in_guest_mode
    return False
