"""Parses a log of any kind into calls of ioctls.

The kind is recognised line by line, so a log may mix the three kinds (strace writes
to the same terminal as QEMU's trace) and have other text in between: a line that no
parser recognises is counted, not an error.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from qemu_svm.errors import SvmStreamError
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.recording.recording import Recording
from qemu_svm.trace.calls import Call, Descriptors, Format, Reader, RunExit
from qemu_svm.trace.ftrace import Ftrace
from qemu_svm.trace.lines import Bytes, lines
from qemu_svm.trace.qemu_log import QemuLog
from qemu_svm.trace.recorded import Recorded, opened
from qemu_svm.trace.strace import Strace

KNOWN_FORMATS = (
    "recordings of svmstream record, QEMU's log (-trace kvm_vcpu_ioctl), strace -f -e trace=ioctl, "
    "trace-cmd report of sys_enter_ioctl and sys_exit_ioctl"
)


@dataclass(slots=True)
class Counts:
    """Counts of lines and calls.

    :param formats: lines by kind of log, in no particular order.
    :param calls: calls of KVM's ioctls.
    :param results: calls whose result is in the log.
    """

    lines: int = 0
    formats: dict[Format, int] = field(default_factory=dict)
    calls: int = 0
    results: int = 0

    @property
    def used(self) -> int:
        """Lines that some parser recognised."""
        return sum(self.formats.values())


class Parser:
    """Parses a log; :attr:`counts` is complete at its end.

    :ivar recorded: the recording that the log is; None if it is none.
    :ivar damage: why a recording could not be read to its end.
    """

    def __init__(self, limits: Limits = DEFAULT) -> None:
        descriptors = Descriptors(limits.vcpus)
        self.counts = Counts()
        self.recorded: Recorded | None = None
        self.damage: SvmStreamError | None = None
        self._limits = limits
        self._readers: list[Reader] = [
            QemuLog(),
            Strace(descriptors, limits.trace_pending),
            Ftrace(descriptors, limits.trace_pending),
        ]

    def calls(self, log: Bytes) -> Generator[Call | RunExit, None, None]:
        """Yield the calls of the log in the order in which they returned.

        :raises StreamError: it is a recording whose header is damaged.
        """
        recording = opened(log)
        if recording is not None:
            yield from self._recording(recording)
            return
        for line, text in lines(log, self._limits.trace_line_bytes):
            self.counts.lines = line
            for call in self._line(line, text):
                yield self._counted(call)
        for reader in self._readers:
            for call in reader.finish():
                yield self._counted(call)

    def _recording(self, recording: Recording) -> Iterator[Call | RunExit]:
        self.recorded = Recorded(recording, self._limits)
        counts = self.counts
        calls = 0
        try:
            for call in self.recorded.calls():
                if type(call) is Call and not call.inferred:
                    calls += 1  # each has its result
                yield call
        finally:
            counts.calls = counts.results = calls
            counts.lines = recording.count
            counts.formats = {Format.RECORDING: recording.count}
        self.damage = recording.damage

    def _line(self, line: int, text: str) -> list[Call | RunExit]:
        if "ioctl" not in text and "kvm_run_exit" not in text:
            return []
        for reader in self._readers:
            found = reader.read(line, text)
            if found is not None:
                formats = self.counts.formats
                formats[reader.format] = formats.get(reader.format, 0) + 1
                if reader is not self._readers[0]:
                    # A log is mostly of one kind: try that parser first.
                    self._readers.remove(reader)
                    self._readers.insert(0, reader)
                return found
        return []

    def _counted(self, call: Call | RunExit) -> Call | RunExit:
        if isinstance(call, Call) and not call.inferred:
            self.counts.calls += 1
            if call.value is not None:
                self.counts.results += 1
        return call
