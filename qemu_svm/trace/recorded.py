"""Calls out of a recording, which has their payload.

Some recorders leave KVM_RUN alone, because it is called so often; svmstream's own sees it by eBPF.
Where another recording has none of a vCPU, a run is inferred: registers that are read and are not
those that were put last show that the vCPU ran meanwhile.  If nothing is read that would show it,
a vCPU whose last put succeeded is taken to have run in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from qemu_svm.kvm import layouts, numbers
from qemu_svm.kvm.numbers import Level
from qemu_svm.limits import Limits
from qemu_svm.recording import payload
from qemu_svm.recording.recording import HEAD, Recording, is_recording, read_recording
from qemu_svm.recording.records import Header, Ioctl, Lost
from qemu_svm.source.base import Source
from qemu_svm.trace.calls import Call, RunExit, VcpuId, errno_name, level_of
from qemu_svm.trace.lines import Bytes
from qemu_svm.trace.phases import READS, RUN, STATE

_CREATE = "KVM_CREATE_VCPU"
_GET_REGS, _SET_REGS = "KVM_GET_REGS", "KVM_SET_REGS"
_FOLLOWED = frozenset({_CREATE, _SET_REGS, *STATE})
_HELD = 64
_BPF = "bpf"
"""The recorder that has every first KVM_RUN after another ioctl (:mod:`qemu_svm.recorder`)."""
_KINDS = 4096
_EFER = next(field.offset for field in layouts.SREGS.fields if field.name == "efer")


def opened(log: Bytes) -> Recording | None:
    """Return the log as a recording; None if it is none.

    :raises StreamError: its header is damaged.
    """
    return read_recording(cast("Source", log)) if is_recording(log.read_at(0, HEAD)) else None


@dataclass(slots=True)
class _Vcpu:
    # What is needed to see that a vCPU ran: its registers, and reads that may follow a run.
    ran: bool = False
    put: bool = False
    failed: bool = False
    still: bool = False
    last: int = 0
    regs: bytes | None = None
    held: list[Call] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Kind:
    # What an ioctl's number says.
    name: str
    level: Level | None
    usual: Level
    read: bool
    sregs: bool
    msrs: bool


def _kind_of(nr: int) -> _Kind:
    name = numbers.name_of(nr)
    return _Kind(
        name,
        Level.VM if name == _CREATE else None,
        level_of(numbers.by_number(nr)),
        "_GET_" in name,
        name.startswith(("KVM_SET_SREGS", "KVM_GET_SREGS")),
        name.endswith("ET_MSRS"),
    )


class Recorded:
    """The calls of a recording.

    :ivar lost: calls that the recorder lost.
    :ivar inferred: runs that the recording does not have.
    """

    def __init__(self, recording: Recording, limits: Limits) -> None:
        self.header: Header = recording.header
        self.lost = 0
        self.inferred = 0
        self._recording = recording
        self._sees_runs = recording.header.recorder == _BPF
        self._limit = limits.vcpus
        self._vcpus: dict[int, VcpuId] = {}
        self._states: dict[VcpuId, _Vcpu] = {}
        self._kinds: dict[int, _Kind] = {}

    def calls(self) -> Iterator[Call | RunExit]:
        """Yield the calls in their order, and how KVM_RUN ended where that is known."""
        for record in self._recording:
            if isinstance(record, Ioctl):
                name = self._kind(record.nr).name
                before = self._vcpus.get(record.ret) if name == _CREATE else None
                call = self._call(record)
                if before is not None:
                    yield from self._ended(before, complete=True)  # its descriptor is another's
                state = self._states.get(call.vcpu) if call.vcpu is not None else None
                if state is not None and state.ran and name not in _FOLLOWED:
                    state.last = call.line  # nothing is inferred of it any more
                    yield call
                else:
                    yield from self._with_runs(call)
                reason = record.exit_reason if name == RUN else None
                if reason is not None and call.vcpu is not None:
                    yield RunExit(call.line, call.vcpu, reason)
            elif isinstance(record, Lost):
                self.lost += record.count
        for vcpu in list(self._states):
            yield from self._ended(vcpu, complete=self._recording.damage is None)

    def _ended(self, vcpu: VcpuId, *, complete: bool) -> Iterator[Call]:
        # Nothing more comes of this vCPU.
        state = self._states.pop(vcpu, None)
        if state is None:
            return
        yield from _flushed(state)
        if complete and state.put and not (state.ran or state.failed or state.still):
            yield self._inferred(state.last, vcpu)

    def _inferred(self, line: int, vcpu: VcpuId) -> Call:
        self.inferred += 1
        return Call(line, RUN, None, Level.VCPU, vcpu, on=Level.VCPU, inferred=True)

    def _kind(self, nr: int) -> _Kind:
        found = self._kinds.get(nr)
        if found is None:
            found = _kind_of(nr)
            if len(self._kinds) < _KINDS:
                self._kinds[nr] = found
        return found

    def _call(self, record: Ioctl) -> Call:
        kind = self._kind(record.nr)
        name = kind.name
        error = errno_name(record.ret) if record.ret < 0 else None
        on = record.level
        vcpu = self._vcpu(record, created=name == _CREATE and error is None)
        if kind.read:
            known: bytes | None = payload.returned(record)
        else:
            known = payload.given(record)
            if known and not payload.complete(record):
                known = None
        return Call(
            record.number, name, record.nr, kind.level or on or kind.usual, vcpu, record.ret,
            error, _efer(known) if kind.sregs else None,
            _asked(record) if kind.msrs else None,
            f"{record.arg:#x}" if name == "KVM_CHECK_EXTENSION" else "",
            on, known or None,
        )  # fmt: skip

    def _vcpu(self, record: Ioctl, *, created: bool) -> VcpuId | None:
        if created:
            return self._keep(record.ret, VcpuId(record.arg, record.ret, record.number))
        if record.level is not Level.VCPU:
            return None
        known = self._vcpus.get(record.fd)
        if known is not None and (
            None in (record.index, known.index) or record.index == known.index
        ):
            return known
        return self._keep(record.fd, VcpuId(record.index, record.fd))

    def _keep(self, fd: int, vcpu: VcpuId) -> VcpuId | None:
        if len(self._vcpus) >= self._limit and fd not in self._vcpus:
            return None
        self._vcpus[fd] = vcpu
        return vcpu

    def _with_runs(self, call: Call) -> Iterator[Call]:
        if call.vcpu is None or call.name == _CREATE:
            yield call
            return
        state = self._states.get(call.vcpu)
        if self._sees_runs or (state is None and len(self._states) >= self._limit):
            yield call
            return
        if state is None:
            state = self._states[call.vcpu] = _Vcpu()
        state.last = call.line
        if state.ran or call.name not in READS:
            state.ran = state.ran or call.name == RUN
            if call.name in STATE:
                state.put, state.failed = True, call.error is not None
            if call.name == _SET_REGS and call.error is None:
                state.regs, state.still = call.data, False
            yield from _flushed(state)
            yield call
            return
        state.held.append(call)
        if call.name == _GET_REGS and call.data is not None:
            if state.regs is not None and state.regs != call.data:
                state.put = False
                yield self._inferred(state.held[0].line, call.vcpu)
            state.still = state.regs == call.data
            state.regs = call.data
            yield from _flushed(state)
        elif len(state.held) > _HELD:
            yield from _flushed(state)


def _flushed(state: _Vcpu) -> list[Call]:
    held, state.held = state.held, []
    return held


def _efer(data: bytes | None) -> int | None:
    if data is None or len(data) < layouts.SREGS.size:
        return None
    return int.from_bytes(data[_EFER : _EFER + 8], "little")


def _asked(record: Ioctl) -> int | None:
    if len(record.given) < layouts.MSRS.size:
        return None
    return int.from_bytes(record.given[:4], "little")
