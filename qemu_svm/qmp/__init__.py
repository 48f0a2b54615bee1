"""Driving a QEMU over QMP; stands beside the line of rooms.

The core is asyncio (:class:`Client`); :mod:`qemu_svm.qmp.sync` is the same for
programs that have no event loop.
"""

from qemu_svm.qmp.answers import Event, Migration, Status, Version
from qemu_svm.qmp.client import Client

__all__ = ["Client", "Event", "Migration", "Status", "Version"]
