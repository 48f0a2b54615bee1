"""A recording as state: of each vCPU one put, the ioctls between two of its runs.

Where a recording has KVM_RUN, a put ends at it.  In a recording without any, a put ends where
registers that were set have been read and are set again: the vCPU ran in between.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
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
from qemu_svm.nested import bits
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
_CALLS = 1024
"""Most ioctls of a put; further ones count as lost."""
_READS = 64
"""Most structures that are read after one of them."""
_DESCRIPTORS = 1 << 14
_BYTES = 1 << 20
"""Most bytes of a put."""
_CAPS = 256


@dataclass
class _Fragment:
    # The calls up to a run, or to where registers were read and then set again; the CPUID that
    # was there before, and whether the vCPU had run.
    calls: list[Given] = field(default_factory=list)
    cpuid: Given | None = None
    after_run: bool = False
    ran: bool = False
    names: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    size: int = 0
    lost: int = 0

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
    fragments: list[_Fragment] = field(default_factory=lambda: [_Fragment()])

    @property
    def last(self) -> _Fragment:
        return self.fragments[-1]


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
            self._ran(track)
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

    def _ran(self, track: _Track) -> None:
        track.has_run = True
        if track.last.calls:
            track.last.ran = True
            self._next(track)

    def _next(self, track: _Track) -> None:
        if not self._kept(track.last) and len(track.fragments) > 1 and track.last.ran:
            track.fragments.pop()  # a run that nothing of a restore came before
        track.fragments.append(_Fragment(cpuid=track.cpuid, after_run=track.has_run))
        if len(track.fragments) > self._limits.recorded_puts:
            del track.fragments[1]  # the first one is kept
            track.dropped += 1

    def _set(self, track: _Track, call: Ioctl, name: str) -> None:
        if not self.runs and name.removeprefix("SET_") in track.last.read:
            self._next(track)
        last = track.last
        data = given(call)
        last.size += len(data)
        if len(last.calls) >= _CALLS or last.size > _BYTES:
            last.lost += 1
            return
        last.names.add(name)
        failed = call.ret < 0
        word = errno.errorcode.get(-call.ret, str(-call.ret)) if failed else None
        if word is None and not complete(call):
            data = b""
        given_now = Given(name, call.number, data, call.arg, word, call.ret if not failed else 0)
        last.calls.append(given_now)
        if name == _CPUID and word is None:
            track.cpuid = given_now

    def _read(self, track: _Track, call: Ioctl, name: str) -> None:
        last = track.last
        data = returned(call)
        if call.ret < 0 or not last.calls:
            return
        if name in _AFTER_RUN and f"SET_{name}" in last.names:
            last.read.add(name)
        last.size += len(data)
        before = last.calls[-1]
        if last.size <= _BYTES and len(before.read) < _READS:
            last.calls[-1] = replace(before, read=(*before.read, ReadBack(name, call.number, data)))

    def found(self) -> list[tuple[_Track, list[_Fragment]]]:
        """Return the puts of each vCPU that has any; to be called once."""
        return [(track, puts) for track in self.tracks if (puts := self._merged(track))]

    def _merged(self, track: _Track) -> list[_Fragment]:
        # With KVM_RUN in the recording a put ends at one, wherever registers were read.
        found: list[_Fragment] = []
        for one in track.fragments:
            if self.runs and found and not found[-1].ran:
                found[-1].calls += one.calls
                found[-1].ran = one.ran
                found[-1].lost += one.lost
            elif one.calls:
                found.append(one)
        return [one for one in found if self._kept(one)]

    def _kept(self, one: _Fragment) -> bool:
        return self._every or one.is_put()


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
    for track, fragments in found:
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
    found: list[tuple[_Track, list[_Fragment]]],
    limits: Limits,
    *,
    put: int | None,
    vm: int | None,
) -> tuple[Snapshot, dict[int, RecordedPut]]:
    if not found:
        raise _no_put(recording)
    wanted = _vm(found) if vm is None else vm
    machines = {track.vm for track, _ in found}
    if wanted not in machines:
        known = [str(number) for number in sorted(machines)]
        raise PathError(f"the recording has no VM {wanted} whose registers are set", near=known)
    chosen: dict[int, RecordedPut] = {}
    parts: list[Part] = []
    most = 0
    for track, fragments in found:
        # Those that were not kept are between the first one and the others.
        dropped = track.dropped
        at = _chosen(fragments) - 1 if put is None else put - 1 - (dropped if put > 1 else 0)
        count = len(fragments) + dropped
        most = max(most, count)
        kept = 0 <= at < len(fragments) and not (at == 0 and put is not None and put > 1)
        if track.vm != wanted or track.index in chosen or not kept:
            continue
        one = fragments[at]
        chosen[track.index] = RecordedPut(
            at + 1 + (dropped if at else 0), count, (*_cpuid(one), *one.calls),
            one.ran if puts.runs else None,
            frozenset(puts.capabilities.get(track.vm, set()) | _accepted(one)),
            puts.irqchips.get(track.vm), one.lost, recording.header.release, wanted,
            len(machines), track.created, puts.supported,
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


def _vm(found: list[tuple[_Track, list[_Fragment]]]) -> int:
    for track, fragments in found:
        if any(_guest_mode(call) for one in fragments for call in one.calls):
            return track.vm
    return found[0][0].vm


def _chosen(fragments: list[_Fragment]) -> int:
    # The restore: the last put with guest mode, else the last one that sets the registers
    # before the first run, else the last.
    for number in range(len(fragments), 0, -1):
        if any(_guest_mode(call) for call in fragments[number - 1].calls):
            return number
    return next((at for at, one in enumerate(fragments, 1) if one.ran), len(fragments))


def _guest_mode(call: Given) -> bool:
    flags = int.from_bytes(call.data[:2], "little")
    return call.name == "SET_NESTED_STATE" and bool(flags & bits.GUEST_MODE)


def _cpuid(one: _Fragment) -> Iterator[Given]:
    # A VMM sets CPUID once: what an earlier put has set is still there.
    own = any(call.name == _CPUID for call in one.calls)
    if one.cpuid is not None and (one.after_run or not own):
        yield replace(one.cpuid, read=(), ran=one.after_run)


def _accepted(one: _Fragment) -> set[int]:
    # Flags of VCPU_EVENTS that KVM takes only with a capability.
    flags = 0
    for call in one.calls:
        if call.name == "SET_VCPU_EVENTS" and call.errno is None and len(call.data) >= 24:
            flags |= int.from_bytes(call.data[20:24], "little")
    found = {CAP_EXCEPTION_PAYLOAD} if flags & 0x10 else set()
    return found | ({CAP_TRIPLE_FAULT} if flags & 0x20 else set())


def _parts(put: RecordedPut, index: int) -> Iterator[Part]:
    # What the vCPU has after the put: the last structure of each kind, all MSRs together.
    msrs: dict[int, int] = {}
    found: dict[str, Part] = {}
    for call in put.calls:
        name = SET[call.name]
        where = f"record {call.record}"
        if not name or not call.data:
            continue
        try:
            one = part(name, index, call.data, where)
        except SourceError:
            continue  # shown with the step that it belongs to
        if name == "MSRS":
            msrs |= layouts.unpack_msrs(one.data)
        else:
            found.pop({"SREGS": "SREGS2", "SREGS2": "SREGS"}.get(name, ""), None)
            found[name] = one
    yield from found.values()
    if msrs:
        yield part("MSRS", index, layouts.pack_msrs(list(msrs.items())), "SET_MSRS of the put")
