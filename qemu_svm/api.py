"""The programming interface; everything here is offered by ``import qemu_svm``.

::

    import qemu_svm as svm

    with svm.open("dump.bin.zst") as dump:
        print(hex(dump.vcpus[0].nested.l1_save.rip))
        print(dump.simulate("qemu", kernel="6.1").verdict)

The names in ``qemu_svm.__all__`` are stable, and so are their parameters and the
attributes that ``docs/api.md`` names.  All other modules of this package are
private: they change without notice.

Errors are those of :mod:`qemu_svm.errors`, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from qemu_svm.errors import PathError, PlanError, SourceError, StreamError
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.machine import Machine, Vcpu, read_machine
from qemu_svm.snapshots.forms import Beside
from qemu_svm.source import Source, open_source
from qemu_svm.stream import Value, Walk, read_stream

if TYPE_CHECKING:
    from qemu_svm.diagnosis.results import Why
    from qemu_svm.findings.inspection import Inspection
    from qemu_svm.findings.masks import Mask
    from qemu_svm.findings.overview import Overview
    from qemu_svm.findings.recorded import RecordedDifference
    from qemu_svm.findings.results import (
        CheckReport,
        CompatReport,
        DiffReport,
        RamReport,
        Shown,
        SimulationReport,
        Span,
    )
    from qemu_svm.inside.apart import InsideDiff
    from qemu_svm.inside.looking import InsideLook
    from qemu_svm.lab.progress import Progress as LabProgress
    from qemu_svm.memory.memory import GuestMemory
    from qemu_svm.model.scenario import Scenario
    from qemu_svm.qmp.capture import Captured
    from qemu_svm.qmp.features import CaptureOptions
    from qemu_svm.qmp.sync import Connection
    from qemu_svm.recorder.record import Recorded
    from qemu_svm.recording.convert import Converted
    from qemu_svm.replay.replay import Replay
    from qemu_svm.rules import Finding
    from qemu_svm.stream.ram.read import Ram
    from qemu_svm.stream.vmstate.description import Description
    from qemu_svm.stream.vmstate.dump import Dump as VmstateDump
    from qemu_svm.trace.model import Trace

PathLike = str | os.PathLike[str]
Progress = Callable[[int], None]
"""Called with how much is done."""


def open(  # noqa: A001 - as svm.open
    path: PathLike,
    *,
    channels: Iterable[PathLike] = (),
    description: PathLike | None = None,
    page_size: int | None = None,
    beside: Mapping[str, PathLike] | None = None,
    memory: PathLike | None = None,
    put: int | None = None,
    vm: int | None = None,
    limits: Limits = DEFAULT,
) -> Dump:
    """Open a migration stream, or the state of vCPUs in another form.

    :param path: a file, plain or compressed, a libvirt save image, ``IMAGE.qcow2#SNAPSHOT``,
        ``FILE#@OFFSET`` for a stream inside a file, or ``-`` for standard input; or what
        ``docs/state.md`` lists: a raw ``struct kvm_nested_state``, a document of
        ``inspect --json``, a folder with a snapshot of Cloud Hypervisor.
    :param channels: multifd channels, or further connections of a postcopy migration.
    :param description: a stream, its JSON description, or the output of QEMU's
        ``-dump-vmstate``, used if the stream does not describe itself.
    :param page_size: of the guest in bytes, a power of two, whatever the stream says.
    :param beside: files with further structures of vCPU 0, for an input that is no stream:
        ``{"sregs": "sregs.bin", "regs": "regs.bin"}``.
    :param memory: the file with the guest's memory, of a state file of Firecracker.
    :param put: of a recording: number of the put of each vCPU, from 1; None for the last one
        that puts a vCPU into guest mode, else the last one before it runs.
    :param vm: of a recording: number of the VM, from 1; None for the first with such a vCPU.
    :param limits: resource limits for the input.
    :raises SourceError: the input cannot be opened, decompressed or has none of these forms.
    :raises StreamError: a channel or the lender of the description is damaged; damage
        of the stream itself is not raised but reported by :attr:`Dump.damage`.
    """
    with ExitStack() as owned:
        lent = _lent(os.fspath(description), limits) if description is not None else None
        files = {key: os.fspath(one) for key, one in (beside or {}).items()}
        given = Beside(files, None if memory is None else os.fspath(memory), put, vm)
        state = _state(os.fspath(path), given, limits, owned)
        if isinstance(state, Machine):
            return Dump(state, (), owned.pop_all())
        source = state
        machine = read_machine(read_stream(source, limits, Walk.QUICK, lent, page_size))
        source.size()  # reads a pipe to its end: nothing is left to be read after a fork
        others = [owned.enter_context(open_source(os.fspath(one), limits)) for one in channels]
        return Dump(machine, others, owned.pop_all())


def _state(path: str, beside: Beside, limits: Limits, owned: ExitStack) -> Machine | Source:
    # The machine of an input that is no stream; else the input.
    if os.path.isdir(path):
        from qemu_svm.snapshots.open import open_folder

        found = open_folder(path, limits, beside, owned)
        if found is not None:
            return found
    source = owned.enter_context(open_source(path, limits))
    head = source.read_at(0, len(_MAGIC))
    if head != _MAGIC and source.container == "plain":
        from qemu_svm.snapshots.open import read_state

        found = read_state(source, limits, beside, owned)
        if found is not None:
            return found
    if beside.option is not None:
        raise SourceError(
            f"--{beside.option} does not belong to '{path}'",
            hint="a stream has all of its state; the option is for the forms of docs/state.md",
        )
    return source


def _lent(path: str, limits: Limits) -> Description | VmstateDump:
    from qemu_svm.stream.vmstate.lend import description_of

    try:
        with open_source(path, limits) as source:
            return description_of(source, limits)
    except StreamError as error:
        error.path = None
        raise SourceError(f"--description '{path}': {error}", hint=error.hint) from error


class Dump:
    """An open migration stream; made by :func:`open`.

    A context manager that owns and closes the files that it opened.  It can be used
    after ``fork``, in both processes; it must not be shared between threads.  Results
    stay valid after :meth:`close`.
    """

    def __init__(self, machine: Machine, channels: Sequence[Source], owned: ExitStack) -> None:
        self.machine: Machine = machine
        """The machine: ``name``, ``vcpus``, ``blocks``, ``problems``."""
        self.channels: tuple[Source, ...] = tuple(channels)
        """The multifd channels, or further connections of postcopy, that were opened."""
        self._owned = owned

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; may be called again."""
        if self._ram is not None:
            self._ram.close()
        self._owned.close()

    def __repr__(self) -> str:
        return f"<Dump {self.path!r}, {self.machine.name}, {len(self.vcpus)} vCPUs>"

    @property
    def path(self) -> str:
        """The path as given."""
        return self.machine.stream.source.path

    @property
    def complete(self) -> bool:
        """Whether the stream is whole and without damage, as far as it was read.

        RAM counts once something of it was used: :attr:`memory`, :meth:`pages`.
        """
        if self.damage:
            return False
        stream, ram = self._furthest.stream, self._ram
        return stream.complete or (ram is not None and ram.resumed)

    @property
    def damage(self) -> tuple[StreamError, ...]:
        """Why the stream, its RAM or a vCPU could not be read completely, as far as it was read."""
        machine, ram = self._furthest, self._ram
        if ram is None:
            return machine.stream.problems + machine.problems
        from qemu_svm.stream.ram.problems import all_problems

        return all_problems(machine.stream, ram) + machine.problems

    @property
    def _furthest(self) -> Machine:
        # The machine as it was read last, with more records than before.
        machine: Machine = self.__dict__.get("_walked", self.machine)
        return machine

    @property
    def _ram(self) -> Ram | None:
        # The index of RAM, if it was made.
        return self.__dict__.get("ram")

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        """The vCPUs that could be read, in the order of QEMU's CPU index."""
        return self.machine.vcpus

    def vcpu(self, index: int) -> Vcpu:
        """Return the vCPU with this CPU index.

        :raises PathError: the stream has no such vCPU.
        :raises SourceError: the same in a damaged stream, which may lack it.
        """
        try:
            return self.machine.vcpu(index)
        except PathError as error:
            raise not_found(self, error) from error

    @cached_property
    def problems(self) -> tuple[Finding, ...]:
        """Damage and contradictions, as ``svmstream inspect`` lists them."""
        from qemu_svm.findings.inspection import findings

        return tuple(findings(self.machine))

    def __getitem__(self, path: str) -> Value:
        """Return one part of the stream, with its offset and size.

        :param path: as for ``svmstream show``: ``vcpu0.nested.control.asid``,
            ``section:apic``, ``@0x98d7c``.
        :raises PathError: the path names nothing; ``near`` has similar paths.
        :raises SourceError: the same in a damaged stream, which may lack the part.
        """
        return self.show(path).place.value

    def show(self, path: str) -> Shown:
        """Return one part of the stream with its bytes.

        :param path: as for ``dump[path]``.
        :raises PathError: the path names nothing.
        :raises SourceError: the same in a damaged stream, which may lack the part.
        """
        from qemu_svm.findings.results import Shown
        from qemu_svm.machine.paths import find, needs_all_records

        machine = self._walked if needs_all_records(self.machine, path) else self.machine
        try:
            place = find(machine, path)
        except PathError as error:
            raise not_found(self, error) from error
        raw = b""
        if not place.scattered:
            raw = machine.stream.source.read_at(place.value.offset, place.value.size)
        return Shown(place, raw)

    @cached_property
    def _walked(self) -> Machine:
        # The stream with every RAM record.
        stream = self.machine.stream
        if self.machine.form is not None:
            return self.machine
        return read_machine(
            read_stream(
                stream.source, stream.limits, Walk.RAM, stream.lent, stream.layouts.page_size
            )
        )

    def inspect(self, *, ram: bool = False) -> Inspection:
        """Return all that ``svmstream inspect`` shows.

        :param ram: read all RAM records, those of the channels too, and count the pages.
        """
        from qemu_svm.findings.inspection import Inspection, findings

        if not ram:
            return Inspection(self.machine, self.problems)
        machine = self._walked
        if self.channels:
            from qemu_svm.stream.ram.problems import all_problems

            stream = machine.stream
            problems = all_problems(stream, self.ram)
            stream = replace(stream, pages=self.ram.counts(), problems=problems)
            machine = replace(machine, stream=stream)
        return Inspection(machine, tuple(findings(machine)), ram=True)

    def check(
        self,
        kernel: str | Sequence[str] = (),
        *,
        source: str | None = None,
        qemu: str | None = None,
        npt: bool = True,
        maxphyaddr: int = 40,
        cpu: str | None = None,
        ram: bool = False,
        saved: Dump | None = None,
    ) -> CheckReport:
        """Tell which kernels accept the nested state, and which rules it meets.

        :param kernel: kernels of the destination; without one, all releases.
        :param source: kernel of the source.
        :param qemu: version of the destination's QEMU, such as ``"7.2"``.
        :param npt: the destination's host uses nested paging.
        :param maxphyaddr: the guest's physical address width in bits.
        :param cpu: the CPU model of the destination as QEMU's ``-cpu`` has it, such as
            ``"EPYC-Rome,+svm"``.
        :param ram: look into guest memory where a rule depends on it, however large the
            stream is; without it, only in streams of up to 256 MiB.
        :param saved: the stream that a recording was to restore: the put is judged by it.
        :raises PlanError: no such kernel or CPU model, or ``qemu`` is not a version.
        """
        from qemu_svm.findings.check import check
        from qemu_svm.findings.looks import LOOKED_AT
        from qemu_svm.findings.results import CheckReport
        from qemu_svm.model.profiles import profiles, released

        names = [kernel] if isinstance(kernel, str) else kernel
        chosen = [profile for name in names for profile in profiles(name)] or released()
        look = ram or self.machine.stream.source.size() <= LOOKED_AT
        report = check(self.machine, chosen, qemu=qemu,
                       source=profiles(source)[0] if source is not None else None,
                       maxphyaddr=maxphyaddr, npt=npt, cpu=cpu,
                       memory=self._memory_aside if look else None, named=bool(names),
                       saved=None if saved is None else saved.machine)  # fmt: skip
        return CheckReport(self.machine, report)

    def simulate(
        self,
        plan: str | None = None,
        *,
        kernel: str | Sequence[str] | None = None,
        vcpu: int = 0,
        npt: bool = True,
        irqchip: bool = True,
        maxphyaddr: int = 40,
        cpu: str | None = None,
        race: dict[str, int] | None = None,
        against: str | None = None,
        saved: Dump | None = None,
    ) -> SimulationReport:
        """Restore a vCPU in a model of KVM.

        :param plan: ``qemu``, ``qemu-VERSION``, ``selftests``, or steps separated by commas;
            None for that of QEMU, as far as the input has values for it.
        :param kernel: one or more kernels; ``all`` for every profile; None for the kernel that
            a recording names, else 6.1.
        :param vcpu: CPU index.
        :param npt: the host uses nested paging.
        :param irqchip: the local APIC is in the kernel.
        :param maxphyaddr: the guest's physical address width in bits.
        :param cpu: the CPU model of the destination, as for :meth:`check`.
        :param race: fields of vmcb12's save area that L1 changes between check and use; adds
            a second VMRUN to the plan.
        :param against: a second plan, compared with the first; for one kernel only.
        :param saved: the stream that a recording was to restore: the result is judged by it.
        :raises PlanError: no such kernel, step or field; or ``against`` with several kernels.
        :raises PathError: no such vCPU.
        """
        from qemu_svm.findings.recorded import answers_of, first_difference, recorded_kernel
        from qemu_svm.findings.recorded_verdict import judge_recorded
        from qemu_svm.findings.results import SimulationReport
        from qemu_svm.memory.layout import backing
        from qemu_svm.model.profiles import profiles
        from qemu_svm.model.scenario import scenario

        names = [kernel] if isinstance(kernel, str) else kernel or ()
        chosen = [profile for name in names for profile in profiles(name)]
        chosen = chosen or [*recorded_kernel(self.vcpu(vcpu), ())] or profiles("6.1")
        if against is not None and len(chosen) != 1:
            raise PlanError("two plans are compared on one kernel")

        from qemu_svm.model.partial import default_plan
        from qemu_svm.model.recorded import PLAN

        def restore(steps: str | None) -> Scenario:
            return scenario(
                self.machine,
                self.vcpu(vcpu),
                steps,
                npt=npt,
                irqchip=irqchip,
                maxphyaddr=maxphyaddr,
                cpu=cpu,
                race=race,
                backed=None if saved is None else backing(saved.machine),
                saved=None if saved is None else saved.vcpu(vcpu),
            )

        wanted = restore(plan)
        if plan is None:
            one = self.vcpu(vcpu)
            plan = default_plan(self.machine, one) if one.put is None else PLAN
        finished = tuple(wanted.simulate(profile) for profile in chosen)
        judgements = tuple(
            judge_recorded(one, self.vcpu(vcpu), None if saved is None else saved.vcpu(vcpu))
            for one in finished
        )
        beside = None
        if against is not None:
            from qemu_svm.findings.plans import compare_plans

            beside = compare_plans(finished[0], restore(against).simulate(chosen[0]), against)
        put = self.vcpu(vcpu).put
        parted: tuple[RecordedDifference | None, ...] = ()
        if put is not None and plan == PLAN:
            parted = tuple(first_difference(put, wanted.steps, answers_of(one)) for one in finished)
        return SimulationReport(self.machine, plan, finished, judgements, beside, parted, vcpu)

    @cached_property
    def ram(self) -> Ram:
        """The index of all RAM records, of the channels too; made when first asked for."""
        from qemu_svm.stream.ram.read import read_ram

        return read_ram(self.machine.stream, self.channels)

    def _memory_aside(self) -> GuestMemory:
        # Damage in RAM does not count where RAM only supports a judgement.
        from qemu_svm.memory.memory import GuestMemory
        from qemu_svm.stream.ram.read import read_ram

        own = self.__dict__.get("ram")
        return GuestMemory(self.machine, own or read_ram(self.machine.stream, self.channels))

    @cached_property
    def memory(self) -> GuestMemory:
        """Guest memory: ``dump.memory.read(address, size)`` is L1-physical.

        ``dump.memory.world("l2v")`` is another address space.
        """
        from qemu_svm.memory.memory import GuestMemory

        return GuestMemory(self.machine, self.ram)

    def drgn(self, of: str = "l1") -> Any:
        """Return a ``drgn.Program`` that reads L1 or L2 out of the stream; both must be Linux.

        Needs the package drgn.  Load the symbols with ``load_debug_info`` of the program.

        :param of: ``l1``, ``l2`` or ``l2@ROOT``.
        :raises PathError: no vCPU runs such a level, or no VMCOREINFO is found for it.
        :raises EnvironmentFault: drgn is not installed.
        """
        from qemu_svm.memory.drgn_program import program

        return program(self.memory, of)

    def pages(self, blocks: Sequence[str] = (), *, span: Span | None = None) -> RamReport:
        """Tell what became of each page of RAM: sent, zero, again, never.

        :param blocks: names of RAM blocks; without one, all.
        :param span: only these bytes of each block; whole pages.
        :raises PathError: no such block; or ``span`` is not a multiple of the page size.
        :raises SourceError: no such block in a damaged stream.
        """
        from qemu_svm.findings.results import RamReport
        from qemu_svm.stream.ram.coverage import coverage

        ram = self.ram
        if span is not None and any(edge % ram.page_size for edge in span if edge < 1 << 63):
            raise PathError(f"the range is not a multiple of the page size, {ram.page_size}")
        try:
            chosen = [ram.block(name) for name in blocks] or list(range(len(ram.entries)))
        except PathError as error:
            raise not_found(self, error) from error
        return RamReport(self.machine.stream, ram, coverage(ram), tuple(chosen), span)

    def overview(
        self,
        *,
        kernel: str | None = None,
        source: str | None = None,
        qemu: str | None = None,
        npt: bool = True,
        cpu: str | None = None,
        other: Dump | None = None,
        log: PathLike | None = None,
        memory: bool = False,
        limits: Limits = DEFAULT,
    ) -> Overview:
        """Return all that ``svmstream report`` shows; ``to_html()`` is the page.

        :param kernel: the destination's; None for all releases.
        :param source: kernel of the source.
        :param qemu: version of the destination's QEMU, as for :meth:`check`.
        :param npt: the destination's host uses nested paging.
        :param cpu: the CPU model of the destination, as for :meth:`check`.
        :param other: a second stream to compare with.
        :param log: a log of a restore, as for :func:`judge_trace`.
        :param memory: with some guest memory: code and stacks of L1 and L2.
        :param limits: resource limits for the log.
        :raises PlanError: no such kernel, QEMU or CPU model.
        :raises SourceError: the log cannot be read.
        """
        from qemu_svm.findings.inspection import Inspection, findings
        from qemu_svm.findings.overview import Overview, drawn, excerpts, of_interest
        from qemu_svm.stream.ram.problems import all_problems
        from qemu_svm.stream.ram.rounds import rounds

        machine, pages = self.machine, None
        if machine.form is None or machine.stream.laid is not None:
            pages = self.pages()
            problems = all_problems(machine.stream, self.ram)
            machine = replace(machine, stream=replace(machine.stream, problems=problems))
        judged = self.check(kernel or (), source=source, qemu=qemu, npt=npt, cpu=cpu, ram=True)
        chosen, shown = drawn(judged), of_interest(judged)
        plan = None
        if qemu is not None and machine.form is None:
            from qemu_svm.findings.qemus import qemu_plan

            plan = qemu_plan(qemu)
        return Overview(
            Inspection(machine, tuple(findings(machine))),
            judged,
            tuple(
                (vcpu, self.simulate(plan, kernel=chosen, vcpu=vcpu.index, npt=npt, cpu=cpu))
                for vcpu in shown
            ),
            pages,
            () if pages is None else rounds(pages.ram.runs),
            None if other is None else diff(self, other),
            None if log is None else judge_trace(log, limits=limits),
            excerpts(self.memory, shown) if memory else (),
            kernel,
            source,
        )

    def compat(self, qemu: PathLike, *, timeout: float = 30) -> CompatReport:
        """Tell whether a QEMU would accept the sections of the stream.

        :param qemu: the binary, or a file that its ``-dump-vmstate`` wrote.
        :param timeout: seconds that the binary may take.
        :raises EnvironmentFault: the binary cannot be run or does not answer.
        :raises SourceError: the file is not a vmstate dump.
        """
        from qemu_svm.findings.compat import compatibility
        from qemu_svm.findings.results import CompatReport
        from qemu_svm.qmp.dump import dump_of

        target = os.fspath(qemu)
        dump, machines = dump_of(target, self.machine.name, timeout)
        return CompatReport(self.machine, compatibility(self.machine, dump, machines), target)


