"""``svmstream lab``: an emulated AMD host.  One module for each verb."""

from __future__ import annotations

import click

from qemu_svm.cli.verbs import Verbs

_VERBS = {
    "build": "Fetch kernels and QEMUs of Debian suites into the cache.",
    "list": "List the suites in the cache, and the boxes that are up.",
    "clean": "Remove suites from the cache.",
    "up": "Start a box that stays up.",
    "down": "Shut down a box.",
    "run": "Run a command in a box.",
    "shell": "Run a shell in a box.",
    "capture": "Capture a guest in a known state, on a given kernel and QEMU.",
    "restore": "Restore a stream into a real KVM and check that L2 continues.",
    "matrix": "Save on each kernel and QEMU, restore on each other one.",
    "witness": "Restore a stream, and check which VMCBs the processor is given.",
    "conform": "Compare the model with a real kernel, by random restore sequences.",
}


@click.group(cls=Verbs, package=__name__, verbs=_VERBS)
def command() -> None:
    """Use an emulated AMD host, the box: a real Linux with KVM, emulated by TCG.

    No AMD machine and no root are needed. Kernels 5.10, 6.1, 6.12 and 7.2 and
    QEMUs 5.2, 7.2, 10.0 and 11.1, in any pairing, are fetched from Debian into
    $XDG_CACHE_HOME/qemu-svm when they are first used.
    """
