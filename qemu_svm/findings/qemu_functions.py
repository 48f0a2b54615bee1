"""Words by which QEMU's other messages are recognised, and the function that prints each.

Written by ``tools/qemu_messages.py --write``; a row is ``function|words``.
"""

from __future__ import annotations

from functools import cache


def function_of(line: str) -> str | None:
    """Name the function of QEMU that prints a message; None if it is unknown."""
    return next((name for words, name in _rows() if words in line), None)


@cache
def _rows() -> tuple[tuple[str, str], ...]:
    # Longer words first: they say more.
    rows = (row.partition("|") for row in _TABLE.split("\n") if row)
    return tuple(sorted(((words, name) for name, _, words in rows), key=lambda r: -len(r[0])))


_TABLE = r"""
colo_failover_bh|failover, old_state
colo_incoming_process_checkpoint|VMState data,
colo_incoming_process_checkpoint|state (ram) error
colo_process_checkpoint|QEMUFile from_dst_file
colo_process_checkpoint, colo_process_incoming_thread|failover request
colo_receive_message, colo_send_message|Invalid message
colo_send_message_value|for message:
cpr_state_load|vmstate_load_state error
deferred_incoming_migration|Incoming migration
exec_get_cmd_path|detect cmd.exe
fd_start_incoming_migration|deprecated. Use
iothread_vq_mapping_validate|already assigned
iothread_vq_mapping_validate|in iothread-vq-mapping
iothread_vq_mapping_validate|iothread-vq-mapping must
iothread_vq_mapping_validate|object does not
load_snapshot|Could not open
loadvm_postcopy_handle_switchover_start|Switchover start
loadvm_postcopy_ram_handle_discard|Failed to discard
loadvm_postcopy_ram_handle_discard|RAM discard:
migrate_caps_check|drive_mirror+NBD instead.
migrate_caps_check|old-style (blk/-b,
migrate_handle_rp_recv_bitmap|block name '
migration_switchover_start|is interrupted
multifd_qpl_init_sw_job|qpl_get_job_size failed
multifd_qpl_init_sw_job|qpl_init_job failed
multifd_qpl_process_and_check_job|qpl decompressed
multifd_qpl_process_and_check_job|qpl job failed
multifd_uadk_init_sess|available. Switch
pci_req_id_cache_extract|PCI requester
postcopy_do_resume|handshake failed:
postcopy_do_resume|resume_prepare() failure
postcopy_fault_thread_notify|incrementing failed:
postcopy_ram_fault_thread|POLLERR on poll
postcopy_ram_fault_thread|allow to continue
postcopy_ram_fault_thread|migrate_send_rp_req_pages() get
postcopy_ram_fault_thread|read() failed
postcopy_ram_fault_thread|resolve shared
postcopy_ram_incoming_setup, postcopy_temp_pages_setup|large zero page
postcopy_ram_supported_by_host|: munlockall:
postcopy_ram_supported_by_host|No OS support
postcopy_ram_supported_by_host|Target page size
postcopy_ram_supported_by_host|map test area:
postcopy_ram_supported_by_host|munlockall() failed:
postcopy_start|Failed to stop
postcopy_start|establish preempt
postcopy_sync_page_req|message failed
postcopy_wake_shared|Failed to wake:
primary_vm_do_failover|failover for Primary
qemu_iovec_release_ram|migrate: madvise
qemu_savevm_state_blocked|non-migratable device
qmp_migrate_incoming|'-incoming defer'
qmp_migrate_incoming|'-incoming' was
qmp_migrate_incoming|migration has
qmp_xen_load_devices_state|Cannot update
qmp_xen_load_devices_state|device state
qmp_xen_load_devices_state|state failed:
ram_dirty_bitmap_reload|incorrect state
ram_state_init|Init ramstate
ramblock_recv_bitmap_send|invalid block name:
secondary_vm_do_failover|for secondary
secondary_vm_do_failover|secondary VM,old_state:
secondary_vm_do_failover|secondary side
socket_accept_incoming_migration|migration connection;
test_ramblock_postcopiable|HUGETLBFS only
ufd_check_and_apply|Failed features
ufd_check_and_apply|failed: features
vhost_user_postcopy_fault_handler|region for fault
vmstate_save_state_v|Save of field
vmstate_save_state_v|post-save failed:
vmstate_save_state_v|pre-save failed:
vmstate_save_state_v|pre-save for
vmstate_save_state_v|validation failed:
"""