def not_found(dump: Dump, error: PathError) -> PathError | SourceError:
    """Return the error to raise: in a damaged stream, the part that was not found may be lost."""
    if dump.complete:
        return error
    return SourceError(f"{error.what}, as far as the stream can be read", hint=error.hint)


Input = PathLike | Dump


def diff(
    a: Input,
    b: Input,
    *,
    mask: Sequence[str] = (),
    masks: bool = True,
    ram: bool = False,
    limits: Limits = DEFAULT,
    progress: Progress | None = None,
) -> DiffReport:
    """Compare two streams by name, field by field.

    :param a: an open dump, or what :func:`open` takes.
    :param mask: paths that do not count, with all below them; ``*`` is any text.
    :param masks: use the built-in masks, for fields that are known to differ.
    :param ram: compare the content of RAM too.
    :param limits: resource limits for inputs that are not open yet.
    """
    from qemu_svm.findings.masks import DEFAULT as BUILT_IN
    from qemu_svm.findings.masks import user_masks

    chosen = user_masks(mask) + (BUILT_IN if masks else ())
    with ExitStack() as stack:
        ours, theirs = (_opened(one, stack, limits) for one in (a, b))
        return compare_dumps(ours, theirs, chosen, ram=ram, progress=progress)


def compare_dumps(
    a: Dump,
    b: Dump,
    masks: Sequence[Mask],
    *,
    ram: bool = False,
    progress: Progress | None = None,
) -> DiffReport:
    """Compare two dumps with these masks only; see :func:`diff`."""
    from qemu_svm.findings.diff import compare
    from qemu_svm.findings.results import DiffReport
    from qemu_svm.replay.expected import compare_recorded

    found = compare(a.machine, b.machine, masks)
    pages = None
    if ram:
        from qemu_svm.findings.ram_diff import compare_ram

        pages = compare_ram(a.ram, b.ram, masks, progress or _silent)
    return DiffReport(a.machine, b.machine, found, pages, compare_recorded(a.machine, b.machine))


