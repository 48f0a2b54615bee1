"""Kernels, QEMUs and user lands of Debian suites: downloaded, built and cached."""
