"""Names of virtio feature bits, status bits and device types.

A row is ``bit NAME since``: the version of the specification that introduced the bit.
``legacy`` marks bits of drivers older than virtio 1.0 that 1.0 only describes as legacy;
``vhost`` marks bits that never reach a guest by specification, but are defined by vhost.

Source: OASIS Virtual I/O Device (VIRTIO) 1.0, 1.1, 1.2, 1.3, 1.4, chapters 2.1, 5 and 6;
Linux ``include/uapi/linux/virtio_*.h`` and ``vhost_types.h`` for the rest.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from qemu_svm.x86.bits import Bits

COMMON = "common"
STATUS = "status"

_TABLES = {
    STATUS: """
        0 ACKNOWLEDGE 1.0
        1 DRIVER 1.0
        2 DRIVER_OK 1.0
        3 FEATURES_OK 1.0
        4 SUSPEND 1.4
        6 DEVICE_NEEDS_RESET 1.0
        7 FAILED 1.0
    """,
    COMMON: """
        24 NOTIFY_ON_EMPTY legacy
        26 LOG_ALL vhost
        27 ANY_LAYOUT legacy
        28 INDIRECT_DESC 1.0
        29 EVENT_IDX 1.0
        30 PROTOCOL_FEATURES vhost
        32 VERSION_1 1.0
        33 ACCESS_PLATFORM 1.1
        34 RING_PACKED 1.1
        35 IN_ORDER 1.1
        36 ORDER_PLATFORM 1.1
        37 SR_IOV 1.1
        38 NOTIFICATION_DATA 1.1
        39 NOTIF_CONFIG_DATA 1.2
        40 RING_RESET 1.2
        41 ADMIN_VQ 1.3
        43 SUSPEND 1.4
    """,
    "net": """
        0 CSUM 1.0
        1 GUEST_CSUM 1.0
        2 CTRL_GUEST_OFFLOADS 1.0
        3 MTU 1.1
        5 MAC 1.0
        6 GSO legacy
        7 GUEST_TSO4 1.0
        8 GUEST_TSO6 1.0
        9 GUEST_ECN 1.0
        10 GUEST_UFO 1.0
        11 HOST_TSO4 1.0
        12 HOST_TSO6 1.0
        13 HOST_ECN 1.0
        14 HOST_UFO 1.0
        15 MRG_RXBUF 1.0
        16 STATUS 1.0
        17 CTRL_VQ 1.0
        18 CTRL_RX 1.0
        19 CTRL_VLAN 1.0
        20 CTRL_RX_EXTRA 1.3
        21 GUEST_ANNOUNCE 1.0
        22 MQ 1.0
        23 CTRL_MAC_ADDR 1.0
        50 DEVICE_STATS 1.4
        51 HASH_TUNNEL 1.3
        52 VQ_NOTF_COAL 1.3
        53 NOTF_COAL 1.3
        54 GUEST_USO4 1.3
        55 GUEST_USO6 1.3
        56 HOST_USO 1.2
        57 HASH_REPORT 1.2
        59 GUEST_HDRLEN 1.2
        60 RSS 1.2
        61 RSC_EXT 1.1
        62 STANDBY 1.1
        63 SPEED_DUPLEX 1.2
        64 RSS_CONTEXT 1.4
        65 GUEST_UDP_TUNNEL_GSO 1.4
        66 GUEST_UDP_TUNNEL_GSO_CSUM 1.4
        67 HOST_UDP_TUNNEL_GSO 1.4
        68 HOST_UDP_TUNNEL_GSO_CSUM 1.4
        69 OUT_NET_HEADER 1.4
        70 IPSEC 1.4
    """,
    "blk": """
        0 BARRIER legacy
        1 SIZE_MAX 1.0
        2 SEG_MAX 1.0
        4 GEOMETRY 1.0
        5 RO 1.0
        6 BLK_SIZE 1.0
        7 SCSI legacy
        9 FLUSH 1.0
        10 TOPOLOGY 1.0
        11 CONFIG_WCE 1.0
        12 MQ 1.2
        13 DISCARD 1.1
        14 WRITE_ZEROES 1.1
        15 LIFETIME 1.2
        16 SECURE_ERASE 1.2
        17 ZONED 1.3
    """,
    "console": """
        0 SIZE 1.0
        1 MULTIPORT 1.0
        2 EMERG_WRITE 1.0
    """,
    "rng": "",
    "balloon": """
        0 MUST_TELL_HOST 1.0
        1 STATS_VQ 1.0
        2 DEFLATE_ON_OOM 1.0
        3 FREE_PAGE_HINT 1.2
        4 PAGE_POISON 1.2
        5 PAGE_REPORTING 1.2
    """,
    "scsi": """
        0 INOUT 1.0
        1 HOTPLUG 1.0
        2 CHANGE 1.0
        3 T10_PI 1.0
    """,
    "9p": """
        0 MOUNT_TAG legacy
    """,
    "gpu": """
        0 VIRGL 1.1
        1 EDID 1.1
        2 RESOURCE_UUID 1.2
        3 RESOURCE_BLOB 1.2
        4 CONTEXT_INIT 1.2
        5 BLOB_ALIGNMENT 1.4
    """,
    "input": "",
    "vsock": """
        0 STREAM 1.2
        1 SEQPACKET 1.2
        2 NO_IMPLIED_STREAM 1.3
    """,
    "crypto": """
        0 REVISION_1 1.1
        1 CIPHER_STATELESS_MODE 1.1
        2 HASH_STATELESS_MODE 1.1
        3 MAC_STATELESS_MODE 1.1
        4 AEAD_STATELESS_MODE 1.1
        5 AKCIPHER_STATELESS_MODE 1.3
    """,
    "iommu": """
        0 INPUT_RANGE 1.2
        1 DOMAIN_RANGE 1.2
        2 MAP_UNMAP 1.2
        3 BYPASS 1.2
        4 PROBE 1.2
        5 MMIO 1.2
        6 BYPASS_CONFIG 1.2
    """,
    "mem": """
        0 ACPI_PXM 1.2
        1 UNPLUGGED_INACCESSIBLE 1.2
        2 PERSISTENT_SUSPEND 1.4
    """,
    "sound": """
        0 CTLS 1.3
    """,
    "fs": """
        0 NOTIFICATION 1.2
    """,
    "pmem": """
        0 SHMEM_REGION 1.2
    """,
    "scmi": """
        0 P2A_CHANNELS 1.2
        1 SHARED_MEMORY 1.2
    """,
    "i2c": """
        0 ZERO_LENGTH_REQUEST 1.2
    """,
    "gpio": """
        0 IRQ 1.2
    """,
    "rtc": """
        0 ALARM 1.4
    """,
    "nsm": "",
}

DEVICE_IDS = {
    1: "net", 2: "blk", 3: "console", 4: "rng", 5: "balloon", 8: "scsi", 9: "9p", 16: "gpu",
    17: "rtc", 18: "input", 19: "vsock", 20: "crypto", 23: "iommu", 24: "mem", 25: "sound",
    26: "fs", 27: "pmem", 32: "scmi", 33: "nsm", 34: "i2c", 41: "gpio", 45: "spi",
}  # fmt: skip
"""Device types by the number that the specification gives them (chapter 5)."""

_QEMU_NAMES = {
    "vhost-user-scsi": "scsi",
    "virtio-vhost_vsock": "vsock",
    "virtio-console": "console",
}


class Feature(NamedTuple):
    """One feature or status bit.

    :param since: version of the specification; ``legacy`` or ``vhost``.
    """

    bit: int
    name: str
    since: str


@cache
def features(device: str) -> tuple[Feature, ...]:
    """All feature bits of a device type with the common ones; only those if it is unknown."""
    return tuple(sorted(_rows(device) + (() if device == STATUS else _rows(COMMON))))


def _rows(table: str) -> tuple[Feature, ...]:
    lines = (line.split() for line in _TABLES.get(table, "").splitlines())
    return tuple(Feature(int(row[0]), row[1], row[2]) for row in lines if row)


@cache
def feature_bits(device: str) -> Bits:
    """Names of the feature bits of a device type, or of :data:`STATUS`."""
    return Bits({feature.bit: feature.name for feature in features(device)})


def device_type(section: str, numeric: int | None = None) -> str:
    """Device type of a section: ``net`` for ``virtio-net``.

    :param section: name of the section's description.
    :param numeric: the type's number, if the transport says it.
    :returns: the text after ``virtio-`` if the type is unknown.
    """
    if numeric in DEVICE_IDS:
        return DEVICE_IDS[numeric]
    known = _QEMU_NAMES.get(section)
    if known is not None:
        return known
    short = section.removeprefix("virtio-").removeprefix("vhost-user-").removeprefix("vhost-")
    return {"snd": "sound", "block": "blk"}.get(short, short)
