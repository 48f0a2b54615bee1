"""A stream seen as a machine: its vCPUs, their registers, its RAM blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from qemu_svm.errors import LimitExceeded, PathError, StreamError
from qemu_svm.machine.vcpu import Vcpu, read_vcpu
from qemu_svm.stream import RamBlock, Stream

_CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that was saved.

    :param name: machine type, None if the stream has no configuration record.
    :param vcpus: the vCPUs that could be read, by index.
    :param problems: errors of the vCPUs that could not be read.
    :param form: what the input is, if it is no stream: ``nested-state``,
        ``cloud-hypervisor`` and others (:mod:`qemu_svm.snapshots`); None for a stream.
    :param origins: where the structures of such an input are, in words, by the offset of the
        record.
    """

    stream: Stream = field(repr=False)
    name: str | None
    vcpus: tuple[Vcpu, ...]
    blocks: tuple[RamBlock, ...]
    problems: tuple[StreamError, ...]
    form: str | None = None
    origins: Mapping[int, str] = field(default_factory=dict)

    def vcpu(self, index: int) -> Vcpu:
        """Return the vCPU with this CPU index.

        :raises PathError: there is none that could be read.
        """
        for vcpu in self.vcpus:
            if vcpu.index == index:
                return vcpu
        known = [str(vcpu.index) for vcpu in self.vcpus]
        what = "stream" if self.form is None else "input"
        raise PathError(f"the {what} has no readable vCPU {index}", near=known)


_VERSION = re.compile(r"-(\d{1,9})\.(\d{1,9})$")  # a name may have 64 KiB of digits


def type_version(name: str | None) -> tuple[int, int] | None:
    """Return the version in the name of a machine type, such as ``pc-i440fx-7.2``; else None."""
    found = _VERSION.search(name or "")
    return None if found is None else (int(found[1]), int(found[2]))


def read_machine(stream: Stream) -> Machine:
    """Decode the vCPUs of a stream.

    Never raises for damage: a vCPU that cannot be decoded is left out and
    the reason is in :attr:`Machine.problems`.
    """
    vcpus: list[Vcpu] = []
    problems: list[StreamError] = []
    for record in stream.sections():
        device = stream.device(record)
        if record.name != _CPU or device is None or device.layout.name != _CPU:
            continue
        if len(vcpus) >= stream.limits.vcpus:
            problems.append(
                LimitExceeded(
                    "more vCPUs than the limit allows",
                    offset=record.offset,
                    expected=f"at most {stream.limits.vcpus}",
                    hint="raise it with --limit vcpus=NUMBER",
                )
            )
            break
        try:
            section = stream.values(record)
        except StreamError as error:
            problems.append(error)
            continue
        if section is not None and section.child("env.eip") is not None:
            vcpus.append(read_vcpu(record.instance_id or 0, section, record.described))
    for vcpu in vcpus:
        problems.extend(vcpu.problems)
    return Machine(
        stream=stream,
        name=stream.configuration.machine if stream.configuration else None,
        vcpus=tuple(sorted(vcpus, key=lambda vcpu: vcpu.index)),
        blocks=stream.blocks,
        problems=tuple(problems),
    )
