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

``extents`` (relative to ``offset``) are copied into the agent's memory; without them
the file is mapped privately.  Each job runs in a forked child with a new VM, so that a
hang or a crash costs one job and no job sees another's memory.  After each step of a
job a line ``{"id", "step", "errno", "done", "state": {"SREGS": "…"}}`` is written,
with the state that has changed since the previous line, and at the end
``{"id", "end": "done" | "failed" | "timeout" | "signal N" | "stuck"}``.  The bytes are
not interpreted here.

If the first line has a map as ``inside`` (:mod:`qemu_svm.kvm.inside`), each line has looks
into the kernel's memory as ``inside``: that after the step, and before it in the first line
that of the fresh vCPU.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qemu_svm.errors import EnvironmentFault
from qemu_svm.kvm import layouts
from qemu_svm.kvm.device import CAP_NESTED_STATE, CAP_SREGS2, KVM_PATH, KvmRefused, System, Vcpu, Vm
from qemu_svm.kvm.inside import Gone, Inside, Watcher, build_id, type_files
from qemu_svm.kvm.processes import answer, kvm_processes, refusal
from qemu_svm.kvm.run import RUN_BYTES, run

if TYPE_CHECKING:
    from collections.abc import Callable

_RECORDED = ("SREGS", "REGS", "DEBUGREGS", "VCPU_EVENTS")
_GRACE = 5.0  # seconds from SIGKILL to the end of a child

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
    out = os.open(results, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        with open(jobs, encoding="ascii") as lines:
            first = json.loads(next(lines))
            host = _Host(_memory(first["memory"]), path, _inside(first))
            for line in lines:
                job = json.loads(line)
                end = _in_child(job, host, out)
                _write(out, {"id": job["id"], "end": end})
                if end == "stuck":
                    return STUCK
                if end.startswith("signal"):
                    return CRASHED
    finally:
        os.close(out)
    return 0


@dataclass(frozen=True)
class _Host:
    # What all jobs share: the guest's memory, the KVM, and access to kernel memory.
    memory: list[tuple[int, mmap.mmap]]
    kvm: str
    inside: Inside | None


def _inside(first: Json) -> Inside | None:
    return Inside(first["inside"]) if "inside" in first else None


def _memory(regions: list[Json]) -> list[tuple[int, mmap.mmap]]:
    # Address and memory of each region; private, so that each child has its own copy on write.
    found = []
    for region in regions:
        fd = os.open(region["file"], os.O_RDONLY)
        try:
            if "extents" in region:
                memory = mmap.mmap(-1, region["size"], mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                for start, size in region["extents"]:
                    _fill(fd, memoryview(memory)[start : start + size], region["offset"] + start)
            else:
                memory = mmap.mmap(
                    fd,
                    region["size"],
                    mmap.MAP_PRIVATE,
                    mmap.PROT_READ | mmap.PROT_WRITE,
                    offset=region["offset"],
                )
        finally:
            os.close(fd)
        found.append((region["address"], memory))
    return found


def _fill(fd: int, view: memoryview, offset: int) -> None:
    while view:
        got = os.preadv(fd, [view], offset)
        if got == 0:
            return
        view, offset = view[got:], offset + got


def _write(out: int, line: Json) -> None:
    os.write(out, json.dumps(line, separators=(",", ":")).encode() + b"\n")


def _in_child(job: Json, host: _Host, out: int) -> str:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _die_with_parent()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            _sequence(job, host, out)
            status = 0
        except KeyboardInterrupt:
            status = 130
        except BaseException as error:  # noqa: BLE001  (a child must not return)
            _write(out, {"id": job["id"], "error": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(status)
    try:
        return _wait(child, job["timeout"])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _wait(child: int, timeout: float) -> str:
    for limit, word in ((timeout, "timeout"), (_GRACE, "stuck")):
        signal.sigtimedwait([signal.SIGCHLD], limit)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if word == "stuck":
                return "timeout"
            if os.WIFSIGNALED(status):
                return f"signal {os.WTERMSIG(status)}"
            return "done" if status == 0 else "failed"
        os.kill(child, signal.SIGKILL)
    return "stuck"


def _sequence(job: Json, host: _Host, out: int) -> None:
    memory = host.memory
    for address, data in job.get("patches", ()):
        patch(memory, address, bytes.fromhex(data))
    with System(host.kvm) as system, system.create_vm() as vm:
        if job.get("irqchip"):
            vm.create_irqchip()
        for slot, (address, region) in enumerate(memory):
            vm.add_memory(slot, address, region)
        index = job.get("vcpu", 0)
        with vm.create_vcpu(index) as vcpu:
            watcher = host.inside.watch(os.getpid(), vcpu.fd, index) if host.inside else None
            looks = _look(watcher)
            seen: dict[str, str] = {}
            for number, step in enumerate(job["steps"], 1):
                if any("run" in operation for operation in step):
                    os.fsync(out)  # the kernel may crash in it
                line = {"id": job["id"], "step": number, **_step(vm, vcpu, step)}
                looks += _look(watcher)  # before the ioctls that read the state
                if looks:
                    line["inside"], looks = looks, []
                state = _state(vcpu, job.get("msrs", ()))
                line["state"] = {k: v for k, v in state.items() if seen.get(k) != v}
                seen = state
                if "run" in line and job.get("read"):
                    line["memory"] = [read(memory, *place).hex() for place in job["read"]]
                _write(out, line)


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


def _state(vcpu: Vcpu, msrs: list[int]) -> dict[str, str]:
    state = {name: _current(vcpu, name) for name in (*_RECORDED, "NESTED_STATE")}
    if msrs:
        state["MSRS"] = _msrs(vcpu, msrs)
    return state


def _msrs(vcpu: Vcpu, msrs: list[int]) -> str:
    try:
        return layouts.pack_msrs(list(vcpu.get_msrs(msrs).items())).hex()
    except KvmRefused as refused:
        return f"errno {refused.errno}"


def _current(vcpu: Vcpu, name: str) -> str:
    try:
        found = vcpu.get_nested_state() if name == "NESTED_STATE" else vcpu.get_bytes(name)
    except KvmRefused as refused:
        return f"errno {refused.errno}"
    return found.hex()


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
