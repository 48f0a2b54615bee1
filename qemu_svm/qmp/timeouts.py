"""How long this room waits for a QEMU, in seconds.

Intervals at which something is polled are not here: they are constants of the
module that polls.
"""

from __future__ import annotations

CONNECT = 5.0
"""From connecting to the end of the negotiation; default of :class:`~qemu_svm.qmp.Client`."""

TAKEN = 1.0
"""The same of libvirt's own socket, to which libvirt is connected."""

ANSWER = 30.0
"""From a command to its answer; default of :class:`~qemu_svm.qmp.Client`."""

DISCONNECT = 2.0
"""From closing a connection to its end; then it is abandoned."""

RECONNECT = 10.0
"""Until a QEMU whose connection was lost during a capture accepts a new one."""

NOBODY_LISTENS = 1.0
"""The same if nobody listens on its socket: that QEMU has most probably ended."""

START = 60.0
"""From starting a QEMU to its QMP greeting."""

QUIT = 5.0
"""From SIGTERM to the end of a QEMU that we started; then it is killed."""

LISTEN = 5.0
"""From ``migrate-incoming`` until QEMU listens on the socket of the stream."""

MIGRATION_END = 30.0
"""From ``migrate_cancel`` until the migration has ended."""

SETTLED = 5.0
"""From the end of a migration until QEMU has cleaned up after it."""

SAFE_CANCEL = 2.0
"""How long a cancel waits for a moment at which no QEMU dies of it."""

SILENT_END = 60.0
"""From the end of the connections of a migration until QEMU reports how it ended."""

ARRIVAL = 10.0
"""From the end of a migration until its connections, or its file, are all there."""

SILENCE = 0.05
"""Without new data, after which a stream may be complete (:mod:`qemu_svm.qmp.hold`)."""

HOLD = 10.0
"""Without new data, after which a stream that is not complete is not waited for any more."""

LAST_EVENT = 0.1
"""From the loss of a connection until no event that came before it can be pending."""
