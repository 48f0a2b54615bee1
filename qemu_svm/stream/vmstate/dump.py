"""The output of ``qemu-system-x86_64 -M TYPE -dump-vmstate FILE``, as a typed tree.

The dump lists every device class of the binary, whatever the machine type, with the
description that QEMU would load its sections by.  It has less information than the
description in a stream: sizes are those in QEMU's memory, there are no types, and it
does not show whether a conditional field is present.  CPUs, RAM and sections that a
device registers itself (:data:`UNLISTED`) are missing.

Source: QEMU ``migration/savevm.c`` (``dump_vmstate_json_to_file``), 5.2 to 10.2.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qemu_svm.errors import LimitExceeded, Malformed
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.stream.vmstate.description import DEEPEST, encodable

MACHINE = "vmschkmachine"
"""The key that distinguishes a dump from other JSON."""

UNLISTED = frozenset(
    {"cpu", "cpu_common", "timer", "globalstate", "apic", "PCIBUS", "i2c_bus", "acpi_build"}
    | {"ide", "isa-ide", "eeprom", "audio", "tpm-emulator", "ipmi-bmc-sim", "ipmi-interface"}
    | {"virtio-mem-device-early", "ps2kbd", "ps2mouse", "adb_bus", "ads7846", "arm_timer"}
    | {"icp/server", "iommufd", "ipmi-bmc-extern", "ipmi-interface-isa-bt", "lasips2"}
    | {"mss-timer-block", "onenand", "or1k_timer", "s390_css", "spapr", "spapr_cpu", "spapr_drc"}
    | {"spapr_drc/physical", "spapr_iommu", "spapr_nvdimm_states", "stellaris_gamepad"}
    | {"stellaris_sys", "tsc2005", "tsc2102", "tsc2301", "vfio-container", "virt_acpi_build"}
    | {"aer915", "zipit-lcd"}
    | {f"pxa2xx_{part}" for part in ("cm", "i2s", "keypad", "lcdc", "mm", "pm")}
    | {f"i825{model}" for model in ("50", "51", "57a", "57b", "57c", "58a", "58b", "59a", "59b")}
    | {f"i825{model}" for model in ("59c", "59er", "62", "01")}
)
"""Descriptions that are in no dump: QEMU registers them without a device class, or the machine
type z2 registers the class when it is made, after the dump."""


@dataclass(frozen=True, slots=True)
class DumpField:
    """A field that QEMU would load.

    :param name: as in the description of a stream: repeated names are numbered.
    :param since: first version of the description that has the field.
    :param conditional: the field has a test function; it may be absent.
    :param size: bytes of one element in QEMU's memory.
    :param count: elements of an array of fixed length, if known.
    """

    name: str
    since: int
    conditional: bool
    size: int
    count: int | None = None
    layout: DumpLayout | None = None


@dataclass(frozen=True, slots=True)
class DumpLayout:
    """A description: versions, fields in wire order, subsections."""

    name: str
    version: int
    minimum: int
    fields: tuple[DumpField, ...]
    subsections: tuple[DumpLayout, ...] = ()


@dataclass(frozen=True, slots=True)
class Dump:
    """A whole dump.

    :param machine: machine type that the dump was made for; None if unknown.
    :param layouts: by the description's name, as sections are matched.  Classes
        may share a name with different layouts (``ne2000`` on ISA and PCI).
    """

    machine: str | None
    layouts: dict[str, tuple[DumpLayout, ...]]

    def inside(self, name: str) -> Iterator[DumpLayout]:
        """Yield layouts of that name that are nested in those of devices.

        A device may register a part of itself as a separate section: ``vmware-svga``
        registers ``vga``, which is in the dump as a part of other cards.
        """
        waiting = [layout for same in self.layouts.values() for layout in same]
        while waiting:
            layout = waiting.pop()
            parts = [field.layout for field in layout.fields if field.layout is not None]
            yield from (part for part in parts if part.name == name)
            waiting += parts

    def of_section(self, name: str) -> tuple[DumpLayout, ...]:
        """Return the layouts that a section of that name (``PATH/DESCRIPTION``) may have."""
        own = name.rpartition("/")[2]
        return () if own in UNLISTED else self.layouts.get(own, ())


def parse_dump(text: bytes, limits: Limits = DEFAULT) -> Dump:
    """Read a dump.

    :raises Malformed: not JSON, or not a dump.
    :raises LimitExceeded: longer than ``limits.description_bytes``, or nested
        deeper than ``limits.description_depth``.
    """
    if len(text) > limits.description_bytes:
        raise LimitExceeded(
            "the vmstate dump is too long",
            offset=limits.description_bytes,
            expected=f"at most {limits.description_bytes} bytes",
        )
    try:
        document = json.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise LimitExceeded("the vmstate dump is nested too deeply", offset=0) from error
    except ValueError as error:
        where = error.pos if isinstance(error, json.JSONDecodeError) else 0
        raise Malformed(
            "the vmstate dump is not JSON",
            offset=where,
            found=str(error),
            hint="make it with: qemu-system-x86_64 -M TYPE -dump-vmstate FILE",
        ) from error
    return _dump(document, min(limits.description_depth, DEEPEST))


def _dump(document: Any, depth: int) -> Dump:
    classes = _object(document, "top level")
    if MACHINE not in classes:
        raise Malformed(
            "the JSON is not a vmstate dump",
            offset=0,
            expected=f"a key '{MACHINE}'",
            hint="make it with: qemu-system-x86_64 -M TYPE -dump-vmstate FILE",
        )
    machine = _object(classes[MACHINE], MACHINE).get("Name")
    layouts: dict[str, list[DumpLayout]] = {}
    for key, item in classes.items():
        name = _text(key, "top level")
        if name != MACHINE and "Description" in _object(item, name):
            layout = _layout(item["Description"], name, depth)
            same = layouts.setdefault(layout.name, [])
            if layout not in same:
                same.append(layout)
    found = {name: tuple(same) for name, same in layouts.items()}
    return Dump(encodable(machine) if isinstance(machine, str) else None, found)


def _layout(item: Any, path: str, depth: int) -> DumpLayout:
    if depth <= 0:
        raise LimitExceeded("the vmstate dump is nested too deeply", offset=0, field=path)
    values = _object(item, path)
    items = [_object(one, path) for one in _array(values.get("Fields", []), path)]
    names = [_text(one.get("field"), f"{path}.Fields") for one in items]
    often, seen = Counter(names), Counter[str]()
    fields = []
    for name, one in zip(names, items, strict=True):
        label = f"{name}[{seen[name]}]" if often[name] > 1 else name
        seen[name] += 1
        where = f"{path}.{label}"
        nested, count = one.get("Description"), one.get("num")
        fields.append(
            DumpField(
                name=label,
                since=_number(one.get("version_id", 0), where),
                conditional=bool(one.get("field_exists")),
                size=_number(one.get("size", 0), where),
                count=None if count is None else _number(count, where),
                layout=None if nested is None else _layout(nested, where, depth - 1),
            )
        )
    return DumpLayout(
        name=_text(values.get("name"), path),
        version=_number(values.get("version_id", 0), path),
        minimum=_number(values.get("minimum_version_id", 0), path),
        fields=tuple(fields),
        subsections=tuple(
            _layout(one, f"{path}.Subsections", depth - 1)
            for one in _array(values.get("Subsections", []), path)
        ),
    )


def _fail(what: str, path: str) -> Malformed:
    return Malformed(f"the vmstate dump has {what}", offset=0, field=path)


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _fail("something that is not an object", path)
    return value


def _array(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise _fail("something that is not a list", path)
    return value


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _fail("something that is not a name", path)
    return value if value.isascii() else encodable(value)


def _number(value: Any, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 40:
        raise _fail("something that is not a plausible number", path)
    return value