def look_inside(
    pid: int | None = None,
    *,
    vcpus: Sequence[int] = (),
    types: PathLike | None = None,
) -> InsideLook:
    """Read the vCPUs of a running process out of this host's kernel memory.

    Needs root on an AMD host; nothing is stopped or changed.

    :param pid: a process that uses KVM; None for the only one.
    :param vcpus: ids of those that are wanted; none for all.
    :param types: file with the types of kvm-amd (BTF), for a kernel that does not have them.
    :raises EnvironmentFault: this host forbids it, or there is no such process.
    """
    from contextlib import closing
    from pathlib import Path

    from qemu_svm.inside.host import ThisHost
    from qemu_svm.inside.looking import look

    host = ThisHost(None if types is None else Path(types))
    with closing(look(host, pid, vcpus=vcpus)) as looks:
        return next(looks)


def diff_inside(
    a: InsideLook | Input, b: InsideLook | Input, *, mask: Sequence[str] = ()
) -> InsideDiff:
    """Compare two looks into kernel memory, or one with a stream.

    With a stream, what the ioctls would answer now is compared with what it has.

    :param a: a look, the path of a file of ``svmstream inside -o``, or a stream.
    :param mask: paths that do not count, with all below them; ``*`` is any text.
    :raises SourceError: a file cannot be read.
    """
    from qemu_svm.inside.apart import compare

    with ExitStack() as stack:
        ours, theirs = (_side(one, stack) for one in (a, b))
        return compare(ours, theirs, mask)


