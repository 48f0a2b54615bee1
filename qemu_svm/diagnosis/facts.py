"""What a log shows: read once, line by line, whatever wrote it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from qemu_svm.diagnosis.calls import CallWords, failed_call
from qemu_svm.diagnosis.dump import DumpReader, VmcbDump
from qemu_svm.diagnosis.events import Events
from qemu_svm.diagnosis.oops import Oops, OopsReader
from qemu_svm.diagnosis.signs import KERNEL, PARTIAL, QEMU_VERSION, UNHANDLED, Sign, sign_of
from qemu_svm.diagnosis.text import plain
from qemu_svm.errors import SourceError, SvmStreamError
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.recording.recording import HEAD, is_recording
from qemu_svm.trace.lines import lines
from qemu_svm.trace.model import Log, Trace, read_trace

_DUMPS, _OOPSES, _KEPT = 16, 32, 256
_IOCTL = ("ioctl(", "_ioctl ", "sys_enter_ioctl", "ioctl:")
_LONGEST = 4000
_SHAPES = 4096
_STRACE = re.compile(r"\bioctl\(-?\d")
_RESULT = re.compile(r"err|ret|fail|code", re.IGNORECASE)
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")
_QEMU = re.compile(r"qemu|\bkvm[\w.-]{0,30}: ", re.IGNORECASE)
OF_QEMU = re.compile(r"qemu|kvm_(?:set|put)_nested_state|kvm_arch_put", re.IGNORECASE)
"""A message of QEMU, which sets CPUID, then SREGS, then the nested state."""
_TELLING = re.compile(
    r"kvm|svm|vmcb|nested|v ?cpu|msr|reg|cpu|fault|entry|guest|vmware|esx|vmrun|vmexit|\bL2\b"
    r"|lockup|stall|hung|hang|qemu|fail|error|mismatch|unsupported|unknown|state|machine type|block"
    r"|section|load",
    re.IGNORECASE,
)
KVM_SAYS = frozenset({"put-registers", "kvm", "msr", "end", "nested"})
"""Rules of QEMU's messages that are about what KVM refused, which is told otherwise."""


@dataclass(frozen=True, slots=True)
class Said:
    """A line of a log that says something.

    :param line: its number from 1; 0 for one that was given by itself.
    :param count: how often the same was said.
    """

    line: int
    text: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class UnhandledMsr:
    """An MSR that KVM does not know."""

    said: Said
    msr: int
    value: int | None
    write: bool
    ignored: bool


@dataclass(slots=True)
class Facts:
    """What was found in the given lines and the log.

    :param used: lines that were recognised, by kind.
    :param qemu: lines that may be messages of QEMU about a stream.
    :param kernel: release of the kernel that a log names, and the line.
    :param trace: the ioctls of the log, judged.
    """

    lines: int = 0
    used: Counter[str] = field(default_factory=Counter)
    calls: dict[CallWords, Said] = field(default_factory=dict)
    signs: dict[str, tuple[Sign, Said]] = field(default_factory=dict)
    msrs: dict[tuple[int, bool], UnhandledMsr] = field(default_factory=dict)
    qemu: list[Said] = field(default_factory=list)
    dumps: tuple[VmcbDump, ...] = ()
    more_dumps: int = 0
    events: Events = field(default_factory=Events)
    oopses: tuple[Oops, ...] = ()
    kernel: tuple[int, str] | None = None
    qemu_version: str | None = None
    trace: Trace | None = None
    damage: SvmStreamError | None = None

    @property
    def recognised(self) -> int:
        """Lines that were recognised."""
        return sum(self.used.values())


def read_facts(
    errors: Iterable[str] = (), log: Log | None = None, limits: Limits = DEFAULT
) -> Facts:
    """Read error lines and a log.

    :param errors: lines that were given by themselves.
    :raises SourceError: the log cannot be read at all.
    """
    reader = _Reader()
    for text in errors:
        for part in text.splitlines() or [""]:
            reader.read(0, part[:_LONGEST])
    recorded = log is not None and is_recording(log.read_at(0, HEAD))
    if log is not None and not recorded:
        for number, text in lines(log, limits.trace_line_bytes):
            reader.facts.lines = number
            reader.read(number, text)
    facts = reader.finish()
    if log is not None:
        facts.damage = log.damage
        if reader.ioctls or recorded:
            try:
                facts.trace = read_trace(log, limits)
            except SourceError:
                facts.trace = None  # the word was there, but no ioctl of KVM
            else:
                facts.used["ioctl log"] += facts.trace.used
                facts.lines = max(facts.lines, facts.trace.lines)
                facts.damage = facts.trace.damage
    return facts


