"""KVM's functions, under the kernel's names."""
