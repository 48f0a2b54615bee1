"""Explains why a QEMU refused a stream: what the stream has where QEMU's message points.

:mod:`~qemu_svm.findings.refusal_messages` says what each message means; here is found
what it is about in this stream: a section, a field, a RAM block, a byte of a PCI
configuration space, feature bits, a queue.  Messages of which only the function is
known (:mod:`~qemu_svm.findings.qemu_functions`) are named.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from qemu_svm.errors import StreamError, StreamRefused
from qemu_svm.findings.qemu_functions import function_of
from qemu_svm.findings.qemus import newer_subsections
from qemu_svm.findings.refusal_messages import Meaning, meanings_of
from qemu_svm.findings.refusal_properties import optional_parts
from qemu_svm.findings.results import RestoreRefusal
from qemu_svm.machine import Machine, pci
from qemu_svm.machine.paths import section_label
from qemu_svm.machine.sections import section_values
from qemu_svm.machine.virtio.device import VirtioDevice, device_in
from qemu_svm.machine.virtio.features import feature_bits
from qemu_svm.rules import Finding, Severity
from qemu_svm.stream import Kind, Record, Value

_NAMED = (Kind.START, Kind.FULL)
_WEAK = frozenset({"end"})
"""Rules that say nothing if another message has the reason."""

_ONCE = frozenset({"pci-config"})
"""Rules of which a later message only repeats the first, with less detail."""

_BLOCKS = ("block", "large", "lost", "not", "multifd", "map", "range")
_FEW = 4
"""Places that are shown where no message names the section; of more it says nothing."""

_SHOWN = 60
_SHOW = "svmstream show"
_MSRS = {
    0xC0000080: "efer", 0xC0000081: "star", 0xC0000082: "lstar", 0xC0000083: "cstar",
    0xC0000084: "sfmask", 0xC0000102: "kernel_gs_base", 0xC0000103: "tsc_aux",
    0x174: "sysenter_cs", 0x175: "sysenter_esp", 0x176: "sysenter_eip", 0x277: "pat",
    0x10: "tsc", 0xC0010117: "vm_hsave_pa",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Place:
    # What a message is about.  ``about`` follows what the message means.
    about: str
    offset: int | None = None
    path: str = ""


@dataclass(slots=True)
class _Case:
    # What is known of one refusal: the stream, the parts of the message at hand, and the
    # section in which QEMU stopped, which another message names.
    machine: Machine
    parts: Mapping[str, str | None]
    failed: Record | None
    trees: dict[int, Value | None] = field(default_factory=dict)

    def tree(self, record: Record) -> Value | None:
        if record.offset not in self.trees:
            try:
                self.trees[record.offset] = section_values(self.machine, record)
            except StreamError:
                self.trees[record.offset] = None
        return self.trees[record.offset]

    def path(self, record: Record) -> str:
        return f"section:{section_label(self.machine, record)}"


def refusal(machine: Machine, path: str, error: StreamRefused) -> RestoreRefusal:
    """Return QEMU's message beside the part of the stream that it is about.

    :param path: of the stream, as given.
    """
    reason = tuple(error.reason.splitlines())
    return RestoreRefusal(path, reason, tuple(explain_refusal(machine, reason)))


def explain_refusal(machine: Machine, words: Iterable[str]) -> list[Finding]:
    """Describe what the stream has at the places that QEMU's messages name.

    :param words: lines that QEMU printed, or its ``error-desc``.
    """
    lines = list(words)
    failed = _failed(machine, lines)
    found: list[Finding] = []
    unknown: list[Finding] = []
    for line in lines:
        meanings = meanings_of(line)
        for meaning, match in meanings:
            case = _Case(machine, match.groupdict(), failed)
            for place in _places(case, meaning):
                finding = _finding(meaning, place, machine.stream.source.path)
                vague = meaning.rule in _ONCE or not place.about
                again = vague and finding.rule in {one.rule for one in found}
                if finding not in found and not again:
                    found.append(finding)
        if not meanings and (function := function_of(line)) is not None:
            text = f"QEMU's {function}() printed this; what it means is not known here"
            unknown.append(Finding(Severity.ERROR, "refused-unknown", text))
    strong = [one for one in found if one.rule.removeprefix("refused-") not in _WEAK]
    found = (strong or found) + unknown
    found += (
        Finding(
            Severity.ERROR,
            "refused-damage",
            f"the stream is damaged: {error.detail()}; svmstream inspect lists all damage",
            error.offset,
        )
        for error in machine.stream.problems
    )
    return found


def _finding(meaning: Meaning, place: _Place, file: str) -> Finding:
    do = meaning.do
    if do.startswith(_SHOW):
        # The whole command.
        command = f"{_SHOW} {shlex.quote(file)} {shlex.quote(place.path)}"
        do = command + do.removeprefix(_SHOW)
        if not place.path:
            do = f"svmstream inspect {shlex.quote(file)} lists the sections"
    text = "; ".join(part for part in (place.about or meaning.means, do) if part)
    rule = f"refused-{meaning.rule}"
    return Finding(Severity.ERROR, rule, text, place.offset, place.path, do)


_OF_DEVICE = re.compile(r"of device '([^']*)'")


def _failed(machine: Machine, lines: list[str]) -> Record | None:
    # The section in which QEMU stopped.
    for line in lines:
        for name in _OF_DEVICE.findall(line):
            for record in _records(machine, name, None):
                return record
    return None


def _records(machine: Machine, name: str, instance: int | None) -> Iterator[Record]:
    for record in machine.stream.records:
        if record.kind in _NAMED and instance in (None, record.instance_id):
            # QEMU prints the section's name, or its description's (the part after the path).
            device = machine.stream.device(record)
            if name in (record.name, device.layout.name if device is not None else None):
                yield record


def _places(case: _Case, meaning: Meaning) -> Iterator[_Place]:
    find = _FINDERS.get(meaning.rule)
    if find is not None:
        yield from find(case)
        return
    block = next((case.parts[name] for name in _BLOCKS if case.parts.get(name)), None)
    if block is not None:
        yield _block(case, block)
        return
    name, wanted = case.parts.get("name"), case.parts.get("field")
    if name is None and wanted and case.failed is not None:
        yield _section(case, case.failed, wanted)
    elif name is None and wanted:
        yield from _fields(case, wanted)
    elif name is None:
        yield _Place("")
    else:
        yield from _named(case, name)


def _fields(case: _Case, wanted: str) -> Iterator[_Place]:
    # No message names the section: those with such a description or field.
    kind = case.parts.get("type")
    found = list(_records(case.machine, wanted, None)) or [
        record
        for record in case.machine.stream.sections()
        if _has_field(case.tree(record), wanted, kind)
    ]
    if found and len(found) <= _FEW:
        yield from (_section(case, record, wanted) for record in found)
    else:
        yield _Place("")


def _has_field(tree: Value | None, wanted: str, kind: str | None) -> bool:
    return any(
        f".{value.name}".endswith(f".{wanted}") and kind in (None, value.type)
        for _, value in (tree.walk() if tree is not None else ())
    )


def _named(case: _Case, name: str) -> Iterator[_Place]:
    number = case.parts.get("instance")
    found = list(_records(case.machine, name, int(number, 0) if number else None))
    wanted = case.parts.get("field")
    if not found and wanted and case.failed is not None:
        # The name is that of a structure inside the section that failed.
        yield _section(case, case.failed, wanted)
    elif not found:
        yield _Place(f"the stream has no section '{name}'")
    else:
        yield _section(case, found[0], wanted)


def _section(case: _Case, record: Record, wanted: str | None = None) -> _Place:
    path = case.path(record)
    text = (
        f"{path}, version {record.version_id}, is {record.payload_size} bytes at "
        f"{record.payload:#x}"
    )
    cpu = record.name == "cpu"
    if wanted is None and not cpu:
        return _Place(text, record.offset, path)
    try:
        tree = section_values(case.machine, record)
    except StreamError as error:
        text += f", and does not match its description ({error.detail()})"
        return _Place(text, record.offset, path)
    if wanted is None:
        newer = [] if tree is None else list(newer_subsections(tree))
        parts = [text, *(f"has {one.name}, which is known to QEMU {since} and not to {without}"
                         for one, without, since in newer)]  # fmt: skip
        return _Place(", ".join(parts), record.offset, path)
    for inner, value in tree.walk() if tree is not None else ():
        if inner == wanted or inner.endswith(f".{wanted}"):
            about = f"{text}; {inner} at {value.offset:#x} is {_shown(value)}"
            return _Place(about, record.offset, f"{path}.{inner}")
    return _Place(text, record.offset, path)


def _shown(value: Value) -> str:
    if value.children or value.value is None:
        return f"{value.size} bytes"
    if isinstance(value.value, bytes):
        return value.value.hex(" ")[:_SHOWN]
    return f"{value.value}"


def _block(case: _Case, name: str) -> _Place:
    blocks = {block.name: block for block in case.machine.stream.blocks}
    known = blocks.get(name)
    if known is None:
        return _Place(f"the stream has no block '{name}'")
    about = f"block '{name}' has {known.used_length:#x} bytes in the stream"
    local = case.parts.get("local")
    if local is not None:
        others = {int(local, 0)} - {known.used_length}
        about += "".join(f", {other:#x} in this QEMU" for other in others)
    if name.endswith(".rom"):
        about += " (the device's option ROM: give it the same file, romfile=, or romsize=)"
    return _Place(about)


def _machine(case: _Case) -> Iterator[_Place]:
    yield _Place(f"the stream was saved by machine type '{case.machine.name}'")


def _capability(case: _Case) -> Iterator[_Place]:
    name = case.parts.get("capability") or case.parts.get("unknown")
    configuration = case.machine.stream.configuration
    if name is None or configuration is None:
        yield _Place("")
        return
    state = "has" if name in configuration.capabilities else "does not have"
    yield _Place(f"the stream {state} the capability {name}", 8, "configuration")


def _configuration(case: _Case) -> Iterator[_Place]:
    first = next((record for record in case.machine.stream.records), None)
    if case.machine.stream.configuration is not None:
        yield _Place("the stream has a configuration record: QEMU did not read it from its start")
    else:
        what = "" if first is None else f"; after the header comes '{first.kind.value}'"
        yield _Place(f"the stream has no configuration record{what}", 8)


def _run_state(case: _Case) -> Iterator[_Place]:
    for record in _records(case.machine, "globalstate", None):
        tree = case.tree(record)
        state = None if tree is None else tree.child("runstate")
        if state is not None and isinstance(state.value, bytes):
            name = state.value.split(b"\0")[0].decode("utf-8", "backslashreplace")
            path = f"{case.path(record)}.runstate"
            yield _Place(f"the run state in {path} is '{name}'", state.offset, path)
            return
    yield _Place("")


def _footer(case: _Case) -> Iterator[_Place]:
    name = case.parts.get("name")
    record = case.failed
    if name is not None:
        record = next(_records(case.machine, name, None), None)
        if record is None:
            yield _Place(f"the stream has no section '{name}'")
            return
    if record is None:
        there = "has" if case.machine.stream.footers else "has no"
        yield _Place(f"the stream {there} footers")
        return
    place = _section(case, record)
    tree = case.tree(record)
    parts = [] if tree is None else optional_parts(tree)
    if parts:
        place = _Place(
            f"{place.about}; parts that depend on a property of the device: {', '.join(parts)}",
            place.offset,
            place.path,
        )
    yield place


def _subsection(case: _Case) -> Iterator[_Place]:
    wanted = case.parts.get("subsection") or ""
    for record in case.machine.stream.sections():
        tree = case.tree(record) if case.failed in (None, record) else None
        for inner, value in tree.walk() if tree is not None else ():
            if value.type == "subsection" and value.name == wanted:
                path = f"{case.path(record)}.{inner}"
                yield _Place(f"{path} is {value.size} bytes at {value.offset:#x}",
                             value.offset, path)  # fmt: skip
                return
    yield _Place(f"the stream has no subsection '{wanted}'")


def _pci_config(case: _Case) -> Iterator[_Place]:
    index = case.parts.get("index")
    at = None if index is None else int(index, 0)
    found = list(_config_spaces(case, at))
    if not found or len(found) > _FEW:
        number = "" if index is None else f" (byte {index})"
        yield _Place(f"the PCI configuration space differs{number}")
    for where, start, data in found:
        if at is None:
            yield _Place(f"{where} is {len(data)} bytes at {start:#x}", start, where)
        elif at >= len(data):
            yield _Place(f"{where} has only {len(data)} bytes", start, where)
        else:
            name = pci.register_at(data, at)
            about = (
                f"byte {index} of {where} ({name}) is {data[at]:#04x} in the stream, "
                f"{int(case.parts['device'] or '0', 16):#04x} in this QEMU's device"
            )
            yield _Place(f"{about}{_hint(name)}", start + at, where)


def _config_spaces(case: _Case, at: int | None) -> Iterator[tuple[str, int, bytes]]:
    # Of the section that failed; where no message names one, those with the byte that QEMU read.
    for record in [case.failed] if case.failed else case.machine.stream.sections():
        tree = case.tree(record)
        space = None if tree is None else _config_space(tree)
        if space is None:
            continue
        path, start, data = space
        if case.failed is None:
            read = int(case.parts.get("read") or "0", 16)
            if at is None or at >= len(data) or data[at] != read:
                continue
        yield f"{case.path(record)}.{path}", start, data


def _hint(register: str) -> str:
    # What decides a register of a PCI device.
    for start, words in _PCI_HINTS.items():
        if register.startswith(start):
            return f": {words}"
    return ""


_PCI_HINTS = {
    "vendor_id": "another device",
    "device_id": "another device, or another disable-modern and disable-legacy",
    "subsystem": "another device, or another machine type",
    "revision": "another disable-modern and disable-legacy, or another machine type",
    "class": "another class= or machine type",
    "capabilities": "one side has a capability that the other lacks (vectors= for MSI-X, "
    "disable-modern, a PCI or PCI Express bus)",
    "msix": "another number of vectors (vectors=)",
    "msi": "msi= differs",
    "interrupt_pin": "an interrupt on one side only (vectors=, a root port)",
    "bar": "another kind or size of region (disable-modern, modern-pio-notify, a ROM)",
    "rom_address": "an option ROM of another size (romfile=, rombar=)",
    "virtio_": "the regions of the modern interface are elsewhere: another disable-legacy, "
    "modern-pio-notify, page-per-vq or machine type",
    "express": "another speed or width (x-speed=, x-width=), or another machine type",
    "aer": "aer= differs",
    "header_type": "multifunction= differs",
}


def _config_space(tree: Value) -> tuple[str, int, bytes] | None:
    # Path, offset and bytes: inside a virtio device, or the field of another PCI device.
    device = device_in(tree)
    if device is not None and device.pci is not None:
        whole, space = device.tree.value, device.pci
        assert isinstance(whole, bytes)
        at = space.offset - device.tree.offset
        return f"{device.tree.name}.pci.config", space.offset, whole[at : at + space.size]
    for path, value in tree.walk():
        if value.type == "pci config" and isinstance(value.value, bytes):
            return path, value.offset, value.value
    return None


def _virtio(case: _Case) -> Iterator[tuple[str, VirtioDevice]]:
    # The device that failed, with its path; all where no message names one.
    for record in [case.failed] if case.failed else case.machine.stream.sections():
        tree = case.tree(record) if (record.name or "").rpartition("/")[2][:1] == "v" else None
        device = None if tree is None else device_in(tree)
        if device is not None:
            yield f"{case.path(record)}.{device.tree.name}", device


def _features(case: _Case) -> Iterator[_Place]:
    given, allowed = (case.parts.get(name) for name in ("features", "allowed"))
    sent = int(given, 16) if given else None
    for path, device in _virtio(case):
        if case.failed is None and device.features != sent:
            continue
        features = device.features if sent is None else sent
        about = f"the driver of {path} has accepted features {features:#x}"
        if allowed:
            lacking = feature_bits(device.type).names(features & ~int(allowed, 16))
            about += f", of which this QEMU's device does not offer {', '.join(lacking)}"
        yield _Place(about, device.tree.offset, path)
        return
    yield _Place("")


_NO_QUEUE = "; this QEMU's device has no such queue"


def _queue(case: _Case) -> Iterator[_Place]:
    number, size = case.parts.get("queue"), case.parts.get("size")
    found = list(_virtio(case))
    if case.failed is None:
        # Those of which the message may be.
        queue = (int(number or "0"), int(size or "0", 0))
        found = [one for one in found if queue in {(own.index, own.size) for own in one[1].queues}]
    if not found or len(found) > _FEW:
        yield _Place("")
        return
    for path, device in found:
        yield _queue_of(case, f"{path}.queues", device)


def _queue_of(case: _Case, path: str, device: VirtioDevice) -> _Place:
    number, most = case.parts.get("queue"), case.parts.get("most")
    queues = [queue for queue in device.queues if number is None or queue.index == int(number)]
    if not queues:
        return _Place(f"{path} has {len(device.queues)} queues", device.tree.offset, path)
    if number is None:
        sizes = ", ".join(f"{queue.size}" for queue in queues)
        return _Place(f"{path}: {len(queues)} queues of {sizes} entries", device.tree.offset, path)
    queue = queues[0]
    value = device.tree.resolve(f"queues[{queue.index}]")
    limit = "" if most is None else f"; this QEMU's device has at most {most}"
    return _Place(
        f"{path}[{queue.index}] has {queue.size} entries, descriptors at {queue.desc:#x}, "
        f"available ring at {queue.avail:#x}, used ring at {queue.used:#x}, next index "
        f"{queue.last_avail_idx}{limit if most != '0' else _NO_QUEUE}",
        device.tree.offset if value is None else value.offset,
        f"{path}[{queue.index}]",
    )


def _msr(case: _Case) -> Iterator[_Place]:
    number, value = (int(case.parts[name] or "0", 0) for name in ("msr", "value"))
    name = _MSRS.get(number)
    for vcpu in case.machine.vcpus:
        register = vcpu.registers.get(name) if name is not None else None
        if register is not None and register.value == value:
            path = f"vcpu{vcpu.index}.{name}"
            yield _Place(f"{path} is {value:#x} (MSR {number:#x})", register.offset, path)
            return
    yield _Place(f"MSR {number:#x} is {value:#x} in the stream")


def _tsc(case: _Case) -> Iterator[_Place]:
    for record in _records(case.machine, "cpu", None):
        tree = case.tree(record)
        for inner, value in tree.walk() if tree is not None else ():
            if inner.endswith("tsc_khz") and isinstance(value.value, int):
                path = f"{case.path(record)}.{inner}"
                yield _Place(f"{path} is {value.value} kHz", value.offset, path)
                return
    yield _Place("the stream does not have the frequency of the TSC")


def _put(case: _Case) -> Iterator[_Place]:
    what = case.parts.get("put")
    first = next(iter(case.machine.vcpus), None)
    if what is None or first is None:
        yield _Place("")
    else:
        yield _Place(f"KVM refuses {what} of a vCPU (vcpu{first.index} is the first)",
                     first.section.offset, f"vcpu{first.index}")  # fmt: skip


def _in_section(case: _Case) -> Iterator[_Place]:
    # A message about a value that it does not name.
    if case.failed is None:
        yield _Place("")
    else:
        yield _section(case, case.failed)


_FINDERS: Mapping[str, Callable[[_Case], Iterator[_Place]]] = {
    "machine": _machine,
    "capability": _capability,
    "configuration": _configuration,
    "footer": _footer,
    "subsection": _subsection,
    "pci-config": _pci_config,
    "virtio-features": _features,
    "virtio-queue": _queue,
    "virtio-rings": _queue,
    "virtio-net": _in_section,
    "msr": _msr,
    "tsc": _tsc,
    "put-registers": _put,
    "equal": _in_section,
    "list": _in_section,
    "irq": _in_section,
    "run-state": _run_state,
}