def _side(one: InsideLook | Input, stack: ExitStack) -> InsideLook | Machine:
    from qemu_svm.inside.file import is_kept
    from qemu_svm.inside.kept import read_kept
    from qemu_svm.inside.looking import InsideLook

    if isinstance(one, InsideLook):
        return one
    if not isinstance(one, Dump) and is_kept(os.fspath(one)):
        return read_kept(os.fspath(one))
    return _opened(one, stack, DEFAULT).machine


def _silent(_done: int) -> None:
    pass


def _opened(one: Input, stack: ExitStack, limits: Limits) -> Dump:
    return one if isinstance(one, Dump) else stack.enter_context(open(one, limits=limits))


def replay_plan(
    stream: Input,
    plan: str | None = None,
    *,
    kernel: str | None = None,
    device: str | None = None,
    npt: bool = True,
    vcpu: int = 0,
    irqchip: bool = True,
    maxphyaddr: int = 40,
    shorten: bool = False,
    compare: bool = False,
    inside: bool = False,
    addresses: bool = False,
    timeout: float = 10,
    limits: Limits = DEFAULT,
    progress: LabProgress | None = None,
    mirror: str | None = None,
    saved: Dump | None = None,
    patch: PathLike | None = None,
    modules: Sequence[PathLike] = (),
) -> Replay:
    """Restore a vCPU of a stream into a real KVM, step by step.

    :param stream: an open dump, or what :func:`open` takes.
    :param plan: as for :meth:`Dump.simulate`.
    :param kernel: start an emulated AMD host with this kernel, such as 6.12 or 6.12.105; None for
        this machine.
    :param device: the KVM of this machine; None for /dev/kvm.
    :param npt: the emulated host uses nested paging.
    :param vcpu: CPU index.
    :param irqchip: the local APIC is in the kernel.
    :param maxphyaddr: the guest's physical address width in bits.
    :param shorten: L2 executes one instruction that L1 intercepts, instead of its own code.
    :param compare: run the model as well, and compare after each step.
    :param inside: read the vCPU in the kernel's memory after each step (as root, or in a box).
    :param addresses: with addresses of the host's memory.
    :param timeout: seconds that a run may take.
    :param progress: shows what is being done while the emulated host starts.
    :param mirror: Debian mirror for a kernel that is not in the lab's cache.
    :param saved: the stream that a recording was to restore: its memory is used.
    :param patch: build KVM of the emulated host's kernel with this patch.
    :param modules: load these kvm-amd.ko and kvm.ko in the emulated host.
    :raises Refused: the patch does not apply or compile, or a module does not fit the kernel.
    :raises PlanError: a step that does not exist, or cannot be replayed; no name of a kernel.
    :raises PathError: no such vCPU.
    :raises StreamError: RAM of the stream is missing or damaged.
    :raises EnvironmentFault: there is no KVM that can run nested SVM guests.
    """
    from pathlib import Path

    from qemu_svm.lab.kvm import replay_target
    from qemu_svm.lab.progress import SILENT
    from qemu_svm.replay.job import ReplayOptions
    from qemu_svm.replay.replay import prepare, replay

    options = ReplayOptions(
        seconds=timeout, irqchip=irqchip, maxphyaddr=maxphyaddr, shorten=shorten,
        emulated=kernel is not None, vcpu=vcpu,
    )  # fmt: skip
    with ExitStack() as stack:
        dump = _opened(stream, stack, limits)
        saved_in = None if saved is None else saved.machine
        job = prepare(dump.machine, dump.vcpu(vcpu), plan, options, saved_in)
        target = stack.enter_context(
            replay_target(
                kernel, device, npt=npt, mirror=mirror, progress=progress or SILENT,
                patch=None if patch is None else Path(patch), modules=tuple(map(Path, modules)),
            )
        )  # fmt: skip
        return replay(
            dump.machine, job, target, channels=(saved or dump).channels, compared=compare,
            inside=inside, addresses=addresses, saved_in=saved_in,
        )  # fmt: skip


