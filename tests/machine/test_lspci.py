"""PCI configuration space as lspci shows it in the guest, for every device of a machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from qemu_svm.machine import read_machine
from qemu_svm.machine.pci import COMMAND, STATUS, config_space
from qemu_svm.machine.sections import section_values
from qemu_svm.source import open_source
from qemu_svm.stream import Value, read_stream
from tests.conftest import STREAMS

NAME = STREAMS / "virtio" / "qemu7.2-lspci"
FLAGS = {
    "I/O": "IO", "Mem": "MEMORY", "BusMaster": "MASTER", "SpecCycle": "SPECIAL",
    "MemWINV": "INVALIDATE", "VGASnoop": "VGA_PALETTE", "ParErr": "PARITY", "Stepping": "WAIT",
    "SERR": "SERR", "FastB2B": "FAST_BACK", "DisINTx": "INTX_DISABLE",
}  # fmt: skip
STATES = {
    "Cap": "CAP_LIST", "66MHz": "66MHZ", "UDF": "UDF", "FastB2B": "FAST_BACK", "ParErr": "PARITY",
    ">TAbort": "SIG_TARGET_ABORT", "<TAbort": "REC_TARGET_ABORT", "<MAbort": "REC_MASTER_ABORT",
    ">SERR": "SIG_SYSTEM_ERROR", "<PERR": "DETECTED_PARITY",
}  # fmt: skip
CAPABILITIES = {
    "MSI": "msi", "MSI-X": "msix", "Express": "express", "Power Management": "pm",
    "Slot ID": "slot_id", "Hot-plug capable": "hot_plug", "Subsystem": "subsystem",
    "SATA HBA": "sata", "Advanced Error Reporting": "aer", "Access Control Services": "acs",
    "VirtIO: CommonCfg": "virtio_common", "VirtIO: Notify": "virtio_notify",
    "VirtIO: ISR": "virtio_isr", "VirtIO: DeviceCfg": "virtio_device",
    "VirtIO: <unknown>": "virtio_pci",  # this lspci does not know number 5
}  # fmt: skip

Shown = dict[str, object]


def spaces() -> Iterator[Value]:
    """The configuration space of each PCI device of the stream."""
    with open_source(f"{NAME}.mig.zst") as source:
        machine = read_machine(read_stream(source))
        for record in machine.stream.sections():
            if not (record.name or "").startswith("0000:"):
                continue
            values = section_values(machine, record)
            assert values is not None
            found = [one for _, one in values.walk() if one.size in (256, 4096)]
            (space,) = [one for one in found if one.name in ("config", "config[0]", "config[1]")]
            if isinstance(space.value, bytes):
                children = config_space(space.value, space.offset)
                space = Value("config", "", space.offset, space.size, None, children)
            yield space


def ours(space: Value) -> Shown:
    """What lspci would show of it."""

    def number(path: str) -> int:
        found = space.resolve(path)
        assert found is not None, path
        return int(found)

    bridge = number("header_type") & 0x7F == 1
    bar = space.child("bar")
    assert bar is not None
    assert isinstance(bar.value, tuple)
    found: Shown = {
        "class": f"{number('class'):02x}{number('subclass'):02x}",
        "id": f"{number('vendor_id'):04x}:{number('device_id'):04x}",
        "revision": number("revision"),
        "interface": number("prog_if"),
        "command": set(COMMAND.names(number("command"))) & set(FLAGS.values()),
        "status": set(STATUS.names(number("status"))) & set(STATES.values()),
        "pin": number("interrupt_pin"),
        "regions": dict(regions(bar.value)),
    }
    subsystem = space.child("subsystem") if bridge else None
    if not bridge or subsystem is not None:
        vendor, device = ("subsystem_vendor_id", "subsystem_id") if not bridge else (
            "subsystem.vendor_id", "subsystem.device_id")  # fmt: skip
        found["subsystem"] = f"{number(vendor):04x}:{number(device):04x}"
    if bridge:
        found["bus"] = tuple(
            number(f"{name}_bus") for name in ("primary", "secondary", "subordinate")
        )
    places = {}
    for one in space.children:
        if one.type.startswith("PCI capability at "):
            place = int(one.type.removeprefix("PCI capability at "), 16)
            assert one.offset - space.offset == place
            places[place] = one.name.partition("[")[0]
            if one.name == "msix":
                control = number("msix.control")
                found["msix"] = bool(control >> 15), (control & 0x7FF) + 1
                found["vectors"] = *split(number("msix.table")), *split(number("msix.pba"))
            elif one.name.startswith("virtio_"):
                found[one.name] = tuple(number(f"{one.name}.{part}") for part in
                                        ("bar", "offset", "size"))  # fmt: skip
    found["capabilities"] = places
    return found


def split(word: int) -> tuple[int, int]:
    """The number of the BAR, and the offset."""
    return word & 7, word & ~7


def regions(bars: tuple[int, ...]) -> Iterator[tuple[int, tuple[str, int]]]:
    """Kind and address of each BAR that is set."""
    wide = False
    for at, low in enumerate(bars):
        if wide:
            wide = False
        elif low & 1:
            yield at, ("I/O", low & ~3)
        elif low & ~0xF:
            wide = low & 4 != 0
            kind = f"{64 if wide else 32}-bit, {'' if low & 8 else 'non-'}prefetchable"
            yield at, (kind, (bars[at + 1] << 32 if wide else 0) | low & ~0xF)


def theirs(lines: list[str]) -> Iterator[Shown]:
    """The same, of what lspci printed."""
    found: Shown = {}
    place: dict[int, str] = {}
    name = ""
    for line in lines:
        if head := re.match(r"\S+ (\w{4}): (\w{4}:\w{4})(?: \(rev (\w+)\))?(?: \(prog-if (\w+))?",
                            line):  # fmt: skip
            if found:
                yield found
            place = {}
            found = {
                "class": head[1], "id": head[2], "revision": int(head[3] or "0", 16),
                "interface": int(head[4] or "0", 16), "pin": 0, "regions": {},
                "capabilities": place, "status": set(), "command": set(),
            }  # fmt: skip
            continue
        word, _, rest = line.strip().partition(": ")
        if line.startswith("\tSubsystem"):
            found["subsystem"] = rest
        elif line.startswith(("\tControl", "\tStatus")):
            names, key = (FLAGS, "command") if word == "Control" else (STATES, "status")
            on = {one[:-1] for one in rest.split() if one.endswith("+")}
            found[key] = {names[one] for one in on & set(names)}
        elif line.startswith("\tInterrupt"):
            found["pin"] = " ABCD".index(rest.split()[1])
        elif region := re.match(
            r"\tRegion (\d): (?:I/O ports|Memory) at (\w+)(?: \((.*?)\))?", line
        ):
            assert isinstance(found["regions"], dict)
            found["regions"][int(region[1])] = region[3] or "I/O", int(region[2], 16)
        elif line.startswith("\tBus:"):
            found["bus"] = tuple(int(one, 16) for one in re.findall(r"(?:ary|nate)=(\w+)", line))
        elif capability := re.match(r"\tCapabilities: \[(\w+)(?: v\d)?\] (.*)", line):
            text = capability[2].removeprefix("Vendor Specific Information: ")
            name = next(CAPABILITIES[one] for one in sorted(CAPABILITIES, key=len, reverse=True)
                        if text.startswith(one))  # fmt: skip
            place[int(capability[1], 16)] = name
            if state := re.match(r"MSI-X: Enable(.) Count=(\d+)", text):
                found["msix"] = state[1] == "+", int(state[2])
        elif words := re.match(r"BAR=(\d+) offset=(\w+) size=(\w+)", line.strip()):
            found[name] = tuple(int(one, 16) for one in words.groups())
        elif words := re.match(r"(Vector table|PBA): BAR=(\d) offset=(\w+)", line.strip()):
            before = found.get("vectors", ())
            assert isinstance(before, tuple)
            found["vectors"] = *before, int(words[2]), int(words[3], 16)
    yield found


def test_every_device_is_as_lspci_shows_it() -> None:
    lines = json.loads((NAME.parent / f"{NAME.name}.truth.json").read_text())["lspci"]
    shown = {str(one["id"]): one for one in theirs(lines)}
    assert len(shown) == 13
    for space in spaces():
        mine = ours(space)
        assert mine == shown.pop(str(mine["id"]))
    assert shown == {}
