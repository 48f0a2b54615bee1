"""The report of ``lab patch``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text

from qemu_svm.lab.trial.trial import Change, Difference, Trial
from qemu_svm.model.observed import comparable
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING
from qemu_svm.render.text.observed import observed
from qemu_svm.render.text.steps import BAD, INDENT
from qemu_svm.replay.compare import INSIDE

_SHOWN = 12


def render(result: Trial, *, verbose: bool) -> Iterable[Text]:
    """Return what was built, what differs, and what does not.

    :param verbose: all changes of a step.
    """
    patch, module = result.patch, result.module
    yield Text(f"{printable(result.path)} on Linux {printable(result.kernel)}", HEADING)
    yield Text(f"  changes {', '.join(patch.files)}")
    if patch.skipped:
        yield Text(f"  not built: {printable(', '.join(patch.skipped))}", FAINT)
    for words in module.remarks:
        yield Text(f"  patch: {printable(words)}", "yellow")
    for words in module.warnings:
        yield Text(f"  compiler: {printable(words)}", "yellow")
    yield Text(
        f"  {result.guests} guests, {result.plans} plans, {result.sequences} random sequences, "
        f"{result.steps} ioctls and runs on each side, outside and inside"
    )
    for crash in result.crashes:
        side = "with the patch" if crash.with_patch else "without the patch"
        yield Text()
        yield Text(f"the kernel {side} crashed: {printable(crash.words)}", BAD)
        yield Text(f"{INDENT}{printable(crash.plan)}  ({printable(crash.guest)})", FAINT)
    for one in result.differences:
        yield Text()
        yield from _difference(one, verbose=verbose)
    yield Text()
    yield from _verdict(result)


def _difference(one: Difference, *, verbose: bool) -> Iterator[Text]:
    where = "in the kernel's memory only, no ioctl shows it" if one.inside_only else "outside"
    yield Text(f"after step {one.step}, {printable(one.text)}: {where}", BAD)
    more = f", and {one.plans - 1} more plans" if one.plans > 1 else ""
    yield Text(f"{INDENT}{printable(one.plan)}  ({printable(one.guest)}{more})", FAINT)
    shown = one.changes if verbose else one.changes[:_SHOWN]
    for change in shown:
        yield Text(f"{INDENT}{_change(change)}")
    if len(shown) < len(one.changes):
        yield Text(f"{INDENT}{len(one.changes) - len(shown)} more (-v)", FAINT)


def _change(change: Change) -> str:
    name = change.name.removeprefix(INSIDE)
    whose = f", {change.owner}" if change.owner else ""
    return (
        f"{name}  without {_words(change.name, change.without)}, "
        f"with {_words(change.name, change.with_patch)}{whose}"
    )


def _words(name: str, value: Any) -> str:
    return "none" if value is None else observed(name, comparable(name, value))


def _verdict(result: Trial) -> Iterator[Text]:
    outside = [one for one in result.differences if not one.inside_only]
    if result.good:
        yield Text("nothing differs: every errno, every answer, both VMCBs and the caches", "green")
        return
    if result.differences and not outside:
        yield Text("errno and every answer of the ioctls are the same with the patch and without")
    count = len(result.differences) + len(result.crashes)
    yield Text(f"the patch changes what KVM does in {count} ways", BAD)
