"""The header of libvirt's save images (``virsh save``, managed save).

92 bytes in the byte order of the saving host, then the domain's XML and
libvirt's cookie, then the stream, compressed or not.  Of the XML, name and UUID of the
domain are read.

Source: libvirt ``src/qemu/qemu_saveimage.c``, ``.h`` (11.3.0): two magics,
version at most 2, formats; a version above 2 means the other byte order.
Checked on images that libvirt 9.0.0 wrote.
"""

from __future__ import annotations

import os
from typing import Any

from qemu_svm.errors import SourceError
from qemu_svm.limits import Limits
from qemu_svm.source.details import LibvirtDetails
from qemu_svm.source.feed import Feed
from qemu_svm.source.structs import SAVE_IMAGES

HEADER_SIZE = 92
FINISHED = b"LibvirtQemudSave"
UNFINISHED = b"LibvirtQemudPart"
VERSION = 2
FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")


def managed_save(name: str) -> str:
    """Return the path of the image that ``virsh managedsave`` made of a domain.

    Source: libvirt ``src/qemu/qemu_conf.c`` (11.3.0), ``saveDir`` of the system's and of the
    user's libvirt.

    :raises SourceError: there is none.
    """
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    folders = ("/var/lib/libvirt/qemu/save", os.path.join(config, "libvirt/qemu/save"))
    if name and "/" not in name:
        for folder in folders:
            path = os.path.join(folder, f"{name}.save")
            if os.path.lexists(path):
                return path
    raise SourceError(
        f"no managed save of a domain '{name}' in {' or '.join(folders)}",
        hint=f"virsh managedsave '{name}' makes one; an image of virsh save is at its own path",
    )


def read_header(feed: Feed, limits: Limits) -> LibvirtDetails:
    """Read the header and move ``feed`` to the stream.

    :raises SourceError: the header is truncated or invalid.
    """
    path = feed.path
    data = feed.take(HEADER_SIZE)
    if len(data) < HEADER_SIZE:
        raise SourceError(
            f"'{path}' ends inside the libvirt header: {HEADER_SIZE} bytes expected, "
            f"found {len(data)}"
        )
    order, header = _header(data, path)
    notes = []
    if header.data_length > limits.description_bytes:
        raise SourceError(
            f"'{path}': the libvirt header (offset 20) announces {header.data_length} bytes "
            f"of XML, more than the limit of {limits.description_bytes}"
        )
    text = feed.take(header.data_length)
    if len(text) < header.data_length:
        raise SourceError(
            f"'{path}' ends inside the XML of a libvirt save image: {header.data_length} bytes "
            f"expected at {HEADER_SIZE:#x}, found {len(text)}"
        )
    cookie = None
    xml = text
    if header.cookie_offset > header.data_length:
        notes.append(
            f"cookie offset {header.cookie_offset} lies outside the {header.data_length} data bytes"
        )
    elif header.cookie_offset:
        xml, cookie = text[: header.cookie_offset], _text(text[header.cookie_offset :])
    if header.magic == UNFINISHED:
        notes.append("the save did not finish")
    form = FORMATS[header.format] if header.format < len(FORMATS) else f"{header.format}"
    if header.version < VERSION:
        form = "raw"  # version 1 had no such field
    shown = _text(xml)
    name, uuid = domain_names(shown)
    return LibvirtDetails(
        version=header.version,
        byte_order=order,
        finished=header.magic == FINISHED,
        was_running=bool(header.was_running),
        format=form,
        xml=shown,
        cookie=cookie,
        notes=tuple(notes),
        name=name,
        uuid=uuid,
    )


def domain_names(xml: str) -> tuple[str | None, str | None]:
    """Return the name and the UUID of the first domain in an XML; None for what it lacks.

    A document with entities of its own is not read: libvirt writes none.
    """
    from xml.parsers import expat

    if "<!" in xml:
        return None, None
    found: dict[str, str] = {}
    path: list[str] = []
    reading: str | None = None

    def start(tag: str, _attributes: dict[str, str]) -> None:
        nonlocal reading
        path.append(tag)
        if path[-2:] in (["domain", "name"], ["domain", "uuid"]) and tag not in found:
            reading, found[tag] = tag, ""

    def end(_tag: str) -> None:
        nonlocal reading
        path.pop()
        reading = None

    def text(data: str) -> None:
        if reading is not None:
            found[reading] += data

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    try:
        parser.Parse(xml.encode(), True)  # noqa: FBT003 - the API's own
    except (expat.ExpatError, UnicodeEncodeError):
        return None, None
    return found.get("name"), found.get("uuid")


def _header(data: bytes, path: str) -> tuple[str, Any]:
    for order, layout in SAVE_IMAGES.items():
        header = layout.parse(data)
        if 1 <= header.version <= VERSION:
            return order, header
    raise SourceError(
        f"'{path}': the libvirt header (offset 16) has version {data[16:20].hex(' ')}; "
        f"expected 1 or {VERSION} in either byte order"
    )


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
