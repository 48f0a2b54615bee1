"""A process's vCPUs as they are in the kernel's memory, once or again and again."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.host import Host
from qemu_svm.inside.layout import Layout
from qemu_svm.inside.view import Inside, Looks
from qemu_svm.results import Result

_OUTSIDE = 0  # enum: OUTSIDE_GUEST_MODE, include/linux/kvm_host.h
_MOST_VCPUS = 4096


class State(StrEnum):
    """What a vCPU did while it was read."""

    STOPPED = "stopped"
    """It was outside the guest in two reads, with no exit between them."""
    RUNNING = "running"
    """It was in the guest: the VMCB has what the processor wrote at the last exit."""
    CHANGING = "changing"
    """Two reads differed each time: members may be of different moments."""
    GONE = "gone"
    """It was closed."""


@dataclass(frozen=True, slots=True)
class VcpuLook:
    """One vCPU.

    :param vm: which of the process's VMs; they are counted from 0.
    :param values: by the names of :mod:`qemu_svm.inside.view`; none if it is gone.
    :param changed: names whose values are not those of the look before; empty in the first.
    :param gone: why, in words.
    """

    id: int
    vm: int
    state: State
    values: Inside = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    before: Inside = field(default_factory=dict)
    gone: str | None = None

    @property
    def label(self) -> str:
        """``vCPU 0``, with its VM if the process has several."""
        return f"vCPU {self.id}" + (f" of VM {self.vm}" if self.vm else "")

    @property
    def guest(self) -> str:
        """Who runs: ``L1`` or ``L2``."""
        return "L2" if self.values.get("guest_mode") else "L1"


@dataclass(frozen=True, slots=True, repr=False)
class InsideLook(Result):
    """All vCPUs of a process.

    :param kernel: the release of the host's kernel.
    :param pid: the process; its name is ``name``.
    :param number: of the look, from 1.
    :param path: of the file that it was kept in; empty if it was just made.
    """

    verb: ClassVar[str] = "inside"
    kernel: str
    pid: int
    name: str
    number: int
    vcpus: tuple[VcpuLook, ...]
    path: str = ""


def chosen(host: Host, pid: int | None) -> tuple[int, str]:
    """Return id and name of the process: the given one, or the only one that has vCPUs.

    :raises EnvironmentFault: there is none, or there are several; or the host forbids it.
    """
    known = host.processes()
    if pid is not None:
        return pid, next((str(one["name"]) for one in known if one["pid"] == pid), "")
    if not known:
        raise EnvironmentFault(
            "no process on this host has a vCPU", hint="start a VM with KVM, then give its --pid"
        )
    if len(known) > 1:
        some = ", ".join(f"{one['pid']} ({one['name']})" for one in known[:20])
        raise EnvironmentFault(f"several processes have vCPUs: {some}", hint="give --pid")
    return int(known[0]["pid"]), str(known[0]["name"])


def look(
    host: Host, pid: int | None, *, vcpus: Sequence[int] = (), addresses: bool = False
) -> Generator[InsideLook, None, None]:
    """Return one look after the other, each when it is asked for.

    :param pid: the process; None for the only one that has vCPUs.
    :param vcpus: ids of those that are wanted; none for all.
    :param addresses: addresses of the host are wanted too.
    :raises EnvironmentFault: the process is gone, or the host forbids it.
    """
    pid, name = chosen(host, pid)
    layout = host.layout()
    layout = layout.with_addresses() if addresses else layout
    with host.feed(pid, layout) as feed:
        seen = _Seen(layout)
        number = 0
        while True:
            number += 1
            found = [seen.see(one) for one in _checked(feed.look())]
            if vcpus:
                found = [one for one in found if one.id in vcpus]
            if not found:
                wanted = ", ".join(map(str, vcpus))
                raise EnvironmentFault(f"process {pid} has no vCPU {wanted}")
            yield InsideLook(host.kernel(), pid, name, number, tuple(found))


def _checked(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # They may come from a box.
    if not isinstance(answers, list) or len(answers) > _MOST_VCPUS or not all(
        isinstance(one, dict) and type(one.get("id")) is int and type(one.get("vm")) is int
        for one in answers
    ):  # fmt: skip
        raise EnvironmentFault("a look into kernel memory cannot be read: no list of vCPUs")
    return answers


class _Seen:
    # The looks before.
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._looks: dict[tuple[int, int], Looks] = {}
        self._before: dict[tuple[int, int], Inside] = {}

    def see(self, answer: dict[str, Any]) -> VcpuLook:
        identity, vm = answer["id"], answer["vm"]
        key = vm, identity
        if "gone" in answer:
            self._looks.pop(key, None)
            self._before.pop(key, None)
            return VcpuLook(identity, vm, State.GONE, gone=str(answer["gone"]))
        values = self._looks.setdefault(key, Looks(self._layout)).see(answer)
        before = self._before.get(key)
        changed = () if before is None else tuple(
            name for name in dict.fromkeys((*values, *before))
            if values.get(name) != before.get(name)
        )  # fmt: skip
        self._before[key] = values
        return VcpuLook(identity, vm, _state(answer, values), values, changed, before or {})


def _state(answer: dict[str, Any], values: Inside) -> State:
    if answer.get("changing"):
        return State.CHANGING
    return State.STOPPED if values.get("mode", _OUTSIDE) == _OUTSIDE else State.RUNNING
