"""A recording from its beginning to its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from qemu_svm.errors import EnvironmentFault
from qemu_svm.recorder.by_bpf import BUFFER, BpfSource
from qemu_svm.recorder.by_ptrace import PtraceSource, install_filter
from qemu_svm.recorder.calls import Calls
from qemu_svm.recorder.command import Command
from qemu_svm.recorder.events import Ended, Entered, Event, Left, Lost, Source, Started
from qemu_svm.recorder.log import (
    BPF,
    EXITED,
    LATE,
    PTRACE,
    RECORDERS,
    REDACTED,
    STOPPED,
    LogFile,
    LogHeader,
    Record,
)
from qemu_svm.recorder.process import Process, find
from qemu_svm.recorder.redact import redacted
from qemu_svm.recorder.signals import Signals
from qemu_svm.results import Result

HOW = ("auto", "bpf", "ptrace")
_WAIT_SECONDS = 0.25
_SIGNALLED = 128


@dataclass(frozen=True)
class Wish:
    """What is wanted of a recording.

    :param file: of the log; JSON lines if its name ends in ``.jsonl``.
    :param how: one of :data:`HOW`.
    :param redact: leave out what is the host's.
    :param ram: record guest memory as well.
    :param buffer: bytes of the ring buffer of eBPF, a power of two.
    """

    file: str
    how: str = "auto"
    redact: bool = False
    ram: bool = False
    buffer: int = BUFFER


@dataclass(frozen=True)
class State:
    """How far a recording is: numbers of calls, VMs, vCPUs and messages that were lost.

    :param ram: bytes of guest memory that were written.
    """

    calls: int = 0
    vms: int = 0
    vcpus: int = 0
    lost: int = 0
    ram: int = 0


@dataclass(frozen=True)
class RecordedProcess:
    """The log of one process.

    :param file: of the log.
    :param program: path of its program.
    """

    file: str
    pid: int
    program: str
    state: State


@dataclass(frozen=True)
class Recorded(Result):
    """The result of a recording.

    :param how: ``bpf`` or ``ptrace``.
    :param processes: one for each log; the first is of the file that was asked for.
    :param interrupted: a signal ended it before the process did.
    :param seconds: how long it was recorded.
    :param status: of the command, 128 plus the number of the signal that ended it; None
        if there was no command.
    """

    verb: ClassVar[str] = "record"
    how: str
    processes: tuple[RecordedProcess, ...]
    interrupted: bool
    seconds: float
    status: int | None = None


Progress = Callable[[State], None]
Warn = Callable[[str], None]


def _silent(_what: object) -> None:
    return


def record_process(
    pid: int, wish: Wish, progress: Progress = _silent, warn: Warn = _silent
) -> Recorded:
    """Record a process that runs already, until it ends or a signal comes.

    :param progress: is called several times a second.
    :param warn: is given what its user should know before.
    :raises ProcessGone: there is no such process.
    :raises EnvironmentFault: it may not be recorded, does not use KVM, or the log cannot be
        written.
    :raises OutputExists: the file exists.
    """
    process = find(pid)
    if not process.descriptors():
        raise EnvironmentFault(
            f"process {pid} ({os.path.basename(process.program())}) does not use KVM: none of "
            "its descriptors is of /dev/kvm or of a VM",
            hint="a program that will use KVM is recorded from its start: record -- COMMAND",
        )
    with ExitStack() as stack:
        signals = _signals(stack)
        source, recorder, why = _open(wish, signals, process)
        stack.callback(source.close)
        if recorder == PTRACE:
            warn(
                f"{why + ': ' if why else ''}recording by ptrace, which stops the process at every "
                "system call: KVM_RUN takes about 25 µs longer"
            )
        session = _Session(stack, source, recorder, wish, progress)
        session.watch(process, late=True)
        while not session.has_ended(pid) and not signals.came and session.fault is None:
            session.step(_WAIT_SECONDS)
            signals.drain()
        return session.finish(process, interrupted=not session.has_ended(pid))


def record_command(
    argv: Sequence[str], wish: Wish, progress: Progress = _silent, warn: Warn = _silent
) -> Recorded:
    """Run a command, and record it and what it starts until all that uses KVM has ended.

    Signals that would end the recording are passed on to the command.

    :param progress: is called several times a second.
    :param warn: is given what its user should know before.
    :raises CommandNotRun: it cannot be run.
    :raises EnvironmentFault: it may not be recorded; or the log could not be written, which is
        raised when the command has ended.
    :raises OutputExists: the file exists.
    """
    with ExitStack() as stack:
        signals = _signals(stack)
        source, recorder, why = _open(wish, signals, None)
        stack.callback(source.close)
        if why:
            warn(f"{why}: recording by ptrace; if the recording is killed, the command is as well")
        session = _Session(stack, source, recorder, wish, progress)
        command = Command(argv, install_filter if recorder == PTRACE else None)
        stack.callback(command.close)
        process = find(command.pid)
        session.watch(process, late=False)
        command.go()
        passed = 0
        while not session.has_ended(command.pid) or session.goes_on:
            session.step(_WAIT_SECONDS)
            signals.drain()
            for number in signals.came[passed:]:
                _pass_on(number, command.pid)
            passed = len(signals.came)
        failure = command.failure()
        if failure is not None:
            session.discard()
            raise failure
        status = session.status(command.pid)
        return session.finish(process, status=os.waitstatus_to_exitcode(status))


def _signals(stack: ExitStack) -> Signals:
    signals = Signals()
    stack.callback(signals.close)
    signals.take()
    return signals


def _open(wish: Wish, signals: Signals, process: Process | None) -> tuple[Source, int, str]:
    # The way of recording, its number in the log, and why it is not eBPF.
    why = ""
    if wish.how != "ptrace":
        try:
            source = BpfSource(wish.buffer, signals.wake, follow=process is None)
        except EnvironmentFault as error:
            if wish.how == "bpf":
                raise
            why = str(error)
        else:
            if process is None or source.can_see(process):
                return source, BPF, ""
            source.close()
            why = f"process {process.pid} is in another PID namespace, where eBPF cannot be used"
            if wish.how == "bpf":
                raise EnvironmentFault(why, hint="record on the host, or inside the container")
    return PtraceSource(signals.wake), PTRACE, why


def _pass_on(number: int, pid: int) -> None:
    # Ctrl-C is given by the terminal to all that run in its foreground, the command as well.
    if number == signal.SIGINT:
        try:
            terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            terminal = -1
        if terminal >= 0:
            try:
                if os.tcgetpgrp(terminal) == os.getpgrp():
                    return
            except OSError:
                pass
            finally:
                os.close(terminal)
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


class _Session:
    # One log for each process that uses KVM: the first has the name that was asked for.
    def __init__(
        self, stack: ExitStack, source: Source, recorder: int, wish: Wish, progress: Progress
    ) -> None:
        self._stack = stack
        self._source = source
        self._recorder = recorder
        self._wish = wish
        self._progress = progress
        self._begin = time.monotonic()
        self._late = False
        self._spare: LogFile | None = self._create(wish.file)
        self._logs: dict[int, tuple[Calls, LogFile]] = {}
        self._processes: dict[int, Process] = {}
        self._done: list[RecordedProcess] = []
        self._statuses: dict[int, int | None] = {}
        self._gone: set[int] = set()
        self.fault: EnvironmentFault | None = None

    def _create(self, path: str) -> LogFile:
        file = LogFile(path)
        self._stack.callback(file.close)
        return file

    def watch(self, process: Process, *, late: bool) -> None:
        self._processes[process.pid] = process
        self._late = late
        self._source.watch(process, children=not late, late=late)
        calls = self._calls(process.pid) if late else None
        if calls is not None:
            calls.attach_late(time.monotonic_ns())

    def step(self, seconds: float) -> None:
        # Take what came, and write it.
        gone, self._gone = self._gone, set()
        for event in self._source.wait(seconds):
            self._take(event)
        for pid in gone:
            self._take(Ended(pid, None))
        self._guarded(self._flush)
        self._progress(self._state())

    def has_ended(self, pid: int) -> bool:
        return pid in self._statuses

    @property
    def goes_on(self) -> bool:
        # Whether a process with a log runs; by ptrace, whether any does, for it would be killed.
        return bool(self._processes if self._recorder == PTRACE else self._logs or self._gone)

    def status(self, pid: int) -> int:
        # By ptrace it was reported; else it waits for us, who started the process.
        status = self._statuses[pid]
        return os.waitpid(pid, 0)[1] if status is None else status

    def discard(self) -> None:
        # Nothing was recorded: the file that was made for it goes.
        if self._spare is not None:
            os.unlink(self._spare.path)

    def finish(
        self, main: Process, *, interrupted: bool = False, status: int | None = None
    ) -> Recorded:
        for event in self._source.stop():
            self._take(event)
        if self._spare is not None:
            self._processes[main.pid] = main
            self._guarded(lambda: self._calls(main.pid))
        for pid in list(self._logs):
            self._end(pid, STOPPED if interrupted else EXITED)
        if self.fault is not None:
            raise self.fault
        done = tuple(sorted(self._done, key=lambda one: one.file != self._wish.file))
        seconds = time.monotonic() - self._begin
        if status is not None and status < 0:
            status = _SIGNALLED - status
        return Recorded(RECORDERS[self._recorder], done, interrupted, seconds, status)

    def _guarded(self, work: Callable[[], object]) -> None:
        # A log that cannot be written does not end a command; nothing more is written then.
        if self.fault is None:
            try:
                work()
            except EnvironmentFault as error:
                self.fault = error

    def _flush(self) -> None:
        now = time.monotonic_ns()
        for calls, file in self._logs.values():
            calls.tick(now)
            file.flush()

    def _state(self) -> State:
        each = [one.state for one in self._done]
        each += [_state_of(calls) for calls, _file in self._logs.values()]
        return State(
            sum(one.calls for one in each), sum(one.vms for one in each),
            sum(one.vcpus for one in each), sum(one.lost for one in each),
            sum(one.ram for one in each),
        )  # fmt: skip

    def _calls(self, pid: int) -> Calls | None:
        # The calls of a process; its log is begun if these are the first.
        if pid not in self._logs:
            process = self._processes.get(pid)
            if process is None:
                return None
            name, suffix = os.path.splitext(self._wish.file)
            file = self._spare or self._create(f"{name}.{pid}{suffix}")
            self._spare = None
            calls = Calls(process, self._writer(file), ram=self._wish.ram)
            flags = (REDACTED if self._wish.redact else 0) | (LATE if self._late else 0)
            file.begin(LogHeader(pid, calls.program, self._recorder, flags))
            self._logs[pid] = calls, file
        return self._logs[pid][0]

    def _writer(self, file: LogFile) -> Callable[[Record], None]:
        if not self._wish.redact:
            return file.write
        return lambda record: file.write(redacted(record))

    def _take(self, event: Event) -> None:
        if isinstance(event, (Entered, Left)):
            call = event
            self._guarded(lambda: self._call(call))
        elif isinstance(event, Lost):
            count = event.count
            self._guarded(lambda: self._lose(count))
        elif isinstance(event, Started):
            self._started(event.pid)
        else:
            self._statuses[event.pid] = event.status
            self._end(event.pid, EXITED)
            self._processes.pop(event.pid, None)
            self._source.forget(event.pid)

    def _call(self, event: Entered | Left) -> None:
        if event.pid not in self._processes:
            self._started(event.pid)  # the message of its start was lost, or comes later
        calls = self._calls(event.pid)
        if calls is None:
            return
        if isinstance(event, Entered):
            calls.enter(event)
        else:
            calls.leave(event)

    def _lose(self, count: int) -> None:
        # It is not known whose they were.
        for calls, _file in self._logs.values():
            calls.lose(count, time.monotonic_ns())
            return

    def _started(self, pid: int) -> None:
        if pid in self._processes:
            return
        try:
            process = find(pid)
            self._source.adopt(process)
        except EnvironmentFault:
            # It has ended; what it did is in this batch of events or in the next one.
            process = Process(pid, 0, 0)
            self._gone.add(pid)
        self._processes[pid] = process

    def _end(self, pid: int, reason: int) -> None:
        if pid not in self._logs:
            return
        calls, file = self._logs.pop(pid)
        runs = self._source.runs(pid)
        self._guarded(lambda: calls.end(reason, runs, time.monotonic_ns()))
        self._guarded(file.flush)
        self._done.append(RecordedProcess(file.path, pid, calls.program, _state_of(calls)))


def _state_of(calls: Calls) -> State:
    return State(calls.calls, calls.vms, calls.vcpus, calls.lost, calls.ram)