class _Reader:
    def __init__(self) -> None:
        self.facts = Facts()
        self.ioctls = False
        self._shapes: set[str] = set()
        self._shape = ""
        self._dumps = DumpReader(_DUMPS)
        self._oopses = OopsReader(_OOPSES)

    def read(self, number: int, raw: str) -> None:
        facts = self.facts
        text = plain(raw)
        if not text:
            return
        if any(word in text for word in _IOCTL):
            self.ioctls = True
        if self._dumps.read(number, text):
            facts.used["VMCB dump"] += 1
            return
        if facts.events.read(number, text):
            facts.used["kvm tracepoints"] += 1
            return
        oops = self._oopses.read(number, text)
        if oops:
            facts.used["kernel log"] += 1
        self._versions(number, text)
        if self._msr(number, text):
            facts.used["kernel log"] += not oops
            return
        if (not oops or "lockup" in text or "stall" in text) and self._new(text):
            self._words(number, text)

    def _new(self, text: str) -> bool:
        # Logs repeat themselves: a line that says nothing is not looked at again, with
        # whatever numbers.
        if len(text) > _LONGEST:
            return True
        self._shape = _NUMBERS.sub("0", text)
        return self._shape not in self._shapes

    def _versions(self, number: int, text: str) -> None:
        facts = self.facts
        if "kernel: " not in text and "ersion" not in text:
            return
        kernel = KERNEL.search(text)
        if kernel is not None and facts.kernel is None:
            facts.kernel = (number, kernel["release"])
        version = QEMU_VERSION.search(text)
        if version is not None and facts.qemu_version is None:
            facts.qemu_version = version["version"]

    def _msr(self, number: int, text: str) -> bool:
        found = UNHANDLED.search(text) if "msr" in text.lower() else None
        if found is None:
            return False
        msr, write = int(found["msr"], 16), found["way"].lower() == "wrmsr"
        known = self.facts.msrs.get((msr, write))
        said = _again(known.said if known is not None else None, number, text)
        value = None if found["value"] is None else int(found["value"], 16)
        if known is not None or len(self.facts.msrs) < _KEPT:
            self.facts.msrs[msr, write] = UnhandledMsr(
                said, msr, value, write, found["kind"].lower() == "ignored"
            )
        return True

    def _words(self, number: int, text: str) -> None:
        facts = self.facts
        if number and not _TELLING.search(text, 0, _LONGEST):
            self._says_nothing()
            return
        call = failed_call(text) if len(text) < _LONGEST and not _STRACE.search(text) else None
        sign = sign_of(text[:_LONGEST])
        if sign is not None and sign[0].id == PARTIAL and call is not None and not call.error:
            call = None  # it did not fail, it stopped
        if call is not None:
            known = facts.calls.get(call)
            if known is not None or len(facts.calls) < _KEPT:
                facts.calls[call] = _again(known, number, text)
        if sign is not None:
            old = facts.signs.get(sign[0].id)
            said = _again(None if old is None else old[1], number, text)
            facts.signs[sign[0].id] = (sign[0], said)
        if self._of_qemu(number, text) or call is not None or sign is not None:
            facts.used["messages"] += 1
        else:
            self._says_nothing()

    def _says_nothing(self) -> None:
        # Of a line about a result the numbers count.
        if len(self._shapes) < _SHAPES and not _RESULT.search(self._shape):
            self._shapes.add(self._shape)

    def _of_qemu(self, number: int, text: str) -> bool:
        from qemu_svm.findings.refusal_messages import meanings_of

        if _STRACE.search(text) or (number and not _QEMU.search(text)):
            return False
        if all(one.rule in KVM_SAYS for one, _ in meanings_of(text[:_LONGEST])):
            return False
        if len(self.facts.qemu) < _KEPT:
            self.facts.qemu.append(Said(number, text))
        return True

    def finish(self) -> Facts:
        self._dumps.finish()
        facts = self.facts
        facts.dumps, facts.more_dumps = tuple(self._dumps.dumps), self._dumps.more
        facts.oopses = tuple(self._oopses.found)
        facts.kernel = facts.kernel or self._oopses.release
        return facts


def _again(known: Said | None, number: int, text: str) -> Said:
    if known is None:
        return Said(number, text.strip()[:300])
    return Said(known.line, known.text, known.count + 1)
