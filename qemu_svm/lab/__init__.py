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

from qemu_svm.lab.box.box import Box
from qemu_svm.lab.box.command import Command, Done

__all__ = ["Box", "Command", "Done"]
