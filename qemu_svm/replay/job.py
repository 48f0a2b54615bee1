"""One plan for a real KVM: the job for the agent, and its result."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.layout import Layout
from qemu_svm.inside.view import Inside, Looks
from qemu_svm.kvm.run import INTR, IO, Exit
from qemu_svm.kvm.run import decode as decode_run
from qemu_svm.machine.recorded import CAP_EXCEPTION_PAYLOAD, CAP_TRIPLE_FAULT, RecordedPut
from qemu_svm.model import arguments
from qemu_svm.model.decode import WATCHED_MSRS, observed
from qemu_svm.model.kernels import derive
from qemu_svm.model.kernels.release import parse_if_any
from qemu_svm.model.kvm.vcpu import Host, RunEnd
from qemu_svm.model.observed import Observed
from qemu_svm.model.plans import Step
from qemu_svm.model.profile import Profile
from qemu_svm.model.saved import Saved
from qemu_svm.nested import bits, layout
from qemu_svm.replay.encode import STOP_PORT, Encoder, capabilities, setup_mce
from qemu_svm.replay.extras import Extras
from qemu_svm.replay.memory import RamFile, patches
from qemu_svm.replay.target import JobResult, Probe

Json = dict[str, Any]

_KILLED = f"errno {errno.EIO}"
_ERRNOS = 4095  # MAX_ERRNO of Linux
_MARGIN = 30.0  # seconds that a job may take beyond its runs


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How a plan is performed.

    :param seconds: time limit of each KVM_RUN.
    :param emulated: the host's processor is QEMU's TCG, which some VM entries would hang.
    :param irqchip: with KVM's own interrupt controllers.
    :param maxphyaddr: the guest's address width in bits; None for the host's.
    :param shorten: let L2 exit at its next instruction.
    :param vmrun: with ``shorten``, L1 enters L2 by VMRUN again in the run after the exit.
    :param vcpu: index of the vCPU; 0 is the bootstrap processor.
    :param capabilities: numbers of those that the VM enables first: of KVM_SET_VCPU_EVENTS'
        flags.
    :param quick: answers are written when a KVM_RUN begins and at the end, not after each step:
        of a plan during which the host crashes, the last ones may be missing.
    :param mce: MCG_CAP for KVM_X86_SETUP_MCE; 0 not to call it.
    """

    seconds: float = 10.0
    emulated: bool = False
    irqchip: bool = True
    maxphyaddr: int | None = 40
    shorten: bool = False
    vmrun: bool = False
    vcpu: int = 0
    capabilities: frozenset[int] = frozenset()
    quick: bool = False
    mce: int = 0


@dataclass(frozen=True, slots=True)
class RunResult:
    """How KVM_RUN ended.

    :param result: ``exit`` if L1 has control again, ``hang`` after the time limit,
        ``skipped`` if the emulated host would have crashed or hung;
        else the name of the errno or of KVM's exit reason.
    :param vmcb12: the page in memory afterwards; empty if there is no memory.
    """

    result: str
    found: Exit
    vmcb12: bytes = b""

    @property
    def at_stop(self) -> bool:
        """Whether the OUT that the replay has placed ended the run, in L1 or in L2."""
        found = self.found
        return not found.errno and found.reason == IO and found.detail["port"] == STOP_PORT


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """One step on the real KVM.

    :param errno: its name; None if the step succeeded.
    :param state: after the step, see :mod:`qemu_svm.model.observed`.
    :param inside: what the kernel's memory had, see :mod:`qemu_svm.inside.view`; None if it
        was not read.
    :param refused_msr: of ``msrs``: the number of the MSR at which it stopped.
    """

    number: int
    step: Step
    errno: str | None
    state: Observed
    run: RunResult | None = None
    inside: Inside | None = None
    refused_msr: int | None = None

    @property
    def killed(self) -> bool:
        """Whether KVM has killed the VM: nothing can be read any more (EIO)."""
        return self.state.get("sregs") == _KILLED

    @property
    def in_guest_mode(self) -> bool:
        """Whether the vCPU is in guest mode afterwards."""
        return bool(self.state.get("nested.flags", 0) & bits.GUEST_MODE)


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """The result of a plan on a real KVM.

    :param steps: those that finished.
    :param end: as in :class:`JobResult`.
    :param host: the host kernel's last message, if it crashed or hung.
    :param start: the fresh vCPU in the kernel's memory; None if it was not read.
    """

    steps: tuple[ReplayStep, ...]
    end: str
    host: str | None = None
    error: str | None = None
    start: Inside | None = None

    @property
    def killed(self) -> int | None:
        """The number of the step in which KVM killed the VM, or None."""
        return next((step.number for step in self.steps if step.killed), None)

    @property
    def clean(self) -> bool:
        """Whether every step was accepted, and L1 got control back wherever it ran."""
        return (
            self.end == "done"
            and self.killed is None
            and all(
                step.errno is None and (step.run is None or step.run.result == RunEnd.EXIT)
                for step in self.steps
            )
        )


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """A plan with the guest it is for.

    :param name: identifies the result.
    :param extras: state that the model does not have.
    :param put: the recorded put that the steps are of; None if they are of a plan.
    """

    name: str
    saved: Saved
    steps: tuple[Step, ...]
    options: ReplayOptions = field(default_factory=ReplayOptions)
    extras: Extras = field(default_factory=Extras)
    put: RecordedPut | None = None

    @property
    def plan(self) -> str:
        """The plan as on a command line."""
        return ",".join(step.text for step in self.steps)


def kernel_of(probe: Probe) -> str:
    """Return the version of the kernel, with its stable update if that is known."""
    found = parse_if_any(probe.release, probe.version)
    return probe.release if found is None else str(found)


