"""Layouts of virtio devices: configuration, and state on the wire.

Rows as :meth:`qemu_svm.machine.cursor.Cursor.rows` reads them.  Numbers of the
configuration are written here as little-endian; a legacy device of a big-endian guest
has them the other way round.

Source: VIRTIO 1.4, chapter 5 (configuration); QEMU ``hw/virtio/virtio.c``
(``virtio_save``), ``virtio-pci.c``, ``virtio-mmio.c``, ``hw/s390x/virtio-ccw.c``,
``css.c``, ``hw/intc/s390_flic.c`` (state), the same from 5.2 to 10.2.
"""

from __future__ import annotations

QUEUES = 1024
"""Most queues of a device; some arrays always have as many elements."""

CONFIG = {
    "net": """
        mac:*6 status:le16 max_virtqueue_pairs:le16 mtu:le16 speed:le32 duplex:u8
        rss_max_key_size:u8 rss_max_indirection_table_length:le16 supported_hash_types:le32
        supported_tunnel_types:le32
    """,
    "blk": """
        capacity:le64 size_max:le32 seg_max:le32 cylinders:le16 heads:u8 sectors:u8 blk_size:le32
        physical_block_exp:u8 alignment_offset:u8 min_io_size:le16 opt_io_size:le32 writeback:u8
        unused0:u8 num_queues:le16 max_discard_sectors:le32 max_discard_seg:le32
        discard_sector_alignment:le32 max_write_zeroes_sectors:le32 max_write_zeroes_seg:le32
        write_zeroes_may_unmap:u8 unused1:*3 max_secure_erase_sectors:le32
        max_secure_erase_seg:le32 secure_erase_sector_alignment:le32 zone_sectors:le32
        max_open_zones:le32 max_active_zones:le32 max_append_sectors:le32 write_granularity:le32
        model:u8 unused2:*3
    """,
    "console": "cols:le16 rows:le16 max_nr_ports:le32 emerg_wr:le32",
    "balloon": "num_pages:le32 actual:le32 free_page_hint_cmd_id:le32 poison_val:le32",
    "scsi": """
        num_queues:le32 seg_max:le32 max_sectors:le32 cmd_per_lun:le32 event_info_size:le32
        sense_size:le32 cdb_size:le32 max_channel:le16 max_target:le16 max_lun:le32
    """,
    "9p": "tag_len:le16",
    "gpu": """
        events_read:le32 events_clear:le32 num_scanouts:le32 num_capsets:le32 blob_alignment:le32
    """,
    "input": "select:u8 subsel:u8 size:u8 reserved:*5 data:*128",
    "vsock": "guest_cid:le64",
    "crypto": """
        status:le32 max_dataqueues:le32 crypto_services:le32 cipher_algo_l:le32 cipher_algo_h:le32
        hash_algo:le32 mac_algo_l:le32 mac_algo_h:le32 aead_algo:le32 max_cipher_key_len:le32
        max_auth_key_len:le32 akcipher_algo:le32 max_size:le64
    """,
    "iommu": """
        page_size_mask:le64 input_start:le64 input_end:le64 domain_start:le32 domain_end:le32
        probe_size:le32 bypass:u8 reserved:*3
    """,
    "mem": """
        block_size:le64 node_id:le16 padding:*6 addr:le64 region_size:le64 usable_region_size:le64
        plugged_size:le64 requested_size:le64
    """,
    "sound": "jacks:le32 streams:le32 chmaps:le32 controls:le32",
    "fs": "tag:*36 num_request_queues:le32 notify_buf_size:le32",
    "pmem": "start:le64 size:le64",
}

