"""Entry point of ``svmstream`` and ``python -m qemu_svm``, before anything is imported."""

from __future__ import annotations

import gc
import sys

_OBJECTS = 50_000  # allocated between two collections
_INTERRUPTED = 130  # as in cli.status, which may not be imported yet


def main() -> None:
    """Run the command line; does not return."""
    # Most verbs end before there are reference cycles worth a collection of all modules.
    gc.set_threshold(_OBJECTS)
    try:
        from qemu_svm.cli import main as run
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    try:
        run()
    finally:
        gc.freeze()  # no collection at exit


if __name__ == "__main__":
    main()