def judge_trace(log: PathLike, *, limits: Limits = DEFAULT) -> Trace:
    """Check the order of KVM_SET_* calls in a recorded log of ioctls.

    :param log: what QEMU's ``-trace kvm_vcpu_ioctl`` or ``strace -f -e trace=ioctl`` wrote, or
        trace-cmd's report; may be compressed; ``-`` for standard input.
    :raises SourceError: the log cannot be read, or has no ioctls of KVM.
    """
    from qemu_svm.trace.model import read_trace

    with open_source(os.fspath(log), limits) as source:
        return read_trace(source, limits)


def why(
    file: PathLike | None = None,
    *,
    errors: str | Sequence[str] = (),
    log: PathLike | None = None,
    source: str | None = None,
    kernel: str | None = None,
    limits: Limits = DEFAULT,
) -> Why:
    """Tell what an error line, a log and a stream show, and the likely cause.

    :param file: a stream, or a log; told apart by its content.
    :param errors: lines that a program or a kernel printed.
    :param log: a log: of QEMU, libvirt, another VMM or the kernel, kvm's tracepoints, or ioctls;
        ``-`` for standard input.
    :param source: kernel of the source.
    :param kernel: kernel of the destination; None for the one that the log names.
    :raises SourceError: an input cannot be read, or is neither a stream nor text.
    :raises PlanError: no such kernel, or nothing to explain.
    """
    from qemu_svm.diagnosis.diagnose import diagnose
    from qemu_svm.diagnosis.facts import read_facts

    lines = [errors] if isinstance(errors, str) else list(errors)
    if file is None and log is None and not lines:
        raise PlanError("nothing to explain: give a stream, a log or an error line")
    with ExitStack() as owned:
        given = None if file is None else owned.enter_context(open_source(os.fspath(file), limits))
        logged = None if log is None else owned.enter_context(open_source(os.fspath(log), limits))
        machine = None
        if given is not None and given.read_at(0, 4) == _MAGIC:
            machine = read_machine(read_stream(given, limits, Walk.QUICK))
        elif given is not None and logged is not None:
            raise SourceError(
                f"'{given.path}' is not a migration stream",
                hint="of two logs, give each by itself",
            )
        elif given is not None:
            logged = given
        for one in (logged,) if logged is not None else ():
            _is_text(one)
        facts = read_facts(lines, logged, limits)
        path = None if logged is None else logged.path
        return diagnose(facts, machine, log=path, source=source, destination=kernel)


