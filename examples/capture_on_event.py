"""Wait until QEMU reports something, then capture the guest as it is at that moment.

Usage: capture_on_event.py SOCKET FILE [EVENT ...]

Without EVENT: when the guest panics, is reset, or is stopped by its watchdog.
"""

from __future__ import annotations

import asyncio
import sys

from qemu_svm.errors import SvmStreamError
from qemu_svm.qmp import Client
from qemu_svm.qmp.capture import capture
from qemu_svm.qmp.features import Options

EVENTS = ("GUEST_PANICKED", "RESET", "WATCHDOG")


async def capture_on_event(socket: str, path: str, names: tuple[str, ...]) -> str:
    """Return what happened, in one sentence."""
    async with Client.connect(socket) as qmp:
        async with qmp.events(*names) as events:
            print(f"waiting for {', '.join(names)}", flush=True)
            event = await events.next()
        # Stopped at once: the moment matters more than the guest's peace.
        done = await capture(qmp, path, Options(live=False))
    state = "runs on" if done.after.running else f"is {done.after.state}"
    return f"{event.name}: {done.size} bytes in {path}, the guest {state}"


def main() -> int:
    if len(sys.argv) < 3:
        print(__doc__)
        return 2
    socket, path, *names = sys.argv[1:]
    try:
        print(asyncio.run(capture_on_event(socket, path, tuple(names) or EVENTS)))
    except SvmStreamError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