def profile_of(probe: Probe) -> Profile:
    """Return the model's profile of a kernel.

    :raises EnvironmentFault: the kernel is too old to have one.
    """
    found = parse_if_any(probe.release, probe.version)
    kernel = None if found is None else derive.profile_of(found)
    if kernel is None:
        raise EnvironmentFault(f"no profile of Linux {probe.release}: the oldest is that of 5.8")
    return kernel


def host_of(probe: Probe, options: ReplayOptions) -> Host:
    """Return the model's host for a KVM and options."""
    cpuid = probe.features
    if options.maxphyaddr is not None:
        cpuid = replace(cpuid, maxphyaddr=options.maxphyaddr)
    return Host(
        npt=cpuid.has("npt"), irqchip=options.irqchip, bsp=options.vcpu == 0, cpuid=cpuid,
        exception_payload=CAP_EXCEPTION_PAYLOAD in options.capabilities,
        triple_fault_event=CAP_TRIPLE_FAULT in options.capabilities,
    )  # fmt: skip


def encode(job: ReplayJob, ram: RamFile, probe: Probe) -> Json:
    """Return the job as the agent reads it.

    :raises PlanError: a step that cannot be replayed.
    """
    saved, steps, options, extras = job.saved, job.steps, job.options, job.extras
    if not options.irqchip:
        extras = replace(extras, lapic=None)  # as in QEMU, which then emulates it
    encoder = Encoder(
        saved, probe.cpuid, host_of(probe, options).cpuid, seconds=options.seconds,
        vcpu=options.vcpu, emulated=options.emulated, extras=extras,
    )  # fmt: skip
    runs = sum(step.name == "run" for step in steps)
    changes = patches(ram.read, saved, steps, shorten=options.shorten, vmrun=options.vmrun)
    return {
        "id": job.name,
        "irqchip": options.irqchip,
        "vcpu": options.vcpu,
        "timeout": _MARGIN + runs * options.seconds,
        "patches": [[address, data.hex()] for address, data in changes],
        "msrs": list(WATCHED_MSRS),
        "read": [[_vmcb12(saved, steps), layout.VMCB_SIZE]],
        "quick": options.quick,
        "steps": _steps(encoder, steps, options),
    }


def _steps(encoder: Encoder, steps: Sequence[Step], options: ReplayOptions) -> list[Any]:
    # Capabilities of the VM are enabled in the first step, before its own ioctl.
    made = [encoder.operations(step) for step in steps]
    if made:
        before = [*capabilities(options.capabilities), *(setup_mce(options.mce))]
        made[0] = [*before, *made[0]]
    return made


def _vmcb12(saved: Saved, steps: Sequence[Step]) -> int:
    places = [arguments.nested(saved, step).vmcb_pa for step in steps if step.name == "nested"]
    return places[-1] if places else saved.nested.vmcb_pa


def decode(job: ReplayJob, performed: JobResult, layout: Layout | None = None) -> ReplayResult:
    """Read what the agent wrote about a job.

    :param layout: that of the kernel, if its memory was read.
    :raises EnvironmentFault: it is not what an agent writes, or a vCPU could not be found in
        the kernel's memory.
    """
    try:
        return _decode(job, performed, layout)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError,
            struct.error) as error:  # fmt: skip
        # A kernel under test may have damaged it.
        raise EnvironmentFault(f"the agent's answer cannot be read: {error}") from None


def _decode(job: ReplayJob, performed: JobResult, layout: Layout | None) -> ReplayResult:
    steps: list[ReplayStep] = []
    raw: dict[str, str] = {}
    looks = None if layout is None else Looks(layout)
    start: Inside | None = None
    for place, (line, step) in enumerate(zip(performed.steps, job.steps, strict=False), 1):
        raw |= line["state"]
        state = observed(raw)
        if line["step"] != place or not 0 <= int(line["errno"]) <= _ERRNOS:
            raise ValueError(f"it is not about step {place}")
        ran = _run(line, state) if "run" in line or "skipped" in line else None
        number = _errno(job.saved, step, line) if ran is None else 0
        name = errno.errorcode.get(number, str(number)) if number else None
        seen = [looks.see(look) for look in line["inside"]] if looks is not None else [None]
        if not steps:
            start = seen[0]
        stopped = _refused_msr(job.saved, step, line) if name and ran is None else None
        steps.append(ReplayStep(place, step, name, state, ran, seen[-1], stopped))
    return ReplayResult(tuple(steps), performed.end, performed.host, performed.error, start)


def _errno(saved: Saved, step: Step, line: Mapping[str, Any]) -> int:
    number = int(line["errno"])
    stopped = _refused_msr(saved, step, line) is not None
    return errno.EINVAL if stopped and not number else number


def _refused_msr(saved: Saved, step: Step, line: Mapping[str, Any]) -> int | None:
    # KVM_SET_MSRS returns how many it has taken.
    if step.name != "msrs" or line["errno"]:
        return None
    numbers = arguments.msr_numbers(saved, step)
    return numbers[line["done"]] if line["done"] < len(numbers) else None


def _run(line: Mapping[str, Any], state: Observed) -> RunResult:
    if "skipped" in line:
        return RunResult("skipped", Exit(0, 0))
    found = decode_run(bytes.fromhex(line["run"]), line["errno"])
    name = found.name
    if RunResult(name, found).at_stop and not state.get("nested.flags", 0) & bits.GUEST_MODE:
        name = RunEnd.EXIT.value
    elif found.errno == errno.EINTR or (not found.errno and found.reason == INTR):
        name = RunEnd.HANG.value
    pages = line.get("memory") or [""]
    return RunResult(name, found, bytes.fromhex(pages[0]))
