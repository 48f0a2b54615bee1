"""A Linux with KVM as L1, for captures whose VMCB was written by a real hypervisor.

L1 is the kernel of the suite with Linux 6.1, with the QEMU of the box in its
initrd; L2 is a virtual machine of that QEMU, whose firmware counts.  It takes
minutes, because every exit of L2 is handled by a KVM under a KVM under an
emulator.  The address of L2's memory in L1 is not known, so L2 counts in a register.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.box import boot
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.box.share import forget
from qemu_svm.lab.capture import STEADY_TRIES, Capture
from qemu_svm.lab.guests import LINUX, assemble, values
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.suites import build
from qemu_svm.lab.suites import catalogue as suites
from qemu_svm.lab.suites.modules import in_order
from qemu_svm.lab.vm import Settings, Vm, running
from qemu_svm.machine import Machine, read_machine
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream

KERNEL = "6.1"
"""Release line of L1's kernel."""

_ITERATIONS = 64  # of L2 between two exits that only L1 can handle
_ALIVE_SECONDS = 400.0
_PACK_SECONDS = 120.0
_SAMPLE_SECONDS = 0.2
_SAMPLES = 10
_INNER_SECONDS = 1200.0
_INNER_READY = "L2 counts"
_INNER_TRIES = 32
_KERNEL_HALF = 1 << 63
_SVME = 1 << 12
_NP_ENABLE = 1

_COMMAND_LINE = "console=ttyS0 panic=-1 loglevel=4 nokaslr mitigations=off"


@contextmanager
def started(
    box: BoxSession, settings: Settings, *, trace: str | None = None, inner: bool = False
) -> Iterator[Vm]:
    """Start it in a box; :func:`capture` waits until L1 has booted.

    :param inner: L2 is a Linux too; both levels have KASLR.
    :param trace: name of a file in the share for the log of ``kvm_vcpu_ioctl``.
    :raises LabError: L1's kernel or initrd cannot be made.
    :raises Refused: QEMU does not start.
    """
    folder = box.share / "linux"
    try:
        with host_faults("prepare the initrd of L1"):
            _collect(folder, box.share / "l1-kernel", inner=inner)
        script = _ours("linux-in-linux.pack") * inner + _ours("linux.pack")
        pack = ["busybox", "sh", "-s", "/share/linux"]
        done = box.run(pack, stdin=script, timeout=_PACK_SECONDS)
        if done.returncode:
            raise LabError(f"the initrd of L1 cannot be made: {done.stderr.decode()[-200:]}")
        arguments = ("-kernel", "/share/l1-kernel", "-initrd", "/share/linux.initrd")
        line = _COMMAND_LINE.replace(" nokaslr", "") if inner else _COMMAND_LINE
        console = ("-append", line, "-serial", "file:/share/l1-console")
        wanted = replace(settings, devices=(*settings.devices, *arguments, *console))
        with running(box, wanted, waits=False, trace=trace) as vm:
            yield vm
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("linux.initrd", "l1-kernel"):
            forget(box.share / name)


def _collect(folder: Path, kernel: Path, *, inner: bool) -> None:
    # L1's kernel, and the content of its initrd but for QEMU, which the box adds.
    (folder / "modules").mkdir(parents=True)
    with build.using(suites.of_kernel(KERNEL)) as built:
        modules = in_order(built, ("kvm_amd", *("qemu_fw_cfg",) * inner))
        for name, content in modules:
            (folder / "modules" / name).write_bytes(content)
        (folder / "modules" / "order").write_text("".join(f"{name}\n" for name, _ in modules))
        if inner:
            shutil.copyfile(built.vmlinuz, folder / "l2.kernel")
        else:
            (folder / "l2.rom").write_bytes(assemble(LINUX).data)
        init = folder / "init"
        init.write_bytes(_ours("linux-in-linux.init" if inner else "linux.init"))
        init.chmod(0o755)
        shutil.copyfile(boot.kernel(built), kernel)


def _ours(name: str) -> bytes:
    return (files("qemu_svm.lab") / "guests" / name).read_bytes()


