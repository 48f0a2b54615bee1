"""Streams made in the tests, with the package's own declarations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qemu_svm.source import BytesSource
from qemu_svm.stream import structs
from qemu_svm.stream.constants import RecordType

PAGE = 4096


class Counting(BytesSource):
    """A stream that counts what is read of it: ``calls`` and ``bytes``."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.calls = self.bytes = 0

    def read_at(self, offset: int, size: int) -> bytes:
        found = super().read_at(offset, size)
        self.calls += 1
        self.bytes += len(found)
        return found


def counted(name: str) -> bytes:
    return structs.CountedString.build(name.encode())


def header(version: int = 3) -> bytes:
    return structs.FileHeader.build({"version": version})


def configuration(machine: str = "pc-test", *subsections: bytes) -> bytes:
    start = bytes((RecordType.CONFIGURATION,))
    body = structs.ConfigurationHeader.build({"machine": machine.encode()})
    return start + body + b"".join(subsections)


def subsection(name: str, version: int, body: bytes) -> bytes:
    head = structs.Subsection.build({"name": name.encode(), "version": version})
    return bytes((RecordType.SUBSECTION,)) + head + body


def footer(section_id: int) -> bytes:
    return bytes((RecordType.FOOTER,)) + structs.SectionReference.build({"section_id": section_id})


def named(
    kind: RecordType, section_id: int, name: str, instance: int, version: int, payload: bytes,
    *, footers: bool = True,
) -> bytes:  # fmt: skip
    head = structs.SectionHeader.build(
        {
            "section_id": section_id,
            "name": name.encode(),
            "instance_id": instance,
            "version_id": version,
        }
    )
    return bytes((kind,)) + head + payload + (footer(section_id) if footers else b"")


def referring(kind: RecordType, section_id: int, payload: bytes, *, footers: bool = True) -> bytes:
    head = structs.SectionReference.build({"section_id": section_id})
    return bytes((kind,)) + head + payload + (footer(section_id) if footers else b"")


def command(number: int, payload: bytes = b"") -> bytes:
    return bytes((RecordType.COMMAND,)) + structs.CommandRecord.build(
        {"command": number, "payload": payload}
    )


def word(value: int) -> bytes:
    return value.to_bytes(8, "big")


EOS = word(0x10)


def block_list(blocks: dict[str, int]) -> bytes:
    entries = b"".join(
        structs.RamBlock.build({"name": name.encode(), "used_length": size})
        for name, size in blocks.items()
    )
    return word(sum(blocks.values()) | 0x04) + entries


def page(offset: int, data: bytes, block: str | None = None) -> bytes:
    flags = 0x08 | (0 if block else 0x20)
    return word(offset | flags) + (counted(block) if block else b"") + data.ljust(PAGE, b"\0")


def zero(offset: int, block: str | None = None) -> bytes:
    flags = 0x02 | (0 if block else 0x20)
    return word(offset | flags) + (counted(block) if block else b"") + b"\0"


@dataclass
class Section:
    """A device section and its entry in the description."""

    name: str
    payload: bytes
    fields: list[dict[str, Any]]
    subsections: list[dict[str, Any]] = field(default_factory=list)
    instance: int = 0
    version: int = 1

    def entry(self) -> dict[str, Any]:
        result: dict[str, Any] = {
            "name": self.name,
            "instance_id": self.instance,
            "vmsd_name": self.name,
            "version": self.version,
            "fields": self.fields,
        }
        if self.subsections:
            result["subsections"] = self.subsections
        return result


def description(sections: Sequence[Section]) -> bytes:
    document = {"page_size": PAGE, "devices": [section.entry() for section in sections]}
    text = json.dumps(document).encode()
    return (
        bytes((RecordType.VMDESCRIPTION,))
        + structs.DescriptionHeader.build({"length": len(text)})
        + text
    )


def stream(
    sections: Sequence[Section] = (),
    ram_parts: Sequence[bytes] = (),
    blocks: dict[str, int] | None = None,
    *,
    footers: bool = True,
    describe: bool = True,
    config: bytes | None = None,
) -> bytes:
    """A precopy stream: RAM as section 2, then the device sections."""
    blocks = {"pc.ram": 16 * PAGE} if blocks is None else blocks
    out = [header(), configuration() if config is None else config]
    start = block_list(blocks) + EOS
    out.append(named(RecordType.START, 2, "ram", 0, 4, start, footers=footers))
    out += [referring(RecordType.PART, 2, part + EOS, footers=footers) for part in ram_parts]
    out.append(referring(RecordType.END, 2, EOS, footers=footers))
    for number, section in enumerate(sections, 10):
        out.append(
            named(
                RecordType.FULL,
                number,
                section.name,
                section.instance,
                section.version,
                section.payload,
                footers=footers,
            )
        )
    out.append(bytes((RecordType.EOF,)))
    if describe:
        out.append(description(sections))
    return b"".join(out)
