"""Fields of QEMU's device state whose number of elements is not fixed, by the description's name.

Where such a field has no elements, neither the stream nor its description has it: that it is
missing says nothing.

Source: the declarations with ``VARRAY`` and ``VBUFFER`` in QEMU 5.2.0, 7.2.0, 10.0.13 and
10.2.2, listed by ``tools/qemu_arrays.py``.
"""

from __future__ import annotations

ARRAYS: dict[str, tuple[str, ...]] = {
    "CPU hotplug state": ("devs",),
    "Fifo8": ("data",),
    "PCIBUS": ("irq_count",),
    "PCIE_AER_ERROR_LOG": ("log",),
    "ahci": ("dev",),
    "arm.cortex-a9-global-timer": ("per_cpu",),
    "arm_gicv3": ("cpu",),
    "arm_mptimer": ("timerblock",),
    "configuration": ("name",),
    "configuration/capabilities": ("capabilities",),
    "cpr fd": ("name",),
    "cpr vfio device": ("name",),
    "eeprom": ("contents",),
    "exynos4210.irq_gate": ("level",),
    "exynos4210.uart.fifo": ("data",),
    "fdc": ("fifo",),
    "g364fb": ("vram",),
    "hpet": ("timer",),
    "ibex-spi": ("config_opts",),
    "ics": ("irqs",),
    "ide_drive/pio_state": ("io_buffer",),
    "loongarch.extioi": ("cpu",),
    "loongson_ipi": ("cpu",),
    "m48t59": ("buffer",),
    "macio_nvram": ("data",),
    "memory hotplug state": ("devs",),
    "mps2-scc": ("oscclk",),
    "nvram": ("contents",),
    "onenand": ("blockwp",),
    "openpic": (
        "dst",
        "src",
    ),
    "or-irq-extras": ("levels",),
    "pflash_cfi01_blk_write": ("blk_bytes",),
    "pl330": (
        "chan",
        "hi_seqn",
        "lo_seqn",
    ),
    "pl330_chan": (
        "buf",
        "tag",
    ),
    "pl330_queue": ("queue",),
    "pxa2xx_dma": ("chan",),
    "qxl": ("guest_surfaces.cmds",),
    "realview_sysctl": ("db_clock",),
    "riscv_aplic": (
        "idelivery",
        "iforce",
        "ithreshold",
        "sourcecfg",
        "state",
        "target",
    ),
    "riscv_imsic": (
        "eidelivery",
        "eistate",
        "eithreshold",
    ),
    "riscv_mtimer": (
        "timecmp",
        "timers",
    ),
    "riscv_sifive_plic": (
        "claimed",
        "enable",
        "pending",
        "source_priority",
        "target_priority",
    ),
    "sdhci": ("fifo_buffer",),
    "spapr-xive": (
        "eat",
        "endt",
    ),
    "spapr_dtb": ("fdt_blob",),
    "spapr_event_log_entry": ("extended_log",),
    "spapr_iommu": ("mig_table",),
    "spapr_nvram": ("buf",),
    "spapr_pci": ("msi_devs",),
    "stellaris_gamepad": (
        "buttons",
        "pressed",
    ),
    "tpm-spapr": ("buffer",),
    "tz-mpc": ("blk_lut",),
    "uefi-var-policy": ("entry",),
    "uefi-variable": (
        "data",
        "name",
    ),
    "uefi-vars": ("pio_xfer_buffer",),
    "unused": ("_f",),
    "virtio-gpu-scanouts": ("parent_obj.scanout",),
    "virtio-net-device": (
        "VirtIONet",
        "mac_table.macs",
    ),
    "virtio-net-device/rss": ("rss_data.indirections_table",),
    "virtio-net-tx_waiting": ("vqs_1",),
    "virtio/packed_virtqueues": ("vq",),
    "virtio/ringsize": ("vq",),
    "virtio/virtqueues": ("vq",),
    "vmbus-dev": ("channels",),
    "vmbus/gpadl": ("gfns",),
    "vmbus/vmbus_chan_req": (
        "msg",
        "sgl",
    ),
    "vmware_vga_internal": ("scratch",),
    "vmxnet3/mcast_list": ("mcast_list",),
    "xen_evtchn": (
        "pirq_inuse_bitmap",
        "port_table",
    ),
    "xen_gnttab": ("gnt_frame_gpas",),
    "xen_xenstore": ("impl_state",),
    "xhci-core": (
        "intr",
        "ports",
        "slots",
    ),
    "xive-source": ("status",),
}
