"""Opening the streams that verbs are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qemu_svm import api
from qemu_svm.cli.options import Choice, beside, choice, limits, page_size
from qemu_svm.cli.status import report_damage
from qemu_svm.errors import PathError, PlanError, SourceError


@contextmanager
def opened_saved(path: str | None) -> Iterator[api.Dump | None]:
    """Open the input that ``--saved`` names; None without it."""
    if path is None:
        yield None
        return
    with api.open(path, limits=limits()) as dump:
        yield dump


@contextmanager
def opened(
    path: str,
    *,
    channels: Sequence[str] = (),
    description: str | None = None,
    chosen: Choice | None = None,
) -> Iterator[api.Dump]:
    """Open an input, with the limits and the files of the command line.

    :param channels: files of multifd channels, or of further connections of postcopy.
    :param chosen: the put and the VM of a recording; None for what the options say.
    :param description: file with a description for a stream that has none.
    :raises SourceError: something was not found, perhaps because the stream is damaged;
        the damage is printed first.
    """
    files, chosen = beside(), chosen or choice()
    memory = files.pop("memory", None)
    with api.open(
        path,
        channels=channels,
        description=description,
        page_size=page_size(),
        beside=files,
        memory=memory,
        put=chosen.put,
        vm=chosen.vm,
        limits=limits(),
    ) as dump:
        try:
            yield dump
        except PathError as error:
            if isinstance(error, PlanError) or dump.complete:
                raise
            report_damage(dump)
            raise api.not_found(dump, error) from error
        except SourceError as error:
            if isinstance(error.__cause__, PathError):
                report_damage(dump)
            raise
