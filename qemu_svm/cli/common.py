"""What the verbs have in common: opening a stream, printing, status."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import EXIT_FINDINGS, EXIT_UNREADABLE, complain, near
from qemu_svm.errors import PathError, PlanError, SourceError, StreamError
from qemu_svm.source import open_source
from qemu_svm.stream import Walk, read_stream

if TYPE_CHECKING:
    from qemu_svm.limits import Limits
    from qemu_svm.machine import Machine, Vcpu
    from qemu_svm.rules import Finding

_EVERY = 0.2  # seconds between two words of progress

file_argument = click.argument("file", metavar="FILE")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


description_option = click.option(
    "--description",
    "lender",
    metavar="FILE",
    help="If FILE has no description, take that of this stream, its JSON, or what "
    "QEMU's -dump-vmstate wrote.",
)


_LIMITS = "qemu_svm.limits"


def _set_limits(ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> None:
    from qemu_svm.limits import DEFAULT, changed

    try:
        ctx.meta[_LIMITS] = changed(DEFAULT, given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


limit_option = click.option(
    "--limit", metavar="NAME=VALUE", multiple=True, callback=_set_limits, expose_value=False,
    help="How much the input may ask of us (docs/limits.md); may be repeated.",
)  # fmt: skip


def limits() -> Limits:
    """The limits that ``--limit`` has set."""
    from qemu_svm.limits import DEFAULT

    context = click.get_current_context(silent=True)
    found = context.meta.get(_LIMITS, DEFAULT) if context is not None else DEFAULT
    assert isinstance(found, type(DEFAULT))
    return found


@contextmanager
def opened(path: str, walk: Walk = Walk.QUICK, lender: str | None = None) -> Iterator[Machine]:
    """Open a stream and read it as a machine.

    :param lender: a stream or JSON file whose description may be borrowed.
    """
    from qemu_svm.machine import read_machine

    borrowed = None
    if lender is not None:
        from qemu_svm.stream.vmstate.lend import description_of

        try:
            with open_source(lender, limits()) as source:
                borrowed = description_of(source, limits())
        except StreamError as error:
            raise SourceError(f"--description '{lender}': {error}", hint=error.hint) from error
    with open_source(path, limits()) as source:
        machine = read_machine(read_stream(source, limits(), walk, borrowed))
        with excused(lambda: warn(machine), damaged=_damaged(machine)):
            yield machine


@contextmanager
def excused(tell: Callable[[], object], *, damaged: bool) -> Iterator[None]:
    """A path that names nothing is no mistake of the user's where the stream is damaged.

    :param tell: says what is wrong with the stream.
    :raises SourceError: it may be in what could not be read.
    """
    try:
        yield
    except PathError as error:
        if isinstance(error, PlanError) or not damaged:
            raise
        tell()
        raise SourceError(
            f"{error.what}, as far as the stream can be read", hint=near(error)
        ) from error


def vcpu(machine: Machine, index: int) -> Vcpu:
    """Give the vCPU of this number.

    :raises PathError: there is none that can be read.
    """
    found = next((vcpu for vcpu in machine.vcpus if vcpu.index == index), None)
    if found is None:
        known = [str(vcpu.index) for vcpu in machine.vcpus]
        raise PathError(f"the stream has no readable vCPU {index}", near=known)
    return found


def progress(whole: int, of_what: str) -> Callable[[int], None]:
    """What to call with how much is done: a line on a terminal that goes away, else nothing."""
    if not sys.stderr.isatty() or not whole:
        return lambda _done: None
    last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= whole:
            click.echo("\r\x1b[K", nl=False, err=True)
        elif now - last > _EVERY:
            last = now
            click.echo(f"\r{100 * done // whole:3} % {of_what}", nl=False, err=True)

    return show


def status(machine: Machine, found: Sequence[Finding]) -> int:
    """Exit status for a stream and what was found in it."""
    if _damaged(machine):
        return EXIT_UNREADABLE
    from qemu_svm.rules import Severity

    bad = any(finding.severity is not Severity.INFO for finding in found)
    return EXIT_FINDINGS if bad else 0


def _damaged(machine: Machine) -> bool:
    return bool(not machine.stream.complete or machine.stream.problems or machine.problems)


def told(machine: Machine) -> int:
    """Tell on standard error why a stream could not be read whole; the status that follows."""
    warn(machine)
    return status(machine, [])


def warn(machine: Machine) -> None:
    """Tell on standard error why a stream could not be read whole."""
    for problem in machine.stream.problems + machine.problems:
        complain(f"{machine.stream.source.path}: {problem}")
