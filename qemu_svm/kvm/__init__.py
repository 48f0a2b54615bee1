"""The KVM of the running kernel: what its ioctls are called and carry."""
