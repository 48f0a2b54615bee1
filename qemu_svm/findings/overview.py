"""Everything about a stream in one result: what the page of ``report`` is made of.

Nothing is judged here.  The parts are the results of the other verbs, made once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from qemu_svm.errors import AddressError, PathError, StreamError
from qemu_svm.findings.verdict import Verdict
from qemu_svm.results import Result

if TYPE_CHECKING:
    from qemu_svm.findings.inspection import Inspection
    from qemu_svm.findings.results import CheckReport, DiffReport, RamReport, SimulationReport
    from qemu_svm.machine import Machine, Vcpu
    from qemu_svm.memory.memory import GuestMemory
    from qemu_svm.stream.ram.rounds import Round
    from qemu_svm.trace.model import Trace

REDACTABLE = ("addresses", "uuids", "names", "msrs")
"""What a page can be made without."""

BADNESS = (Verdict.RIGHT, Verdict.OPEN, Verdict.REFUSED, Verdict.WRONG, Verdict.BROKEN)
"""Verdicts, the worst last."""

_RESTORES = 4
_BEFORE, _SHOWN = 32, 128


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Some guest memory.

    :param what: what it is, in words.
    :param space: the address space, such as ``l2v``.
    :param data: its bytes; empty if they cannot be read.
    :param missing: why not.
    """

    vcpu: int
    what: str
    space: str
    address: int
    data: bytes
    missing: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Overview:
    """All that is known about a stream.

    :param restores: vCPUs restored in the model, those in L2 first, by the kernels that
        :func:`drawn` chose; not more than four vCPUs.
    :param rounds: in which the pages were sent; empty where there is no order.
    :param diff: differences to a second stream; None without one.
    :param trace: the log of a restore; None without one.
    :param excerpts: guest memory; empty unless it was asked for.
    :param destination: the kernel that was asked about; None for all releases.
    :param source: the kernel that saved the stream, if that was given.
    """

    inspection: Inspection
    check: CheckReport
    restores: tuple[tuple[Vcpu, SimulationReport], ...]
    pages: RamReport | None
    rounds: tuple[Round, ...]
    diff: DiffReport | None = None
    trace: Trace | None = None
    excerpts: tuple[Excerpt, ...] = ()
    destination: str | None = None
    source: str | None = None

    @property
    def machine(self) -> Machine:
        """The machine that was saved."""
        return self.inspection.machine

    @property
    def verdict(self) -> Verdict | None:
        """The worst verdict of any vCPU on any of the kernels; None if none can be judged."""
        found = {one.verdict for by in self.check.verdicts.values() for one in by.values()}
        return max(found, key=BADNESS.index, default=None)

    @property
    def complete(self) -> bool:
        """Whether the stream and its RAM are whole, as far as they were read."""
        return not self.inspection.machine.stream.problems and (
            self.inspection.machine.stream.complete if self.pages is None else self.pages.complete
        )

    @property
    def contents(self) -> tuple[str, ...]:
        """What a page of it contains, in words."""
        machine = self.machine
        parts = ["registers and nested state" * bool(machine.vcpus), "list of sections"]
        parts.append("map of RAM, without content" * (self.pages is not None))
        parts.append("differences to a second stream, with values" * (self.diff is not None))
        parts.append("ioctls of a log" * (self.trace is not None))
        size = self.memory_bytes
        parts.append(f"{size} bytes of guest memory" if size else "no guest memory")
        return tuple(filter(None, parts))

    @property
    def memory_bytes(self) -> int:
        """Bytes of guest memory that a page of it contains."""
        return sum(len(one.data) for one in self.excerpts)

    def to_html(self, redact: Iterable[str] = ()) -> str:
        """Return the page.

        :param redact: what to leave out, of :data:`REDACTABLE`.
        :raises EnvironmentFault: jinja2 is not installed.
        """
        # By name and when asked, as in Result.to_json.
        renderer = import_module("qemu_svm.render.html.page")
        page: str = renderer.render(self, frozenset(redact))
        return page


@dataclass(frozen=True, slots=True, repr=False)
class Written(Result):
    """A page that was written.

    :param path: of the file, as given.
    :param size: in bytes.
    :param redacted: what was left out, of :data:`REDACTABLE`.
    """

    verb: ClassVar[str] = "report"
    path: str
    size: int
    overview: Overview
    redacted: tuple[str, ...] = ()


def drawn(check: CheckReport) -> tuple[str, ...]:
    """Return the kernels of a check to look at in full: the newest, and the worst if it differs."""
    kernels = list(next(iter(check.verdicts.values()), {}))
    if not kernels:
        return ()

    def worst(name: str) -> int:
        return max(BADNESS.index(by[name].verdict) for by in check.verdicts.values())

    newest = kernels[-1]
    most = max(map(worst, kernels))
    if most == worst(newest):
        return (newest,)
    return newest, next(name for name in reversed(kernels) if worst(name) == most)


def of_interest(check: CheckReport) -> list[Vcpu]:
    """Return the vCPUs to look at in full: those in L2, else the first with nested state."""
    judged = [vcpu for vcpu in check.machine.vcpus if vcpu.index in check.verdicts]
    inside = [vcpu for vcpu in judged if vcpu.guest_mode]
    nested = [vcpu for vcpu in judged if vcpu.nested is not None]
    return (inside or nested[:1] or judged[:1])[:_RESTORES]


def excerpts(memory: GuestMemory, vcpus: Iterable[Vcpu]) -> tuple[Excerpt, ...]:
    """Return the memory around what each vCPU was executing, and its stack, of L2 and of L1."""
    found = []
    for vcpu in vcpus:
        for level in ("l2", "l1") if vcpu.guest_mode else ("l1",):
            try:
                registers = (memory.l2_registers if level == "l2" else memory.l1_registers)(
                    vcpu.index
                )
            except (PathError, AddressError, StreamError):
                continue
            space = f"{level}v"
            for what, address in (
                ("code", max(registers.next_instruction - _BEFORE, 0)),
                ("stack", registers.get("rsp")),
            ):
                name = f"{level.upper()}'s {what}"
                found.append(_excerpt(memory, vcpu.index, name, space, address))
    return tuple(found)


def _excerpt(memory: GuestMemory, vcpu: int, what: str, space: str, address: int) -> Excerpt:
    try:
        data = memory.world(space, vcpu).read(address, _SHOWN)
    except (PathError, AddressError, StreamError) as error:
        return Excerpt(vcpu, what, space, address, b"", str(error))
    return Excerpt(vcpu, what, space, address, data)
