"""What this host, a QEMU and a VM support."""
