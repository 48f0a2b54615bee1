"""What is wrong with the RAM of a stream, and whether all of it was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qemu_svm.errors import StreamError, Truncated
from qemu_svm.stream.model import Stream
from qemu_svm.stream.ram.records import RamState
from qemu_svm.stream.ram.runs import PageKind
from qemu_svm.stream.records import Kind

if TYPE_CHECKING:
    from qemu_svm.stream.ram.multifd import Channel
    from qemu_svm.stream.ram.postcopy import Extra
    from qemu_svm.stream.ram.read import Ram


def is_complete(stream: Stream, ram: Ram) -> bool:
    """Whether stream and channels were read to their ends without damage."""
    return (stream.complete or ram.resumed) and not all_problems(stream, ram)


def all_problems(stream: Stream, ram: Ram) -> tuple[StreamError, ...]:
    """Problems of the stream, then those of its RAM; each once."""
    ours, more = stream.problems, ram.problems
    if ram.resumed:
        # The further connections exist because the first one broke off.
        ours, more = (
            tuple(problem for problem in part if not _broken_off(stream, problem))
            for part in (ours, more)
        )
    seen = {(problem.offset, problem.what) for problem in ours}
    return (*ours, *(one for one in more if (one.offset, one.what) not in seen))


def _broken_off(stream: Stream, problem: StreamError) -> bool:
    return isinstance(problem, Truncated) and problem.offset == stream.source.size()


def is_postcopy(stream: Stream) -> bool:
    """Whether the stream has commands of postcopy."""
    return any(
        record.kind is Kind.COMMAND and (record.name or "").startswith("POSTCOPY")
        for record in stream.records
    )


def channel_problems(
    stream: Stream, state: RamState, channels: Sequence[Channel], marks: int, flushes: int
) -> Iterator[StreamError]:
    """Yield what shows that multifd channels are missing, or are another stream's.

    :param state: after all RAM records.
    :param marks: where the stream waits for the channels.
    :param flushes: those of them that are MULTIFD_FLUSH records.
    """
    if channels and stream.complete:
        from qemu_svm.stream.ram.multifd_set import disagreements

        yield from disagreements(channels, marks, stream.source.size())
    elif not channels and (flushes or (stream.complete and _without_content(state))):
        from qemu_svm.stream.ram.multifd_set import channels_wanted

        yield channels_wanted(stream.source.size())


def _without_content(state: RamState) -> bool:
    # Senders before 8.1 write no other sign of multifd: there are zero pages only, and
    # fewer than the guest has.
    assert state.runs is not None
    pages = sum(-(-block.used_length // state.page_size) for block in state.blocks)
    zero = state.runs.sums[PageKind.ZERO]
    return not (state.shared or state.mapped) and 0 < zero == state.runs.records < pages


def extra_problems(extras: Sequence[Extra]) -> list[StreamError]:
    """Problems of further connections.

    A connection that only ends too early is none if a later one resumes it.
    """
    return [
        extra.problem
        for at, extra in enumerate(extras)
        if extra.problem is not None
        and not (
            isinstance(extra.problem, Truncated)
            and any(later.kind == "resumed" for later in extras[at + 1 :])
        )
    ]
