"""Control of a QEMU over QMP.

The core is asyncio (:class:`Client`); :mod:`qemu_svm.qmp.sync` is the same for
programs without an event loop.
"""

from qemu_svm.qmp.answers import Event, Migration, Status, Version
from qemu_svm.qmp.client import Client

__all__ = ["Client", "Event", "Migration", "Status", "Version"]
