"""A log of any kind, line by line, as ioctls.

The three kinds are told apart line by line, so a log may mix them (strace
writes to the same terminal as QEMU's trace) or have anything else in between:
a line that no reader knows is counted, not an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.trace.calls import Call, Descriptors, Format, Reader, RunExit
from qemu_svm.trace.ftrace import Ftrace
from qemu_svm.trace.lines import Bytes, lines
from qemu_svm.trace.qemu_log import QemuLog
from qemu_svm.trace.strace import Strace

KNOWN_FORMATS = (
    "QEMU's log (-trace kvm_vcpu_ioctl), strace -f -e trace=ioctl, "
    "trace-cmd report of sys_enter_ioctl and sys_exit_ioctl"
)


@dataclass(slots=True)
class Counts:
    """How many lines there were, and of which kind.

    :param formats: lines by kind of log, most often seen first or not.
    :param calls: KVM's ioctls among them.
    :param results: calls whose result the log has.
    """

    lines: int = 0
    formats: dict[Format, int] = field(default_factory=dict)
    calls: int = 0
    results: int = 0

    @property
    def used(self) -> int:
        """Lines that some reader knew."""
        return sum(self.formats.values())


class Parser:
    """Reads a log; :attr:`counts` tells how it went."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        descriptors = Descriptors(limits.vcpus)
        self.counts = Counts()
        self._limits = limits
        self._readers: list[Reader] = [
            QemuLog(),
            Strace(descriptors, limits.trace_pending),
            Ftrace(descriptors, limits.trace_pending),
        ]

    def calls(self, log: Bytes) -> Iterator[Call | RunExit]:
        """Yield what the log says, in the order in which it came to pass."""
        for line, text in lines(log, self._limits.trace_line_bytes):
            self.counts.lines = line
            for call in self._line(line, text):
                yield self._counted(call)
        for reader in self._readers:
            for call in reader.finish():
                yield self._counted(call)

    def _line(self, line: int, text: str) -> list[Call | RunExit]:
        if "ioctl" not in text and "kvm_run_exit" not in text:
            return []
        for reader in self._readers:
            found = reader.read(line, text)
            if found is not None:
                formats = self.counts.formats
                formats[reader.format] = formats.get(reader.format, 0) + 1
                if reader is not self._readers[0]:
                    # A log is mostly of one kind: ask that reader first.
                    self._readers.remove(reader)
                    self._readers.insert(0, reader)
                return found
        return []

    def _counted(self, call: Call | RunExit) -> Call | RunExit:
        if isinstance(call, Call):
            self.counts.calls += 1
            if call.value is not None:
                self.counts.results += 1
        return call
