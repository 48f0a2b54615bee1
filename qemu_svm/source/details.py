"""Metadata that a container has about the stream inside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LibvirtDetails:
    """Header of a libvirt save image.

    :param version: of the header, 1 or 2.
    :param byte_order: ``little`` or ``big``: of the host that saved.
    :param finished: the save completed (``LibvirtQemudSave``, not ``…Part``).
    :param was_running: the guest resumes after a restore.
    :param format: compression of the stream according to the header.
    :param xml: the domain's XML, as text.
    :param cookie: libvirt's second XML, as text; None if there is none.
    :param notes: oddities of the header, as text.
    :param name: of the domain, from its XML; None if that cannot be read.
    :param uuid: the same.
    """

    version: int
    byte_order: str
    finished: bool
    was_running: bool
    format: str
    xml: str
    cookie: str | None
    notes: tuple[str, ...] = ()
    name: str | None = None
    uuid: str | None = None


@dataclass(frozen=True, slots=True)
class SnapshotDetails:
    """An internal snapshot of a qcow2 image.

    :param date: ISO 8601, UTC.
    :param vm_clock_ns: how long the guest had run (nanoseconds).
    :param vm_state_size: bytes of the stream; 0 for a snapshot of disks only.
    :param disk_size: virtual size of the disk at that time (bytes).
    :param vm_state_offset: where the stream is, past the end of the virtual disk.
    """

    id: str
    name: str
    date: str
    vm_clock_ns: int
    vm_state_size: int
    disk_size: int
    vm_state_offset: int
    image_version: int


Details = LibvirtDetails | SnapshotDetails
