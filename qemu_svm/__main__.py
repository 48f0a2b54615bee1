"""``svmstream``, also ``python -m qemu_svm``: what comes before everything is imported."""

from __future__ import annotations

import gc
import sys

_OBJECTS = 50_000  # between two looks for garbage
_INTERRUPTED = 130  # as of all verbs; where it is defined has not been imported then


def main() -> None:
    """Run the command line; does not return."""
    # Most verbs end before there is garbage in circles worth a look at all that is imported.
    gc.set_threshold(_OBJECTS)
    try:
        from qemu_svm.cli import main as run
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    try:
        run()
    finally:
        gc.freeze()  # what is left goes with the process


if __name__ == "__main__":
    main()
