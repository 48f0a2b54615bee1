"""Logs written by hand, as the plugin writes them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from qemu_svm.nested import layout
from qemu_svm.source.plain import BytesSource
from qemu_svm.vmruns import structs
from qemu_svm.vmruns.structs import Flag, RecordKind

PAGE = 0x1000


def sealed(data: bytes) -> bytes:
    return data + structs.CHECKSUM.build(zlib.crc32(data))


def header(api: int = 7, vcpus: int = 1, pages: int = 1024, **more: int) -> bytes:
    values = {"magic": structs.MAGIC, "version": 1, "size": 32, "api": api, "vcpus": vcpus}
    values |= {"pages": pages, "page_size": PAGE, "reserved": bytes(4), "crc": 0} | more
    return sealed(structs.HEADER.build(values)[:-4])


def runs_of(old: bytes | None, new: bytes) -> list[tuple[int, bytes]]:
    if old is None:
        return [(0, new)]
    words = [at for at in range(0, PAGE, 8) if old[at : at + 8] != new[at : at + 8]]
    return [(at, new[at : at + 8]) for at in words]


@dataclass
class Writer:
    """Builds a log; remembers pages as the plugin does."""

    pages: int = 1024
    data: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=list)
    number: int = 0
    known: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data += header(pages=self.pages)

    def add(
        self,
        kind: int,
        *,
        flags: int = 0,
        vcpu: int = 0,
        rip: int = 0,
        rax: int = 0,
        time: int = 0,
        address: int = 0,
        entry: int = 0,
        page: bytes | None = None,
    ) -> int:
        self.number += 1
        body = b""
        if page is not None:
            flags |= Flag.PAGE
            old = self.known.get(address)
            if old is not None:
                flags |= Flag.DELTA
            elif len(self.known) == self.pages:
                self.known.clear()
            self.known[address] = page
            runs = runs_of(old, page)
            body = structs.PAGE.build({"address": address, "entry": entry, "runs": len(runs)})
            for offset, data in runs:
                body += structs.RUN.build({"offset": offset, "length": len(data)}) + data
        head = {"size": structs.RECORD.sizeof() + len(body) + 4, "kind": kind, "flags": flags}
        head |= {"vcpu": vcpu, "number": self.number, "time": time, "rip": rip, "rax": rax}
        self.data += sealed(structs.RECORD.build(head) + body)
        self.ends.append(len(self.data))
        return self.number

    def run(
        self,
        address: int,
        entered: bytes,
        left: bytes,
        *,
        vmcb12: bytes | None = None,
        vmrun: bool = False,
        vcpu: int = 0,
    ) -> int:
        """One VMRUN of L0 with its #VMEXIT."""
        number = self.add(RecordKind.VMRUN, vcpu=vcpu, rax=address, address=address, page=entered)
        if vmrun or vmcb12 is not None:
            self.add(RecordKind.VMRUN, vcpu=vcpu, flags=Flag.IN_GUEST, rax=0x108000)
            more = {} if vmcb12 is None else {"page": vmcb12, "address": 0xABC000, "entry": number}
            flags = Flag.IN_GUEST | (Flag.UNREADABLE if vmcb12 is None else 0)
            self.add(RecordKind.VMCB12, vcpu=vcpu, flags=flags, rax=0x108000, **more)  # type: ignore[arg-type]
        self.add(RecordKind.EXIT, vcpu=vcpu, rax=address, address=address, entry=number, page=left)
        return number

    def source(self) -> BytesSource:
        return BytesSource(bytes(self.data))


def vmcb(exit_code: int = 0, **save: int) -> bytes:
    """A VMCB page with some fields of its save area set."""
    page = bytearray(PAGE)
    page[0x70:0x78] = exit_code.to_bytes(8, "little")
    for name, value in save.items():
        member = layout.SAVE.member(name)
        at = layout.SAVE_OFFSET + member.offset
        page[at : at + member.size] = value.to_bytes(member.size, "little")
    return bytes(page)
