"""The command line of the emulator that is the AMD host."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.box.share import Share
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.suites.foreign import LIBRARIES, on_host

_FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")


@dataclass(frozen=True)
class Machine:
    """The emulated host.

    :param npt: nested paging for KVM's guests (``kvm_amd npt=``).
    :param cpu: QEMU's CPU model; ``+svm`` is added.
    :param memory: MiB.
    :param words: on the kernel's command line, besides the usual ones.
    """

    npt: bool = True
    cpu: str = "EPYC"
    smp: int = 1
    memory: int = 2048
    words: tuple[str, ...] = ()


def program(emulator: Built | None) -> list[str]:
    """Return the start of the emulator's command line.

    :param emulator: the suite whose QEMU it is; None for the host's own.
    :raises LabError: the host has no QEMU.
    """
    if emulator is not None:
        # Without the variable it looks for its accelerator in the host's directory.
        modules = emulator.root / LIBRARIES / "qemu"
        command = ["env", f"QEMU_MODULE_DIR={modules}"]
        command += on_host(emulator.root, "usr/bin/qemu-system-x86_64")
        for place in _FIRMWARE:
            command += ["-L", str(emulator.root / place)]
        return command
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        raise LabError(
            "qemu-system-x86_64, which emulates the AMD host, is not installed",
            hint="apt-get install qemu-system-x86, or use one from the cache: --emulator 10.0",
        )
    return [found]


def arguments(
    machine: Machine, kernel: Path, initrd: Path, *, root: Path, share: Share, run: Path
) -> list[str]:
    """Return the emulator's arguments.

    :param root: the suite's files, mounted read-only.
    :param share: the directory that is ``/share`` inside.
    :param run: the directory of the agent's socket and the console's file.
    """
    # In a limited share links, sockets and devices are not made, but kept as plain files.
    model = "mapped-file" if share.limited else "none"
    words = [
        "console=ttyS0", "panic=-1", "oops=panic", "loglevel=5", "no_timer_check",
        "tsc=reliable", "random.trust_cpu=on", f"box_npt={int(machine.npt)}",
        *machine.words,
    ]  # fmt: skip
    return [
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-accel", "tcg,thread=multi", "-machine", "pc", "-cpu", f"{machine.cpu},+svm",
        "-smp", str(machine.smp), "-m", str(machine.memory),
        "-kernel", str(kernel), "-initrd", str(initrd), "-append", " ".join(words),
        "-chardev", f"file,id=console,path={comma(run / 'console')}",
        "-serial", "chardev:console",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={comma(run / 'agent')}",
        "-device", "virtserialport,chardev=agent,name=box.agent",
        *_folder("root", root, "security_model=none,readonly=on"),
        *_folder("share", share.path, f"security_model={model}"),
    ]  # fmt: skip


def _folder(name: str, path: Path, options: str) -> Sequence[str]:
    return (
        "-fsdev", f"local,id={name},path={comma(path)},multidevs=remap,{options}",
        "-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}",
    )  # fmt: skip


def comma(path: Path) -> str:
    """Return a path as part of a QEMU option, in which a comma has to be doubled."""
    return str(path).replace(",", ",,")
