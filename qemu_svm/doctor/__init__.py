"""What this host, a QEMU and a VM can do; stands beside the line of rooms."""
