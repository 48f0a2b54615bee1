"""Kernels and QEMUs of Debian's suites: fetched, unpacked, made bootable."""
