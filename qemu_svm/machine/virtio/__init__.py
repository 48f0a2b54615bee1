"""Virtio devices from the inside: features, queues, configuration, PCI."""
