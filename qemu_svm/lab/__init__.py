"""An emulated AMD host, the *box*, with a real Linux, KVM and QEMU in it.

The parts import one another in this order:

* :mod:`~qemu_svm.lab.progress`, :mod:`~qemu_svm.lab.host`: reports of progress; child
  processes and failures of the machine that the lab runs on;
* :mod:`~qemu_svm.lab.suites`: kernels, QEMUs and user lands of Debian suites, in a cache;
* :mod:`~qemu_svm.lab.box`: starting a box, and running commands in it;
  :mod:`~qemu_svm.lab.box.inside` is the program in the box and imports nothing but itself;
* :mod:`~qemu_svm.lab.guests`: hypervisors of a kilobyte; imports neither suites nor box;
* the experiments, modules of this package: :mod:`~qemu_svm.lab.vm` is a QEMU in a box,
  which :mod:`~qemu_svm.lab.capture`, :mod:`~qemu_svm.lab.linux`,
  :mod:`~qemu_svm.lab.restore` and :mod:`~qemu_svm.lab.matrix` save and restore;
  :mod:`~qemu_svm.lab.kvm` performs replays in a box, :mod:`~qemu_svm.lab.svmtrace` and
  :mod:`~qemu_svm.lab.witness` record what the emulated processor was given.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qemu_svm.lab.box.box import Box
    from qemu_svm.lab.box.command import Command, Done

__all__ = ["Box", "Command", "Done"]

_MODULES = {"Box": "box", "Command": "command", "Done": "command"}


def __getattr__(name: str) -> Any:
    # What a box needs is imported when one is started: the catalogue of suites is quick.
    if name in _MODULES:
        return getattr(import_module(f"qemu_svm.lab.box.{_MODULES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
