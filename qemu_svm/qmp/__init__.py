"""Control of a QEMU over QMP.

The core is asyncio (:class:`Client`); :mod:`qemu_svm.qmp.sync` is the same for
programs without an event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qemu_svm.qmp.answers import Event, Migration, Status, Version

if TYPE_CHECKING:
    from qemu_svm.qmp.client import Client

__all__ = ["Client", "Event", "Migration", "Status", "Version"]


def __getattr__(name: str) -> Any:
    # PEP 562: asyncio is not imported for modules that do without, such as output.
    if name == "Client":
        from qemu_svm.qmp.client import Client

        globals()[name] = Client
        return Client
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
