"""``svmstream lab``: an AMD host in a box.  One module a verb, as above."""

from __future__ import annotations

import click

from qemu_svm.cli.verbs import Verbs

_VERBS = {
    "build": "Fetch kernels and QEMUs of Debian suites into the cache.",
    "list": "What is in the cache, and which boxes are up.",
    "up": "Start a box that stays.",
    "run": "Run a command in a box.",
    "capture": "A stream of a guest in a known state, on a kernel and QEMU of choice.",
    "restore": "Restore a stream into a real KVM, and see whether L2 goes on.",
    "matrix": "Save on each kernel and QEMU, restore on each other one.",
    "witness": "Restore a stream, and see which VMCBs the processor is given.",
    "conform": "Random restore sequences: the model must do what the kernel does.",
    "shell": "A shell in a box.",
    "down": "End a box that stays.",
    "clean": "Remove suites from the cache.",
}


@click.group(cls=Verbs, package=__name__, verbs=_VERBS)
def command() -> None:
    """An AMD host in a box: a real Linux with KVM, emulated by TCG.

    No AMD machine and no root are needed. Kernels 5.10, 6.1, 6.12 and 7.2 and
    QEMUs 5.2, 7.2, 10.0 and 11.1, in any pairing, are fetched from Debian into
    $XDG_CACHE_HOME/qemu-svm when they are first used.
    """