_MAGIC = b"QEVM"
_TEXT = 4096


def _is_text(log: Source) -> None:
    if log.read_at(0, 4) == _MAGIC:
        raise SourceError(f"'{log.path}' is a migration stream, not a log", hint="give it as FILE")
    if b"\0\0" in log.read_at(0, _TEXT):
        raise SourceError(
            f"'{log.path}' is neither a migration stream nor text",
            hint="svmstream inspect tells what it knows of it",
        )


def connect(socket: str, *, timeout: float = 30, connect_timeout: float = 5) -> Connection:
    """Connect to a QEMU.

    :param socket: its QMP socket: ``unix:PATH``, a path, or ``HOST:PORT``.
    :param timeout: seconds that QEMU may take for an answer.
    :param connect_timeout: seconds that connecting may take.
    :returns: a connection, which is a context manager and belongs to one thread.
    :raises QmpError: there is no such socket, or no QEMU behind it.
    """
    from qemu_svm.qmp import sync

    return sync.connect(socket, timeout=timeout, connect_timeout=connect_timeout)


def capture_stream(
    socket: str,
    path: PathLike,
    options: CaptureOptions | None = None,
    *,
    replace: bool = False,
    timeout: float = 30,
) -> Captured:
    """Capture a running guest into a file; it continues as before.

    :param socket: QMP socket, as for :func:`connect`.
    :param path: the file; it gets this name when it is complete and on the disk.
    :param replace: an existing file may be replaced.
    :param timeout: seconds that QEMU may take for an answer.
    :raises QmpError: the socket cannot be used.
    :raises OutputExists: the file exists.
    :raises EnvironmentFault: the file cannot be written.
    :raises Refused: this QEMU cannot or will not do it now.
    """
    with connect(socket, timeout=timeout) as qmp:
        return qmp.capture(os.fspath(path), options, replace=replace)


