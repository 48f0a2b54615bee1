"""Wait until QEMU reports an event, then capture the guest as it is at that moment.

Usage: capture_on_event.py SOCKET FILE [EVENT ...]

Without EVENT: when the guest panics, is reset, or its watchdog expires.
"""

from __future__ import annotations

import sys

import qemu_svm as svm

EVENTS = ("GUEST_PANICKED", "RESET", "WATCHDOG")


def capture_on_event(socket: str, path: str, names: tuple[str, ...]) -> str:
    """Return what happened, in one sentence."""
    with svm.connect(socket) as qmp:
        with qmp.events(*names) as events:
            print(f"waiting for {', '.join(names)}", flush=True)
            event = events.next()
        # Stopped at once: the state of this moment matters more than the downtime.
        done = qmp.capture(path, svm.CaptureOptions(live=False))
    state = "is running again" if done.after.running else f"is {done.after.state}"
    return f"{event.name}: {done.size} bytes in {path}, the guest {state}"


def main() -> int:
    if len(sys.argv) < 3:
        print(__doc__)
        return 2
    socket, path, *names = sys.argv[1:]
    try:
        print(capture_on_event(socket, path, tuple(names) or EVENTS))
    except svm.SvmStreamError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