def l2_count(vm: Vm) -> int | None:
    """Return L2's counter; None if the vCPU is not in this L2 at the moment."""
    text = vm.monitor("info registers")
    found = {name: int(value, 16) for name, value in re.findall(r"\b[ER](BX|SI)=([0-9a-f]+)", text)}
    return found.get("SI") if found.get("BX") == values.l2_rbx() else None


def is_running(vm: Vm) -> bool:
    """Return whether the vCPU is seen in this L2 within a few seconds."""
    for _ in range(_SAMPLES):
        if l2_count(vm) is not None:
            return True
        time.sleep(_SAMPLE_SECONDS)
    return False


def moves(vm: Vm, seconds: float) -> bool:
    """Return whether, within ``seconds``, L2 counts past its next exits."""
    first: int | None = None
    end = time.monotonic() + seconds
    while time.monotonic() < end and vm.qmp.status().running:
        count = l2_count(vm)
        if first is None:
            first = count
        elif count is not None and count - first > 2 * _ITERATIONS:
            return True
        time.sleep(_SAMPLE_SECONDS)
    return False


def capture(vm: Vm) -> Capture:
    """Save it while its L2 runs; see :func:`qemu_svm.lab.capture.capture`.

    :raises LabError: L2 does not run, or no save was made in it.
    """
    if not moves(vm, _ALIVE_SECONDS):  # L1 boots meanwhile
        console = vm.box.share / "l1-console"
        lines = console.read_text(errors="replace").splitlines() if console.exists() else []
        raise LabError(f"L1's L2 does not run: {lines[-1] if lines else 'L1 printed nothing'}")
    wrong: list[str] = []
    for number in range(1, STEADY_TRIES + 1):
        path = vm.save()
        with open_source(str(path)) as source:
            machine = read_machine(read_stream(source))
            wrong = list(differences(machine))
            nested = machine.vcpus[0].nested if machine.vcpus else None
        if not wrong:
            return Capture(path, number, (None if nested is None else nested.flags,))
        forget(path)
        vm.qmp.execute("cont")
    raise LabError(f"none of {STEADY_TRIES} saves was made in L2: {'; '.join(wrong)}")


def capture_inner(vm: Vm) -> Capture:
    """Save a Linux in Linux while a program of L2 runs.

    :raises LabError: L2 does not boot, or no save was made in it.
    """
    console = vm.box.share / "l1-console"
    end = time.monotonic() + _INNER_SECONDS
    text = ""
    while _INNER_READY not in text:
        if time.monotonic() > end or not vm.qmp.status().running:
            lines = text.splitlines()
            raise LabError(f"L2 does not boot: {lines[-1] if lines else 'L1 printed nothing'}")
        time.sleep(_SAMPLE_SECONDS)
        text = console.read_text(errors="replace") if console.exists() else ""
    for number in range(1, _INNER_TRIES + 1):
        path = vm.save()
        with open_source(str(path)) as source:
            machine = read_machine(read_stream(source))
        vcpu = machine.vcpus[0] if machine.vcpus else None
        if vcpu is not None and vcpu.guest_mode and vcpu.nested is not None and vcpu.cpl:
            return Capture(path, number, (vcpu.nested.flags,))
        forget(path)
        vm.qmp.execute("cont")
        time.sleep(1)
    raise LabError(f"none of {_INNER_TRIES} saves was made in a program of L2")


def differences(machine: Machine) -> Iterator[str]:
    """Yield the differences between a stream and the wanted state of this guest."""
    yield from (str(problem) for problem in (*machine.stream.problems, *machine.problems))
    if len(machine.vcpus) != 1:
        yield f"vCPUs: expected 1, found {len(machine.vcpus)}"
        return
    vcpu = machine.vcpus[0]
    if not vcpu.guest_mode or vcpu.nested is None:
        yield "vcpu0.guest_mode: expected 1, found 0"
        return
    if vcpu.get("rbx") != values.l2_rbx():
        yield f"vcpu0.rbx: expected {values.l2_rbx():#x}, found {vcpu.get('rbx'):#x}"
    save, control = vcpu.nested.l1_save, vcpu.nested.control
    if save.rip < _KERNEL_HALF or not save.efer & _SVME:
        yield "vcpu0.nested.l1_save: expected a kernel with EFER.SVME"
    if not control.nested_ctl & _NP_ENABLE:
        yield "vcpu0.nested.control.nested_ctl: expected NP_ENABLE"
