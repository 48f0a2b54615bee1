"""An AMD host in a box: emulated by TCG, with a real Linux, KVM and QEMU in it."""

from qemu_svm.lab.box.box import Box
from qemu_svm.lab.box.command import Command, Done

__all__ = ["Box", "Command", "Done"]
