"""A stream through a QEMU and back, without letting the guest run.

What comes out is what this QEMU (and its kernel) understood of the stream.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from qemu_svm.qmp.capture import Captured, Progress, capture
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.restore import Restored, restore
from qemu_svm.source.base import Source
from qemu_svm.stream import Stream


async def save_again(
    client: Client,
    stream: Stream,
    path: str,
    channels: Sequence[Source] = (),
    *,
    qemu_directory: str | None = None,
    progress: Progress | None = None,
) -> tuple[Restored, Captured]:
    """Restore a stream into a waiting QEMU, keep the guest stopped, and save it.

    :param client: of a QEMU that waits for a stream.
    :param path: of the new stream.
    :param qemu_directory: QEMU reads and writes the files itself, in the
        directory that it sees under this name.
    :raises Refused: QEMU does not wait, or did not take the stream.
    :raises EnvironmentFault: no room, no permission, no connection.
    """
    await client.guard("migrate-incoming")
    # While it waits, this decides that the guest does not run afterwards.
    await client.execute("stop")
    own_file = None
    if qemu_directory is not None:
        own_file = os.path.join(qemu_directory, os.path.basename(stream.source.path))
    restored = await restore(client, stream, channels, qemu_file=own_file, progress=progress)
    saved = await capture(client, path, qemu_directory=qemu_directory, progress=progress)
    return restored, saved
