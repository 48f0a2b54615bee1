"""Two puts of a vCPU, call by call in the order of the first.

A put comes from a recording, or is what QEMU would put of a stream.  Values that KVM does not
take, and those that the other side cannot have, are not compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qemu_svm.machine.recorded import Given, RecordedPut
from qemu_svm.recording.values import Values, decode, ignored

_ONE_OF = {"SREGS2": "SREGS", "CPUID": "CPUID2"}
"""Ioctls that put the same state as another one."""
_NEVER = frozenset({"nmsrs", "nent"})
_CORE = frozenset({"SREGS", "REGS", "MSRS", "NESTED_STATE"})
"""What a VMM has to put."""
_FRESH: Mapping[str, Mapping[str, int]] = {
    "DEBUGREGS": {**dict.fromkeys(("dr0", "dr1", "dr2", "dr3"), 0), "dr7": 0x400},
    "VCPU_EVENTS": dict.fromkeys(("exc_injected", "int_injected", "nmi_injected", "smm"), 0),
    "MP_STATE": {"mp_state": 0},
}
"""What a new vCPU has."""
_ELSEWHERE = frozenset({"efer", "0x1b"})
"""MSRs that SREGS set as well."""
_PAT = 0x0007_0406_0007_0406
_NESTED = "NESTED_STATE"
_SETUP = frozenset({"CPUID2"})
"""What a recording that begins late cannot have."""
_INITIAL_FCW = 0x37F
_X87, _SSE, _AVX = 1, 2, 4
_COMPONENTS = ((_X87, range(32, 160)), (_SSE, range(160, 416)), (_AVX, range(576, 832)))


@dataclass(frozen=True, slots=True)
class PutCall:
    """One call of a put.

    :param name: of the ioctl after ``KVM_SET_``.
    :param record: its record or line; None if it is not from a recording.
    :param unknown: values of it that are not known on this side.
    :param without: why it does not count, in words: it failed, or its data is not there.
    :param carried: it was made before the put.
    """

    name: str
    data: bytes = field(repr=False)
    record: int | None = None
    unknown: frozenset[str] = frozenset()
    without: str = ""
    carried: bool = False

    @property
    def values(self) -> Values:
        """Its values by name."""
        return decode(f"KVM_SET_{self.name}", self.data)

    @property
    def kind(self) -> str:
        """What it puts: the same for ioctls that put the same."""
        return _ONE_OF.get(self.name, self.name)


@dataclass(frozen=True, slots=True)
class PutDifference:
    """A value that differs, or a call that only one side has.

    :param name: of the value; empty for a whole call.
    :param only: the side that has the call, ``a`` or ``b``; empty for a value.
    :param why: why the other side does not have it, in words; empty if it does not make it.
    :param ioctl: name after ``KVM_SET_``.
    :param record_a, record_b: where it is in each recording; None if it is not there.
    :param a, b: the values; None for one that the side does not set.
    """

    ioctl: str
    name: str
    record_a: int | None = None
    record_b: int | None = None
    a: int | str | None = None
    b: int | str | None = None
    only: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class PutComparison:
    """Two puts of one vCPU.

    :param index: of the vCPU.
    :param a, b: what each is: ``records 26 to 39``, or ``what QEMU puts of the stream``.
    :param order: the first call that comes at another place in B, if the orders differ.
    :param compared: values that were compared.
    """

    index: int
    a: str
    b: str
    differences: tuple[PutDifference, ...]
    order: str | None = None
    compared: int = 0

    @property
    def first(self) -> PutDifference | None:
        """The first difference in the order of A."""
        return self.differences[0] if self.differences else None


def calls_of(put: RecordedPut) -> tuple[PutCall, ...]:
    """Return the calls of a recorded put, and before them those that gave the vCPU its state."""
    calls = [*((call, True) for call in put.before), *((call, False) for call in put.calls)]
    return tuple(
        PutCall(call.name.removeprefix("SET_"), call.data, call.record, without=_without(call),
                carried=carried)
        for call, carried in calls
        if call.name.startswith("SET_") and call.name != "SET_TSC_KHZ"
    )  # fmt: skip


def _without(call: Given) -> str:
    if call.errno is not None:
        return f"failed with {call.errno}"
    return "" if call.data else "has not all of its data"


def compare_puts(
    index: int,
    a: Sequence[PutCall],
    b: Sequence[PutCall],
    names: tuple[str, str],
    *,
    order: bool,
    unread: tuple[Collection[str], Collection[str]] = ((), ()),
) -> PutComparison:
    """Compare two puts.

    :param names: what each of them is.
    :param order: both are from recordings: compare the order and the set of the calls as well.
    :param unread: structures that may be set on each side without its calls showing it.
    """
    ours, theirs = _by_kind(a), _by_kind(b)
    found: list[PutDifference] = []
    compared = 0
    for kind, mine in ours.items():
        other = theirs.get(kind)
        if other is not None:
            for difference in _values(mine, other, unread):
                compared += 1
                if difference is not None:
                    found.append(difference)
        elif kind not in unread[1] and _counts(mine, order=order):
            at, why = _uncounted(kind, b)
            found.append(PutDifference(mine.name, "", mine.record, at, only="a", why=why))
    for kind, one in theirs.items():
        if kind not in ours and kind not in unread[0] and _counts(one, order=order):
            at, why = _uncounted(kind, a)
            found.append(PutDifference(one.name, "", at, one.record, only="b", why=why))
    # Nothing matters before a nested state that is missing.
    found.sort(key=lambda one: not (one.only and one.ioctl == _NESTED))
    return PutComparison(
        index, *names, tuple(found), _order(ours, theirs) if order else None, compared
    )


def _counts(one: _Merged, *, order: bool) -> bool:
    # Whether it is a difference that the other side does not make the call: what is put of a
    # stream may be what a new vCPU has anyway.
    if order:
        return one.kind not in _SETUP
    if one.kind in _CORE:
        return True
    fresh = _FRESH.get(one.kind)
    return fresh is not None and any(
        one.values.get(name, value) != value for name, value in fresh.items()
    )


def _uncounted(kind: str, calls: Sequence[PutCall]) -> tuple[int | None, str]:
    # The call of this kind that does not count, and why not.
    found = [call for call in calls if call.kind == kind and call.without]
    return (found[-1].record, found[-1].without) if found else (None, "")


@dataclass(slots=True)
class _Merged:
    # All calls of one kind: the values that are set in the end, and where.
    name: str
    record: int | None
    values: dict[str, int | str] = field(default_factory=dict)
    records: dict[str, int | None] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    carried: bool = False

    @property
    def kind(self) -> str:
        return _ONE_OF.get(self.name, self.name)


def _by_kind(calls: Iterable[PutCall]) -> Mapping[str, _Merged]:
    merged: dict[str, _Merged] = {}
    for call in calls:
        if call.without:
            continue
        one = merged.get(call.kind)
        if one is None:
            one = merged[call.kind] = _Merged(call.name, call.record, carried=call.carried)
        elif one.carried and not call.carried:
            merged[call.kind] = merged.pop(call.kind)  # its place is that of the put's own call
        one.name, one.carried = call.name, call.carried
        values = _effective(call.values) if call.kind == "XSAVE" else call.values
        if call.kind != "MSRS":
            # The last call counts as a whole; MSRs stay until they are set again.
            one.values, one.records, one.hidden = {}, {}, set()
        one.record = call.record
        one.values.update(values)
        if not call.carried:
            one.own.update(values)
        one.records.update(dict.fromkeys(values, call.record))
        one.hidden |= ignored(f"KVM_SET_{call.name}", values) | call.unknown | _NEVER
    return merged


def _effective(values: Values) -> Values:
    # A component whose bit is clear gets its initial value, whatever the bytes are
    # (AMD64 APM volume 2, 11.5.4).
    present = int(values.get("xstate_bv", 0))
    found = dict(values)
    del found["xstate_bv"]
    if not present & _X87:
        found |= {"fcw": _INITIAL_FCW, "fsw": 0, "ftw": 0}
    gone = [at for bit, places in _COMPONENTS if not present & bit for at in places[::8]]
    for at in gone:
        found.pop(f"@{at:#x}", None)
    return found


def _values(
    ours: _Merged, theirs: _Merged, unread: tuple[Collection[str], Collection[str]]
) -> Iterator[PutDifference | None]:
    # Each value that both sides have; None for one that is the same.  An MSR that is not set
    # has the value of a new vCPU.
    hidden = ours.hidden | theirs.hidden
    for name in (*ours.values, *(one for one in theirs.values if one not in ours.values)):
        words = name.startswith("@")  # what is zero is left out of them
        if name in hidden:
            continue
        if not words and not (name in ours.values and name in theirs.values):
            only = _only(name, ours, theirs, unread)
            if only is not None:
                yield only
            continue
        a, b = ours.values.get(name, 0), theirs.values.get(name, 0)
        if a == b:
            yield None
        else:
            yield PutDifference(
                ours.name,
                name,
                ours.records.get(name, ours.record),
                theirs.records.get(name, theirs.record),
                a,
                b,
            )


def _only(
    name: str, ours: _Merged, theirs: _Merged, unread: tuple[Collection[str], Collection[str]]
) -> PutDifference | None:
    side, other = (ours, theirs) if name in ours.values else (theirs, ours)
    if ours.kind != "MSRS" or name not in side.own or name in _ELSEWHERE:
        return None
    # A stream has some MSRs by name only.
    if other.record is None or "MSRS" in unread[1 if side is ours else 0]:
        return None
    a, b = ours.values.get(name), theirs.values.get(name)
    if (a if b is None else b) == (_PAT if name == "pat" else 0):
        return None
    record_a = ours.records.get(name, ours.record)
    return PutDifference(ours.name, name, record_a, theirs.records.get(name), a, b)


def _order(ours: Mapping[str, _Merged], theirs: Mapping[str, _Merged]) -> str | None:
    first = [kind for kind in ours if kind in theirs
             and not (ours[kind].carried or theirs[kind].carried)]  # fmt: skip
    second = [kind for kind in theirs if kind in first]
    return next((one for one, other in zip(first, second, strict=True) if one != other), None)
