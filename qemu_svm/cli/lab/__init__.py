"""``svmstream lab``: an emulated AMD host.  One module for each verb."""

from __future__ import annotations

import click

from qemu_svm.cli.verbs import Verbs

_VERBS = {
    "Use a box": {
        "run": "Run a command in a box.",
        "shell": "Run a shell in a box.",
        "up": "Start a box that stays up.",
        "down": "Shut down a box.",
    },
    "Experiments": {
        "capture": "Capture a guest in a known state.",
        "restore": "Restore a stream and check that L2 continues.",
        "witness": "Check which VMCBs the processor is given.",
        "matrix": "Save on each kernel and QEMU, restore on each other.",
        "bisect": "Find the update that changed an answer.",
        "conform": "Compare the model with a kernel, by random plans.",
        "patch": "Put a patch of KVM on trial, and show what it changes.",
    },
    "Cache": {
        "build": "Fetch suites, and kernels by version.",
        "list": "List suites, kernels, and boxes that are up.",
        "clean": "Remove suites and kernels.",
    },
}


@click.group(
    cls=Verbs,
    package=__name__,
    verbs=_VERBS,
    examples=("svmstream lab run --kernel 7.2 -- uname -r",),
)
def command() -> None:
    """Use an emulated AMD host, the box: a real Linux with KVM, emulated by TCG.

    No AMD machine and no root are needed. Kernels 5.10, 6.1, 6.12 and 7.2 and
    QEMUs 5.2, 7.2, 10.0 and 11.1, in any pairing, are fetched from Debian into
    $XDG_CACHE_HOME/qemu-svm when they are first used; so are other kernels, by their
    version (`lab list --available`).
    """
