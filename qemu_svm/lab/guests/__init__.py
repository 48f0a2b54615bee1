"""Guests to be captured: hypervisors of about a kilobyte, each with one L2.

They are assembled from source (:mod:`~qemu_svm.lab.guests.build`), load known
values into every register of both levels (:mod:`~qemu_svm.lab.guests.values`),
and each is in one state most of the time (:mod:`~qemu_svm.lab.guests.catalogue`).
:mod:`~qemu_svm.lab.guests.expect` compares a capture with that state and those values.
"""

from qemu_svm.lab.guests.build import Image, assemble
from qemu_svm.lab.guests.catalogue import GUESTS, LINUX, LINUX_IN_LINUX, Guest, GuestState, find
from qemu_svm.lab.guests.expect import differences

__all__ = [
    "GUESTS",
    "LINUX",
    "LINUX_IN_LINUX",
    "Guest",
    "GuestState",
    "Image",
    "assemble",
    "differences",
    "find",
]
