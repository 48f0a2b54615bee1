"""The Debian suites, with their kernels and QEMUs.

A *suite* here is one Debian release: its kernel, its QEMU and the user land needed
to run both.  A box has the kernel of one suite and the user land of the same or
another one, so four suites make sixteen pairings.
"""

from __future__ import annotations

from dataclasses import dataclass

from qemu_svm.errors import LabError

PACKAGES = (
    "linux-image-amd64",
    "qemu-system-x86",
    "busybox-static",
    "bash",
    "coreutils",
    "python3",
    "strace",
)
"""The packages of a suite, without their dependencies."""


@dataclass(frozen=True)
class Suite:
    """One Debian release.

    :param name: Debian's code name, ``bookworm``.
    :param kernel: release line of its kernel, ``6.1``.
    :param qemu: release line of its QEMU, ``7.2``.
    """

    name: str
    kernel: str
    qemu: str


SUITES = (
    Suite("bullseye", "5.10", "5.2"),
    Suite("bookworm", "6.1", "7.2"),
    Suite("trixie", "6.12", "10.0"),
    Suite("forky", "7.2", "11.1"),
)

DEFAULT_KERNEL = "6.1"
KERNELS = tuple(suite.kernel for suite in SUITES)
QEMUS = tuple(suite.qemu for suite in SUITES)


def of_kernel(kernel: str) -> Suite:
    """Return the suite with a kernel of this release line.

    :raises LabError: there is none.
    """
    for suite in SUITES:
        if suite.kernel == kernel:
            return suite
    raise LabError(f"no suite has kernel {kernel}", hint=f"available: {', '.join(KERNELS)}")


def of_qemu(qemu: str) -> Suite:
    """Return the suite with a QEMU of this release line.

    :raises LabError: there is none.
    """
    for suite in SUITES:
        if suite.qemu == qemu:
            return suite
    raise LabError(f"no suite has QEMU {qemu}", hint=f"available: {', '.join(QEMUS)}")


def is_of_line(version: str, line: str) -> bool:
    """Return whether a package version (``1:7.2+dfsg-7``) belongs to a release line (``7.2``)."""
    upstream = version.partition(":")[2] or version
    rest = upstream.removeprefix(line)
    return rest != upstream and not rest[:1].isdigit()