NET = """
    mac:*6 tx_waiting:u32 mergeable_rx_bufs:u32 status:u16 promisc:u8 allmulti:u8
    mac_table_in_use:u32
"""
NET_FILTER = """
    vlans:*512 has_vnet_hdr:u32 multi_overflow:u8 uni_overflow:u8 alluni:u8 nomulti:u8 nouni:u8
    nobcast:u8 has_ufo:u8
"""
NET_RSS = "enabled:u8 redirect:u8 populate_hash:u8 runtime_hash_types:u32"
NET_RSS_KEY = "indirections_len:u16 default_queue:u16 key:*40"
BALLOON = "num_pages:u32 actual:u32"
MEM_CHECKS = "addr:u64 region_size:u64 block_size:u64 node:u32"
CONSOLE = "cols:u16 rows:u16 max_nr_ports:u32"
CONSOLE_PORT = "id:u32 guest_connected:u8 host_connected:u8 elem_popped:u32"
ELEMENT = "index:u32 out_num:u32 in_num:u32 padding:u32"
ELEMENT_ADDRESSES = 16 * QUEUES
ELEMENT_BUFFERS = 32 * QUEUES

DEVICE_SUBSECTIONS = {
    "virtio-balloon-device/free-page-report": "free_page_hint_cmd_id:u32 free_page_hint_status:u32",
    "virtio-balloon-device/page-poison": "poison_val:u32",
}

COMMON = "isr:u8 queue_sel:u16"

MMIO = "host_features_sel:u32 guest_features_sel:u32 guest_page_shift:u32"

SUBCHANNEL = """
    cssid:u8 ssid:u8 migrated_schid:u16 devno:u16 thinint_active:u8
    intparm:u32 pmcw_flags:u16 pmcw_devno:u16 lpm:u8 pnom:u8 lpum:u8 pim:u8 mbi:u16 pom:u8 pam:u8
    chpid:*8 chars:u32
    scsw_flags:u16 scsw_ctrl:u16 scsw_cpa:u32 dstat:u8 cstat:u8 scsw_count:u16
    mba:u64 mda:*4 sense_data:*32 channel_prog:u64
    cmd_code:u8 cmd_flags:u8 cmd_count:u16 cda:u32 last_cmd_valid:u8
    id_reserved:u8 cu_type:u16 cu_model:u8 dev_type:u16 dev_model:u8 id_unused:u8 ciw:*248
    ccw_fmt_1:u8 ccw_no_data_cnt:u8
"""
SUBCHANNEL_ORB = "intparm:u32 ctrl0:u16 lpm:u8 ctrl1:u8 cpa:u32"
CCW = """
    indicators_len:u32 indicators:u64 indicators2_len:u32 indicators2:u64
    summary_indicator_len:u32 summary_indicator:u64 config_vector:u16 ind_offset:u64
"""
CCW_SUMMARY = "summary_offset:u32"
CCW_END = "thinint_isc:u8 revision:u32"

SUBSECTIONS = {
    "virtio/device_endian": "device_endian:u8",
    "virtio/64bit_features": "guest_features:u64",
    "virtio/128bit_features": "guest_features:u64",
    "virtio/broken": "broken:u8",
    "virtio/started": "started:u8",
    "virtio/disabled": "disabled:u8",
    "virtio_pci/modern_state": "dfselect:u32 gfselect:u32 guest_features:u32*2",
    "virtio_pci/modern_state/features128": "guest_features:u32*2",
    "virtio_mmio/state": "guest_features:u32*2",
}
"""Fields of subsections, without those of :data:`PER_QUEUE`."""

INNER = {
    "virtio/extra_state": ("virtio_pci/modern_state", "virtio_mmio/state"),
    "virtio_pci/modern_state": ("virtio_pci/modern_state/features128",),
}
"""Subsections that may end these."""

PER_QUEUE = {
    "virtio/virtqueues": "avail:u64 used:u64",
    "virtio/ringsize": "num_default:u32",
    "virtio/packed_virtqueues": """
        last_avail_idx:u16 last_avail_wrap_counter:u8 used_idx:u16 used_wrap_counter:u8 inuse:u32
    """,
    "virtio_pci/modern_state": "num:u16 unused:u8 enabled:u8 desc:u32*2 avail:u32*2 used:u32*2",
    "virtio_mmio/state": "num:u16 enabled:u8 desc:u32*2 avail:u32*2 used:u32*2",
}
"""Fields of each of the :data:`QUEUES` elements that end these subsections."""