def record_process(
    pid: int, path: PathLike, *, how: str = "auto", redact: bool = False, ram: bool = False
) -> Recorded:
    """Record the KVM ioctls of a process, until it ends or a signal comes.

    Only the main thread of a program can do it.

    :param path: of the recording, JSON lines if it ends in ``.jsonl``; it must not exist.
    :param how: ``auto``, ``bpf`` or ``ptrace``.
    :param redact: leave out what is the host's.
    :param ram: record guest memory as well.
    :raises EnvironmentFault: there is no such process, it may not be recorded, does not use
        KVM, or the recording cannot be written.
    :raises OutputExists: the file exists.
    """
    from qemu_svm.recorder import record

    return record.record_process(pid, record.Wish(os.fspath(path), how, redact=redact, ram=ram))


def convert_recording(log: PathLike, output: PathLike, *, redact: bool = False,
                      limits: Limits = DEFAULT) -> Converted:  # fmt: skip
    """Write a recording anew, in either form.

    :param log: the recording; may be compressed.
    :param output: JSON lines if it ends in ``.jsonl``, else binary; compressed if it ends in
        ``.zst``; it must not exist.
    :param redact: leave out what is the host's, MSRs and guest memory.
    :raises SourceError: the recording cannot be read.
    :raises StreamError: it is none.
    :raises OutputExists: the file exists.
    :raises EnvironmentFault: it cannot be written.
    """
    from qemu_svm.recording.convert import convert

    with open_source(os.fspath(log), limits) as source:
        return convert(source, os.fspath(output), without_host=redact)


def record_command(
    argv: Sequence[str],
    path: PathLike,
    *,
    how: str = "auto",
    redact: bool = False,
    ram: bool = False,
) -> Recorded:
    """Run a command; record the KVM ioctls that it, and what it starts, makes.

    :param argv: the command; its output and input are this program's.
    :param path: as for :func:`record_process`, as are the others.
    :raises EnvironmentFault: it cannot be run, may not be recorded, or the recording cannot
        be written.
    :raises OutputExists: the file exists.
    """
    from qemu_svm.recorder import record

    return record.record_command(argv, record.Wish(os.fspath(path), how, redact=redact, ram=ram))
