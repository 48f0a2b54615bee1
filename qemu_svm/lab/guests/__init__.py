"""Guests to be captured: hypervisors of about a kilobyte, each with one L2.

They are assembled by the project (:mod:`~qemu_svm.lab.guests.build`), put known
values into every register of both levels (:mod:`~qemu_svm.lab.guests.values`),
and each is mostly in one state (:mod:`~qemu_svm.lab.guests.catalogue`).  What a
capture must show is in :mod:`~qemu_svm.lab.guests.expect`.
"""

from qemu_svm.lab.guests.build import Image, assemble
from qemu_svm.lab.guests.catalogue import GUESTS, LINUX, Guest, State, find
from qemu_svm.lab.guests.expect import differences

__all__ = ["GUESTS", "LINUX", "Guest", "Image", "State", "assemble", "differences", "find"]
