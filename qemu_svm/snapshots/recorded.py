"""A recording as state: of each vCPU one put, the ioctls between two of its runs.

Where a recording has KVM_RUN, a put ends at it.  In a recording without any, a put ends where
registers that were set have been read and are set again: the vCPU ran in between.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from qemu_svm.errors import LimitExceeded, PathError, SourceError, StreamError
from qemu_svm.kvm import layouts
from qemu_svm.kvm.numbers import Level
from qemu_svm.limits import Limits
from qemu_svm.machine.recorded import (
    CAP_EXCEPTION_PAYLOAD,
    CAP_TRIPLE_FAULT,
    Given,
    ReadBack,
    RecordedPut,
)
from qemu_svm.recording.payload import complete, given, returned
from qemu_svm.recording.recording import Recording
from qemu_svm.recording.records import RUN, Ioctl, Lost, Memory
from qemu_svm.snapshots.forms import RECORDING
from qemu_svm.snapshots.memory import RecordedMemory
from qemu_svm.snapshots.parts import LEAST, Part, Snapshot, part

SET = {
    **{f"SET_{name}": name for name in LEAST},
    **dict.fromkeys(("SET_TSC_KHZ", "SMI"), ""),
}
"""Ioctls of a vCPU that a put consists of, and the structure that each has."""
_READ = {f"GET_{name}": name for name in LEAST}
_AFTER_RUN = frozenset({"REGS", "SREGS", "SREGS2", "NESTED_STATE"})
"""What a VMM reads after the vCPU ran."""
_ENABLE_CAP, _CREATE_IRQCHIP, _CREATE_VM, _CREATE_VCPU = 0x4068_AEA3, 0xAE60, 0xAE01, 0xAE41
_GET_SUPPORTED_CPUID = 0xC008_AE05
_CPUID = "SET_CPUID2"
_APART = frozenset({"SET_LAPIC", "SET_XSAVE", "SET_XCRS", "SET_FPU", "SET_TSC_KHZ"})
"""Without effect on nested state: they alone are no put."""
_CALLS = 1024
"""Most ioctls of a put; further ones count as lost."""
_READS = 64
"""Most structures that are read after one of them."""
_DESCRIPTORS = 1 << 14
_BYTES = 1 << 20
"""Most bytes of a put."""
_CAPS = 256
_PART = 1 << 14
_LISTS = 8
_EFER, _LMA = 0xC000_0080, 1 << 10
_MCG_CTL, _MC0, _MCG_CTL_P = 0x17B, 0x400, 1 << 8
_NESTED = "SET_NESTED_STATE"
_KINDS = {"SREGS2": "SREGS"}
_CARRIED = ("SREGS", "NESTED_STATE", "REGS", "MSRS", "VCPU_EVENTS", "MP_STATE", "DEBUGREGS")
"""Structures that matter for nested state, in an order in which KVM takes them."""
_WHOLE = {"SET_CPUID2", "SET_LAPIC", "SET_MP_STATE"}


@dataclass
class _Fragment:
    # The calls up to a run, or to where registers were read and then set again; the CPUID that
    # was there before, and whether the vCPU had run.  Record ``after`` shows that it ran, which
    # may be inferred; ``reads`` is what was read since, before anything was set.
    calls: list[Given] = field(default_factory=list)
    cpuid: Given | None = None
    after_run: bool = False
    ran: bool = False
    names: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    size: int = 0
    lost: int = 0
    guest: bool = False
    after: int = 0
    reads: list[ReadBack] = field(default_factory=list)

    def is_put(self) -> bool:
        return any(call.name in ("SET_SREGS", "SET_SREGS2", "SET_NESTED_STATE", "SET_REGS")
                   for call in self.calls)  # fmt: skip


@dataclass
class _Track:
    # One vCPU of the recording; the VM that it belongs to by number, from 1.
    index: int
    vm: int
    dropped: int = 0
    created: bool = False
    has_run: bool = False
    cpuid: Given | None = None
    mce: int = 0
    fragments: list[_Fragment] = field(default_factory=lambda: [_Fragment()])

    @property
    def last(self) -> _Fragment:
        return self.fragments[-1]


_Found = tuple[_Track, list[_Fragment], list[_Fragment]]
"""A vCPU with all of its fragments, and those that are puts."""


class _Puts:
    # The puts of every vCPU; of very many only the last ones are kept.  With `every`, what was
    # set between two runs counts as a put, whatever it is.

    def __init__(self, limits: Limits, memory: RecordedMemory, *, every: bool) -> None:
        self._limits = limits
        self._every = every
        self.memory = memory
        self.tracks: list[_Track] = []
        self.runs = False
        self.capabilities: dict[int, set[int]] = {}
        self.irqchips: dict[int, bool] = {}
        self._of_fd: dict[int, _Track] = {}
        self._vms: dict[int, int] = {}  # by descriptor
        self._created = 0
        self.supported = b""

    def take(self, record: object) -> None:
        if isinstance(record, Lost):
            for track in self.tracks:
                track.last.lost += record.count
        elif isinstance(record, Memory):
            self.memory.add(self._vms.get(record.fd, 1), record)
        elif isinstance(record, Ioctl):
            if record.level is Level.VCPU:
                self._of_vcpu(record)
            else:
                self._of_vm(record)

    def _of_vm(self, call: Ioctl) -> None:
        if call.ret < 0:
            return
        if call.nr == _GET_SUPPORTED_CPUID:
            self.supported = returned(call)
        elif call.nr == _CREATE_VM:
            self._created += 1
            if len(self._vms) < _DESCRIPTORS or call.ret in self._vms:
                self._vms[call.ret] = self._created
                self.irqchips[self._created] = False
        number = self._vms.get(call.fd, 1)
        self.memory.region(number, call)
        if call.nr == _CREATE_VCPU:
            self._of_fd[call.ret] = track = self._new(call.arg & 0xFFFF, number)
            track.created = True
        elif call.nr == _CREATE_IRQCHIP:
            self.irqchips[number] = True
        elif call.nr == _ENABLE_CAP and len(call.given) >= 4:
            found = self.capabilities.setdefault(number, set())
            if len(found) < _CAPS:
                found.add(int.from_bytes(call.given[:4], "little"))

    def _new(self, index: int, vm: int) -> _Track:
        if len(self.tracks) >= self._limits.vcpus:
            raise LimitExceeded(
                "more vCPUs than the limit allows",
                offset=0,
                expected=f"at most {self._limits.vcpus}",
                hint="raise it with --limit vcpus=NUMBER",
            )
        self.tracks.append(_Track(index, vm))
        return self.tracks[-1]

    def _of_vcpu(self, call: Ioctl) -> None:
        track = self._track(call)
        name = call.name.removeprefix("KVM_")
        if call.nr == RUN:
            self.runs = True
            self._ran(track, call.number)
        elif name == "X86_SETUP_MCE":
            if call.ret >= 0 and len(call.given) == 8:
                track.mce = int.from_bytes(call.given, "little")
        elif name in SET:
            self._set(track, call, name)
        elif name in _READ:
            self._read(track, call, _READ[name])

    def _track(self, call: Ioctl) -> _Track:
        track = self._of_fd.get(call.fd)
        if track is None or (call.index is not None and call.index != track.index):
            # Two descriptors of one index are vCPUs of two VMs.  Without numbers they are
            # numbered as they come.
            index = len(self.tracks) if call.index is None else call.index
            vm = 1 + sum(one.index == index for one in self.tracks)
            track = self._of_fd[call.fd] = self._new(index, vm)
        return track

    def _ran(self, track: _Track, record: int) -> None:
        track.has_run = True
        if track.last.calls:
            track.last.ran = True
            self._next(track)
        track.last.after = record
        track.last.reads.clear()

    def _next(self, track: _Track) -> None:
        if not self._kept(track.last) and len(track.fragments) > 1 and track.last.ran:
            track.fragments.pop()  # a run that nothing of a restore came before
        track.fragments.append(_Fragment(cpuid=track.cpuid, after_run=track.has_run))
        if len(track.fragments) > self._limits.recorded_puts:
            del track.fragments[1]  # the first one is kept
            track.dropped += 1

    def _set(self, track: _Track, call: Ioctl, name: str) -> None:
        if not self.runs and name.removeprefix("SET_") in track.last.read:
            self._again(track, call.number)
        last = track.last
        data = given(call)
        last.size += len(data)
        if len(last.calls) >= _CALLS or last.size > _BYTES:
            last.lost += 1
            return
        last.names.add(name)
        failed = call.ret < 0
        last.guest = last.guest or (name == _NESTED and bool(data[:1]) and bool(data[0] & 1))
        word = errno.errorcode.get(-call.ret, str(-call.ret)) if failed else None
        if word is None and not complete(call):
            data = b""
        given_now = Given(name, call.number, data, call.arg, word, call.ret if not failed else 0)
        last.calls.append(given_now)
        if name == _CPUID and word is None:
            track.cpuid = given_now

    def _again(self, track: _Track, record: int) -> None:
        # Registers are set again that were read: what was set since they were is of this put.
        calls = track.last.calls
        at = next((at for at in range(len(calls), 0, -1) if calls[at - 1].read), len(calls))
        moved, seen = calls[at:], calls[at - 1].read
        del calls[at:]
        self._next(track)
        last = track.last
        last.calls += moved
        last.names.update(one.name for one in moved)
        last.reads += seen
        last.after = seen[0].record if seen else record

    def _read(self, track: _Track, call: Ioctl, name: str) -> None:
        last = track.last
        data = returned(call)
        if call.ret < 0 or not data:
            return
        if not last.calls:
            if not track.created and len(track.fragments) == 1:
                last.after = last.after or call.number  # of a vCPU that was there before
            if last.after and len(last.reads) < _READS and len(data) <= _PART:
                last.reads.append(ReadBack(name, call.number, data))
            return
        if name in _AFTER_RUN and f"SET_{name}" in last.names:
            last.read.add(name)
        last.size += len(data)
        before = last.calls[-1]
        if last.size <= _BYTES and len(before.read) < _READS:
            last.calls[-1] = replace(before, read=(*before.read, ReadBack(name, call.number, data)))

    def found(self) -> list[_Found]:
        """Return the puts of each vCPU that has any; to be called once."""
        every = [(track, self._merged(track)) for track in self.tracks]
        found = [(track, ours, [one for one in ours if self._kept(one)]) for track, ours in every]
        return [(track, ours, puts) for track, ours, puts in found if puts]

    def _merged(self, track: _Track) -> list[_Fragment]:
        # With KVM_RUN in the recording a put ends at one, wherever registers were read.  What is
        # no put counts for what the vCPU had before one.
        found: list[_Fragment] = []
        for one in track.fragments:
            if self.runs and found and not found[-1].ran:
                found[-1].calls += one.calls
                found[-1].ran = one.ran
                found[-1].lost += one.lost
                found[-1].guest |= one.guest
            elif one.calls:
                found.append(one)
        return found

    def _kept(self, one: _Fragment) -> bool:
        return one.is_put() or (self._every and any(call.name not in _APART for call in one.calls))


def read_puts(
    recording: Recording, limits: Limits, *, put: int | None = None, vm: int | None = None
) -> tuple[Snapshot, dict[int, RecordedPut]]:
    """Return the state that the chosen put of each vCPU gives, and the puts by vCPU.

    :param put: number of the put of each vCPU, from 1; None for the last one that puts a vCPU
        into guest mode, else the last one that sets its registers before it runs.
    :param vm: number of the VM, from 1; None for the first that has a vCPU in guest mode, else
        the first whose registers are set.
    :raises SourceError: no vCPU has a put.
    :raises PathError: no vCPU has so many, or there is no such VM.
    """
    memory = RecordedMemory(recording.path, limits)
    try:
        puts = _read(recording, limits, memory, every=False)
        snapshot, chosen = _chosen_state(recording, puts, puts.found(), limits, put=put, vm=vm)
        ranges, file = memory.take(next(iter(chosen.values())).vm)
        return replace(snapshot, memory=ranges, file=file), chosen
    finally:
        memory.close()


def every_put(
    recording: Recording, limits: Limits
) -> Iterator[tuple[Snapshot, dict[int, RecordedPut]]]:
    """Yield what was set between any two runs of a vCPU, VM after VM.

    That is each put of :func:`read_puts`, and ioctls that are none, such as SET_MSRS alone.  The
    recording is read once; guest memory that it has is left out, and so are ioctls without data,
    and puts beyond ``recorded_puts``.

    :raises SourceError: no vCPU has a put.
    """
    memory = RecordedMemory(recording.path, limits)
    try:
        puts = _read(recording, limits, memory, every=True)
    finally:
        memory.close()
    found = puts.found()
    counts: dict[int, int] = {}
    for track, _, fragments in found:
        counts[track.vm] = max(len(fragments) + track.dropped, counts.get(track.vm, 0))
    if not found:
        raise _no_put(recording)
    for vm, count in sorted(counts.items()):
        for number in range(1, count + 1):
            with suppress(PathError, SourceError):
                yield _chosen_state(recording, puts, found, limits, put=number, vm=vm)


def _read(recording: Recording, limits: Limits, memory: RecordedMemory, *, every: bool) -> _Puts:
    puts = _Puts(limits, memory, every=every)
    for record in recording:
        puts.take(record)
    return puts


def _no_put(recording: Recording) -> Exception:
    if recording.damage is not None:
        return recording.damage
    return SourceError(
        f"'{recording.path}' has no vCPU whose registers are set",
        hint="a put is KVM_SET_REGS, KVM_SET_SREGS, KVM_SET_NESTED_STATE, … on one vCPU",
    )


def _chosen_state(
    recording: Recording,
    puts: _Puts,
    found: Sequence[_Found],
    limits: Limits,
    *,
    put: int | None,
    vm: int | None,
) -> tuple[Snapshot, dict[int, RecordedPut]]:
    if not found:
        raise _no_put(recording)
    wanted = _vm(found) if vm is None else vm
    machines = {track.vm for track, _, _ in found}
    if wanted not in machines:
        known = [str(number) for number in sorted(machines)]
        raise PathError(f"the recording has no VM {wanted} whose registers are set", near=known)
    chosen: dict[int, RecordedPut] = {}
    parts: list[Part] = []
    most = 0
    for track, ours, fragments in found:
        # Those that were not kept are between the first one and the others.
        dropped = track.dropped
        if put is None:
            at = _chosen(fragments, runs=puts.runs) - 1
        else:
            at = put - 1 - (dropped if put > 1 else 0)
        count = len(fragments) + dropped
        most = max(most, count)
        kept = 0 <= at < len(fragments) and not (at == 0 and put is not None and put > 1)
        if track.vm != wanted or track.index in chosen or not kept:
            continue
        one = fragments[at]
        before = tuple(_before(ours[: _place(ours, one)], one))
        read = {_KINDS.get(each.name, each.name) for each in one.reads}
        chosen[track.index] = RecordedPut(
            at + 1 + (dropped if at else 0), count, tuple(one.calls),
            one.ran if puts.runs else None,
            frozenset(puts.capabilities.get(track.vm, set()) | _accepted((*before, *one.calls))),
            puts.irqchips.get(track.vm), one.lost, recording.header.release, wanted,
            len(machines), track.created, puts.supported, before, one.after,
            tuple(name for name in _CARRIED if name not in read) if one.after else (),
            recording.header.vendor, track.mce or _mce((*before, *one.calls)),
        )  # fmt: skip
        parts += _parts(chosen[track.index], track.index)
    if not chosen:
        where = f"there are {most}" + (
            f", of which the first and the last {limits.recorded_puts - 1} are kept "
            "(--limit recorded_puts=NUMBER)"
            if most > limits.recorded_puts
            else ""
        )
        raise PathError(f"no vCPU of the recording has a put {put}: {where}")
    if not parts:
        raise SourceError(
            f"'{recording.path}': the ioctls of its puts have no data",
            hint="record with their payload; svmstream trace judges the order alone",
        )
    problems = (recording.damage,) if isinstance(recording.damage, StreamError) else ()
    return Snapshot(RECORDING, tuple(parts), problems=problems), chosen


def _vm(found: Sequence[_Found]) -> int:
    for track, _, fragments in found:
        if any(one.guest for one in fragments):
            return track.vm
    return found[0][0].vm


def _chosen(fragments: Sequence[_Fragment], *, runs: bool) -> int:
    # The restore: the last put with guest mode; else the last one before the first run, where
    # runs are recorded; else the last one with nested state, or with what is put once only.
    for number in range(len(fragments), 0, -1):
        if fragments[number - 1].guest:
            return number
    if runs:
        return next((at for at, one in enumerate(fragments, 1) if one.ran), len(fragments))
    for names in ({_NESTED}, _WHOLE):
        found = [at for at, one in enumerate(fragments, 1) if names & one.names]
        if found:
            return found[-1]
    return len(fragments)


def _place(ours: Sequence[_Fragment], one: _Fragment) -> int:
    return next(at for at, each in enumerate(ours) if each is one)


def _before(earlier: Sequence[_Fragment], one: _Fragment) -> Iterator[Given]:
    # What gives a new vCPU the state before this put.  After a run that is what was read; what
    # was not read is as it was put last.  A VMM sets CPUID once.
    own = any(call.name == _CPUID for call in one.calls)
    if one.cpuid is not None and (one.after or not own):
        yield replace(one.cpuid, read=(), ran=one.after_run)
    if not one.after:
        return
    found: dict[str, list[Given]] = {}
    for call in (each for fragment in earlier for each in fragment.calls):
        kind = _KINDS.get(SET[call.name], SET[call.name])
        if kind not in _CARRIED or call.errno is not None or not call.data:
            continue
        kept = found.setdefault(kind, [])
        if kind != "MSRS":
            kept.clear()
        kept.append(replace(call, read=()))
        del kept[:-_LISTS]
    fresh: set[str] = set()
    for read in one.reads:
        kind = _KINDS.get(read.name, read.name)
        if kind not in _CARRIED or len(read.data) < LEAST[read.name]:
            continue
        kept = found.setdefault(kind, [])
        if kind != "MSRS" or kind not in fresh:
            kept.clear()
        fresh.add(kind)
        kept.append(Given(f"SET_{read.name}", read.record, read.data))
    for kind in _CARRIED:
        yield from found.get(kind, ())


def _accepted(calls: Iterable[Given]) -> set[int]:
    # Flags of VCPU_EVENTS that KVM takes only with a capability.
    flags = 0
    for call in calls:
        if call.name == "SET_VCPU_EVENTS" and call.errno is None and len(call.data) >= 24:
            flags |= int.from_bytes(call.data[20:24], "little")
    found = {CAP_EXCEPTION_PAYLOAD} if flags & 0x10 else set()
    return found | ({CAP_TRIPLE_FAULT} if flags & 0x20 else set())


def _mce(calls: Iterable[Given]) -> int:
    # What a recording that begins late lacks: MCG_CTL is taken only if MCG_CAP has it (Linux
    # arch/x86/kvm/x86.c set_msr_mce).
    taken = [call for call in calls if call.name == "SET_MSRS" and call.errno is None]
    msrs = {number: value for call in taken if call.data
            for number, value in layouts.unpack_whole_msrs(call.data).items()}  # fmt: skip
    if not msrs.get(_MCG_CTL):
        return 0
    banks = 1 + max(
        (number - _MC0 >> 2 for number in msrs if _MC0 <= number < _MC0 + 128), default=0
    )
    return _MCG_CTL_P | banks


def _with_efer(sregs: Part, value: int) -> Part:
    # EFER that an MSR sets after SREGS; LMA stays (Linux arch/x86/kvm/x86.c set_efer).
    at = next(one.offset for one in layouts.SREGS.fields if one.name == "efer")
    old = int.from_bytes(sregs.data[at : at + 8], "little")
    new = (value & ~_LMA | old & _LMA).to_bytes(8, "little")
    return replace(sregs, data=sregs.data[:at] + new + sregs.data[at + 8 :])


def _parts(put: RecordedPut, index: int) -> Iterator[Part]:
    # What the vCPU has after the put: the last structure of each kind, all MSRs together.
    msrs: dict[int, int] = {}
    found: dict[str, Part] = {}
    for call in (*put.before, *put.calls):
        name = SET[call.name]
        where = f"record {call.record}"
        if not name or not call.data or (call.errno is not None and name in found):
            continue
        try:
            one = part(name, index, call.data, where)
        except SourceError:
            continue  # shown with the step that it belongs to
        if name == "MSRS":
            values = layouts.unpack_msrs(one.data)
            msrs |= values
            if _EFER in values and call.errno is None:
                for kind in ("SREGS", "SREGS2"):
                    if kind in found:
                        found[kind] = _with_efer(found[kind], values[_EFER])
        else:
            found.pop({"SREGS": "SREGS2", "SREGS2": "SREGS"}.get(name, ""), None)
            found[name] = one
    yield from found.values()
    if msrs:
        yield part("MSRS", index, layouts.pack_msrs(list(msrs.items())), "SET_MSRS of the put")
