"""A patch of KVM on trial: applied, built and run beside the kernel without it."""
