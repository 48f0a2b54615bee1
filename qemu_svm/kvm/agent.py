"""Performs sequences of ioctls on this machine's KVM and records the results.

``python3 -m qemu_svm.kvm.agent probe`` describes this KVM;
``… agent types FOLDER`` copies the types of this kernel, and lists the processes that have
vCPUs; ``… agent watch PID`` reads one's (:mod:`qemu_svm.kvm.processes`);
``… agent perform JOBS RESULTS`` performs jobs.  Both files are JSON lines, bytes
are hexadecimal.  The first line of JOBS describes the guest's memory, each other
line is a job::

    {"memory": [{"address": 0, "size": 33554432, "file": "/share/ram", "offset": 0,
                 "extents": [[0, 4096], …]}]}
    {"id": "7", "irqchip": true, "timeout": 10, "patches": [[1048576, "0fa2"]],
     "msrs": [3221225600], "read": [[1081344, 4096]],
     "steps": [[{"ioctl": "SET_SREGS", "data": "…"}], [{"run": 1.0, "stop_port": 234}]]}

``extents`` (relative to ``offset``) are copied once; without them the file itself is
mapped.  Each job has a new VM with a private mapping of the memory, so that no job sees
another's.  A child performs them, so that a hang or a crash costs one job; the rest is
given to a new child.  After each step of a
job a line ``{"id", "step", "errno", "done", "state": {"SREGS": "…"}}`` is written,
with the state that has changed since the previous line, and at the end
``{"id", "end": "done" | "failed" | "timeout" | "signal N" | "stuck"}``.  The bytes are
not interpreted here.

Lines of a job with ``"quick": true`` are written before each KVM_RUN and at its end only: if
the kernel crashes in another ioctl, its last steps are lost.

If the first line has a map as ``inside`` (:mod:`qemu_svm.kvm.inside`), each line has looks
into the kernel's memory as ``inside``: that after the step, and before it in the first line
that of the fresh vCPU.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import select
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from qemu_svm.errors import EnvironmentFault
from qemu_svm.kvm import layouts
from qemu_svm.kvm.device import CAP_NESTED_STATE, CAP_SREGS2, KVM_PATH, KvmRefused, System, Vcpu, Vm
from qemu_svm.kvm.inside import Gone, Inside, Watcher, build_id, type_files
from qemu_svm.kvm.processes import answer, kvm_processes, refusal
from qemu_svm.kvm.run import RUN_BYTES, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RECORDED = ("SREGS", "REGS", "DEBUGREGS", "VCPU_EVENTS")
_GRACE = 5.0  # seconds from SIGKILL to the end of a child
_START = 60.0  # seconds from the start of a child to its first job
_POLL = 0.05
_HEADER = layouts.MSRS.size
_FAILED = 1  # exit status of a child after a job that failed

STUCK = 3
"""Exit status if a child cannot be killed: the kernel hangs."""

CRASHED = 5
"""Exit status if a child was killed by a signal: the kernel may be damaged."""

_ENVIRONMENT = 4
_USAGE = (
    "usage: agent probe [KVM] | agent types FOLDER | agent watch PID | "
    "agent perform JOBS RESULTS [KVM]"
)
_LME, _PG, _PAE = 1 << 8, 1 << 31, 1 << 5
_PR_SET_PDEATHSIG = 1

Json = dict[str, Any]


def probe(path: str = KVM_PATH) -> Json:
    """Return kernel release, capabilities and CPUID (hexadecimal) of this KVM.

    :raises EnvironmentFault: there is no KVM, or it may not be used.
    """
    system = os.uname()
    with System(path) as kvm:
        return {
            "release": system.release,
            "version": system.version,
            "nested_state": kvm.check_extension(CAP_NESTED_STATE),
            "sregs2": kvm.check_extension(CAP_SREGS2),
            "cpuid": kvm.supported_cpuid().hex(),
        }


def types(folder: str) -> Json:
    """Copy the files with the kernel's types; return their names.

    Besides them the module's build id, and the processes that have vCPUs.

    :param folder: directory to copy them into.
    :raises EnvironmentFault: this kernel has none.
    """
    found = type_files()
    if "vmlinux" not in found:
        raise EnvironmentFault(
            "this kernel has no types: /sys/kernel/btf/vmlinux does not exist",
            hint="a kernel with CONFIG_DEBUG_INFO_BTF is needed",
        )
    for name, path in found.items():
        with open(path, "rb") as source, open(os.path.join(folder, name), "wb") as copy:
            shutil.copyfileobj(source, copy)
    return {"files": sorted(found), "build_id": build_id(), "processes": kvm_processes()}


def watch(pid: int) -> int:
    """Answer each line of standard input with a look at the vCPUs of a process.

    :raises EnvironmentFault: that is not possible.
    """
    if (fault := refusal()) is not None:
        raise fault
    for line in answer(pid, sys.stdin.buffer):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    return 0


def perform(jobs: str, results: str, path: str = KVM_PATH) -> int:
    """Perform the jobs of a file; return the exit status: 0, :data:`STUCK`, :data:`CRASHED`.

    :param jobs, results: paths of the two files.
    """
    with ExitStack() as stack:
        out = os.open(results, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        stack.callback(os.close, out)
        with open(jobs, "rb") as lines:
            first = json.loads(lines.readline())
            memory = [_region(one, stack) for one in first["memory"]]
            host = _Host(memory, path, _inside(first, stack))
            place: int | None = lines.tell()
        gc.freeze()  # a child would copy each page on which there is a collected object
        stack.callback(gc.unfreeze)
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, signals)
        while place is not None:
            identity, place, end = _in_child(jobs, place, host, out)
            if end is None:
                continue
            _write(out, {"id": identity, "end": end})
            if end == "stuck":
                return STUCK
            if end.startswith("signal"):
                return CRASHED
    return 0


@dataclass(frozen=True)
class _Region:
    # A range of the guest's memory, and the file that has what it begins with.
    address: int
    size: int
    fd: int
    offset: int

    def mapped(self) -> mmap.mmap:
        """Return a private copy (on write)."""
        return mmap.mmap(
            self.fd, self.size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE,
            offset=self.offset,
        )  # fmt: skip


@dataclass(frozen=True)
class _Host:
    # What all jobs share: the guest's memory, the KVM, and access to kernel memory.
    memory: list[_Region]
    kvm: str
    inside: Inside | None


def _inside(first: Json, stack: ExitStack) -> Inside | None:
    if "inside" not in first:
        return None
    inside = Inside(first["inside"])
    stack.callback(inside.close)
    return inside


def _region(region: Json, stack: ExitStack) -> _Region:
    size, offset = region["size"], region["offset"]
    file = os.open(region["file"], os.O_RDONLY)
    stack.callback(os.close, file)
    if "extents" not in region:
        return _Region(region["address"], size, file, offset)
    copy = os.memfd_create("ram")
    stack.callback(os.close, copy)
    os.ftruncate(copy, size)
    with mmap.mmap(copy, size) as memory, memoryview(memory) as view:
        for start, length in region["extents"]:
            _fill(file, view[start : start + length], offset + start)
    return _Region(region["address"], size, copy, 0)


def _fill(fd: int, view: memoryview, offset: int) -> None:
    while view:
        got = os.preadv(fd, [view], offset)
        if got == 0:
            return
        view, offset = view[got:], offset + got


def _write(out: int, *lines: Json) -> None:
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    os.write(out, text.encode())


class _Ended(NamedTuple):
    # The last job of a child; where the next one is, or None; how it ended, or None if the
    # child has written that.
    identity: str
    place: int | None
    end: str | None


def _in_child(jobs: str, place: int, host: _Host, out: int) -> _Ended:
    # Perform jobs until one ends the child.
    told, tell = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(told)
                _die_with_parent()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
                status = _perform(jobs, place, host, out, tell)
            except KeyboardInterrupt:
                status = 130
            finally:
                os._exit(status)
        os.close(tell)
        try:
            found = _wait(child, told, place)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
    finally:
        os.close(told)
    if not found.identity and found.place is not None:
        raise RuntimeError("the agent's child ended before its first job")
    return found


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _perform(jobs: str, place: int, host: _Host, out: int, tell: int) -> int:
    # The child: perform jobs up to the end or the first that fails.
    with open(jobs, "rb") as lines:
        lines.seek(place)
        while line := lines.readline():
            job = json.loads(line)
            _write(tell, {"id": job["id"], "timeout": job["timeout"], "next": lines.tell()})
            answers = _Answers(out, quick=job.get("quick", False))
            end = "done"
            try:
                _sequence(job, host, answers)
            except Exception as error:  # noqa: BLE001  (it is the job's result)
                answers.add({"id": job["id"], "error": f"{type(error).__name__}: {error}"})
                end = "failed"
            answers.add({"id": job["id"], "end": end}, last=True)
            if end == "failed":
                return _FAILED
    return 0


def _wait(child: int, told: int, place: int) -> _Ended:
    identity, limit, rest = "", _START, b""
    late = False
    while not late:
        late = not select.select([told], [], [], limit)[0]
        data = b"" if late else os.read(told, 1 << 16)
        if not data:
            break
        *notes, rest = (rest + data).split(b"\n")
        if notes:
            note = json.loads(notes[-1])
            identity, limit, place = note["id"], note["timeout"], note["next"]
    if late:
        os.kill(child, signal.SIGKILL)
    status = _reaped(child)
    if status is None:
        return _Ended(identity, place, "stuck")
    if late:
        return _Ended(identity, place, "timeout")
    if os.WIFSIGNALED(status):
        return _Ended(identity, place, f"signal {os.WTERMSIG(status)}")
    return _Ended(identity, place if os.WEXITSTATUS(status) else None, None)


def _reaped(child: int) -> int | None:
    # The status of a child that ends; None if it does not.
    end = time.monotonic() + _GRACE
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > end:
            return None
        signal.sigtimedwait([signal.SIGCHLD], _POLL)


class _Answers:
    # The lines about one job.
    def __init__(self, out: int, *, quick: bool) -> None:
        self._out = out
        self._quick = quick
        self._lines: list[Json] = []

    def add(self, line: Json, *, last: bool = False) -> None:
        """Write a line, or keep it."""
        self._lines.append(line)
        if last or not self._quick:
            self._flush()

    def before_run(self) -> None:
        """Write what was kept: the kernel may crash in what follows."""
        self._flush()
        if not self._quick:
            os.fsync(self._out)

    def _flush(self) -> None:
        if self._lines:
            _write(self._out, *self._lines)
            self._lines.clear()


def _sequence(job: Json, host: _Host, answers: _Answers) -> None:
    with ExitStack() as stack:
        memory = [(one.address, stack.enter_context(one.mapped())) for one in host.memory]
        for address, data in job.get("patches", ()):
            patch(memory, address, bytes.fromhex(data))
        system = stack.enter_context(System(host.kvm))
        vm = stack.enter_context(system.create_vm())
        if job.get("irqchip"):
            vm.create_irqchip()
        for slot, (address, region) in enumerate(memory):
            vm.add_memory(slot, address, region)
        index = job.get("vcpu", 0)
        vcpu = stack.enter_context(vm.create_vcpu(index))
        watcher = host.inside.watch(os.getpid(), vcpu.fd, index) if host.inside else None
        looks = _look(watcher)
        state = _State(vcpu, job.get("msrs", ()))
        for number, step in enumerate(job["steps"], 1):
            if any("run" in operation for operation in step):
                answers.before_run()
            line = {"id": job["id"], "step": number, **_step(vm, vcpu, step)}
            looks += _look(watcher)  # before the ioctls that read the state
            if looks:
                line["inside"], looks = looks, []
            line["state"] = state.changed()
            if "run" in line and job.get("read"):
                line["memory"] = [read(memory, *place).hex() for place in job["read"]]
            answers.add(line)


def _look(watcher: Watcher | None) -> list[Json]:
    if watcher is None:
        return []
    try:
        return [watcher.look()]
    except Gone as gone:
        return [{"gone": gone.what}]


def _step(vm: Vm, vcpu: Vcpu, step: list[Json]) -> Json:
    # Perform the operations of a step up to the first that fails; return their results.
    result: Json = {"errno": 0}
    for operation in step:
        if "run" in operation:
            if operation.get("emulated") and _fatal_for_emulator(vcpu):
                result["skipped"] = True
                break
            found = run(vcpu, operation["run"], stop_port=operation.get("stop_port"))
            result["run"] = vcpu.run_page[:RUN_BYTES].hex()
            result["errno"] = found.errno
            continue
        buffer = bytearray.fromhex(operation["data"])
        try:
            target = vm if operation.get("vm") else vcpu
            result["done"] = target.ioctl(operation["ioctl"], operation.get("value", buffer))
        except KvmRefused as refused:
            result["errno"] = refused.errno
        if operation.get("back"):
            result["back"] = buffer[: operation["back"]].hex()
        if result["errno"]:
            break
    return result


def _fatal_for_emulator(vcpu: Vcpu) -> bool:
    # QEMU's TCG does not return from a guest with EFER.LME set, paging off and
    # CR4.PAE clear: at #VMEXIT it restores CR0 before CR4, which leaves paging
    # off in the host (``target/i386/tcg/sysemu/svm_helper.c``, 7.2).
    try:
        sregs = vcpu.get("SREGS")
    except KvmRefused:
        return False  # KVM_RUN fails as well
    return bool(sregs["efer"] & _LME and not sregs["cr0"] & _PG and not sregs["cr4"] & _PAE)


class _State:
    # A vCPU's state as the ioctls return it: what has changed since it was last asked for.
    def __init__(self, vcpu: Vcpu, msrs: Sequence[int]) -> None:
        self._vcpu = vcpu
        self._msrs = layouts.pack_msrs([(number, 0) for number in msrs])
        self._seen: dict[str, bytes | str] = {}

    def changed(self) -> dict[str, str]:
        """Return bytes (hexadecimal) or ``errno N`` by name."""
        found: dict[str, str] = {}
        for name in (*_RECORDED, "NESTED_STATE", *(["MSRS"] if len(self._msrs) > _HEADER else [])):
            now = self._current(name)
            if self._seen.get(name) != now:
                self._seen[name] = now
                found[name] = now if isinstance(now, str) else now.hex()
        return found

    def _current(self, name: str) -> bytes | str:
        try:
            if name == "MSRS":
                buffer = bytearray(self._msrs)
                done = self._vcpu.ioctl("GET_MSRS", buffer)
                head = layouts.MSRS.pack({"nmsrs": done})
                return head + buffer[_HEADER : _HEADER + done * layouts.MSR_ENTRY.size]
            if name == "NESTED_STATE":
                return self._vcpu.get_nested_state()
            return self._vcpu.get_bytes(name)
        except KvmRefused as refused:
            return f"errno {refused.errno}"


def patch(memory: list[tuple[int, mmap.mmap]], address: int, data: bytes) -> None:
    """Write to the guest's memory; bytes outside of it are dropped."""
    for start, region in memory:
        low, high = max(address, start), min(address + len(data), start + len(region))
        if low < high:
            region[low - start : high - start] = data[low - address : high - address]


