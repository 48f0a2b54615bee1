"""Which parts of a section exist only with a property of its device.

If two QEMUs disagree about such a part, one reads more or less than the other wrote, and
the message is that the section's footer is missing.

Source: QEMU ``hw/virtio/virtio.c``, ``virtio-pci.c``, ``hw/net/virtio-net.c``,
``hw/virtio/virtio-balloon.c``, ``virtio-iommu.c``, ``virtio-mem.c``,
``hw/char/virtio-serial-bus.c``, ``hw/net/e1000.c``, ``hw/acpi/piix4.c``, ``ich9.c``.
"""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.stream.vmstate.values import Value

_VIRTIO = {
    "device.max_queue_pairs": "mq=on and a back end with several queues",
    "device.curr_guest_offloads": "ctrl_guest_offloads=on",
    "device.virtio-net-device/rss": "rss=on or hash=on",
    "device.virtio-balloon-device/free-page-report": "free-page-hint=on",
    "device.virtio-balloon-device/page-poison": "page-poison=on",
    "device.ports_map": "max_ports=",
    "device.bitmap": "x-early-migration=off",
    "device.config_bypass": "machine types of 7.1 and later",
    "pci.msix_table": "vectors=",
    "virtio/extra_state": "disable-modern=off, machine types of 2.5 and later",
    "virtio/packed_virtqueues": "packed=on",
    "virtio/ringsize": "queue-size=",
    "virtio/started": "use-started=on",
    "virtio/disabled": "use-disabled-flag=on",
}
_OTHERS = {
    "e1000/mit_state": "mitigation=on",
    "e1000/full_mac_state": "extra_mac_registers=on",
    "e1000/tx_tso_state": "migrate_tso_props=on",
    "piix4_pm/acpihp": "acpi-pci-hotplug-with-bridge-support=on",
    "ICH9LPC/pci_express_host": "memory-hotplug-support",
    "pckbd/extended_state": "extended-state=on",
}
_EXPRESS = 4096


def optional_parts(section: Value) -> list[str]:
    """List parts of a section as ``path (property)``; a subsection may have no property."""
    return list(dict.fromkeys(_parts(section)))


def _parts(section: Value) -> Iterator[str]:
    virtio = next((child for child in section.children if child.type == "virtio"), None)
    if virtio is not None and virtio.children:
        space = virtio.resolve("pci.config")
        if space is not None:
            bus = "PCI Express" if space.size == _EXPRESS else "PCI"
            yield f"virtio.pci.config ({space.size} bytes: a {bus} bus)"
        queues = virtio.child("queues")
        if queues is not None:
            yield f"virtio.queues ({len(queues.children)}: the number of queues)"
        for path, words in _VIRTIO.items():
            if virtio.resolve(path) is not None:
                yield f"virtio.{path} ({words})"
    for path, value in section.walk():
        if value.type == "subsection" and not path.startswith("virtio."):
            known = _OTHERS.get(value.name)
            yield path if known is None else f"{path} ({known})"
