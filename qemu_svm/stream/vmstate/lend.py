"""Borrow the description of another stream, for a stream without one.

The best lender is a stream of the same machine, saved by the same QEMU with the same
devices; its sizes are still verified section by section.  The JSON text itself, for
example from ``show --raw``, is accepted too.  The output of QEMU's ``-dump-vmstate``
has less information, see :mod:`~qemu_svm.stream.vmstate.fit`.
"""

from __future__ import annotations

from qemu_svm.errors import SourceError
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.source.base import Source
from qemu_svm.stream.model import read_stream
from qemu_svm.stream.vmstate import description as vmdesc
from qemu_svm.stream.vmstate.description import Description
from qemu_svm.stream.vmstate.dump import MACHINE, Dump, parse_dump


def description_of(source: Source, limits: Limits = DEFAULT) -> Description | Dump:
    """Return the description in a stream or in a JSON text, or a dump.

    :raises SourceError: ``source`` has no description.
    :raises StreamError: the description is damaged.
    """
    if source.read_at(0, 64).lstrip()[:1] == b"{":
        text = source.read_at(0, limits.description_bytes + 1)
        if f'"{MACHINE}"'.encode() in text:
            return parse_dump(text, limits)
        found = vmdesc.parse(text, 0, limits)
    else:
        described = read_stream(source, limits)
        if described.description is None:
            raise SourceError(
                f"'{source.path}' has no description to lend",
                hint="use a complete stream of the same machine and QEMU",
            )
        found = described.description
    if not found.devices:
        raise SourceError(
            f"the description in '{source.path}' has no devices",
            hint="use a complete stream of the same machine and QEMU",
        )
    return found