def read(memory: list[tuple[int, mmap.mmap]], address: int, size: int) -> bytes:
    """Return bytes of the guest's memory; none unless all are in one region."""
    for start, region in memory:
        if start <= address and address + size <= start + len(region):
            return region[address - start : address - start + size]
    return b""


def main(arguments: list[str]) -> int:
    """Run the agent's command line; return the exit status."""
    commands: dict[tuple[str, int], Callable[..., int]] = {
        ("probe", 0): lambda: _print(probe()),
        ("probe", 1): lambda path: _print(probe(path)),
        ("types", 1): lambda folder: _print(types(folder)),
        ("watch", 1): lambda pid: watch(int(pid)),
        ("perform", 2): perform,
        ("perform", 3): perform,
    }
    command = commands.get((arguments[0], len(arguments) - 1)) if arguments else None
    if command is not None:
        try:
            return command(*arguments[1:])
        except EnvironmentFault as fault:
            print(_on_one_line(fault), file=sys.stderr)  # noqa: T201
            return _ENVIRONMENT
    print(_USAGE, file=sys.stderr)  # noqa: T201
    return 2


def _print(document: Json) -> int:
    print(json.dumps(document))  # noqa: T201
    return 0


def _on_one_line(fault: EnvironmentFault) -> str:
    return f"{fault.what} ({fault.hint})" if fault.hint else fault.what


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
