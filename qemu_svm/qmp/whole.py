"""Whether what has arrived is a whole stream, which QEMU's status alone does not show."""

from __future__ import annotations

from qemu_svm.errors import StreamError, Truncated
from qemu_svm.limits import DEFAULT
from qemu_svm.source.base import Source
from qemu_svm.stream.constants import RecordType
from qemu_svm.stream.model import read_stream
from qemu_svm.stream.tail import find_description


def unfinished(source: Source) -> str | None:
    """Return why the input is not a stream with its end; None if it is one.

    The stream of a board that is not known may be read wrongly: then its last byte counts,
    which is EOF if the stream has no description.
    """
    size = source.size()
    if not size:
        return "it sent nothing"
    try:
        stream = read_stream(source)
    except StreamError as error:
        return f"what it sent is not a stream: {error}"
    if stream.complete or find_description(source, DEFAULT) is not None:
        return None
    cut = any(isinstance(problem, Truncated) for problem in stream.problems)
    if not cut and source.read_at(size - 1, 1)[0] == RecordType.EOF:
        return None
    why = f": {stream.problems[0]}" if stream.problems else ""
    return f"the {size} bytes that it sent are not a whole stream{why}"
