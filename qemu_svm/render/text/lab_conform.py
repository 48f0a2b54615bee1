"""The report of ``lab conform``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.render.conform_words import command
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING
from qemu_svm.render.text.observed import observed
from qemu_svm.replay.job import kernel_of
from qemu_svm.replay.results import ConformReport


def render(result: ConformReport) -> Iterable[Text]:
    """Return what was tried, and each disagreement with the command that shows it."""
    found = result.report
    yield Text(
        f"Linux {printable(kernel_of(found.probe))} against profile {found.profile}: "
        f"{found.sequences} sequences of seed {found.seed}, {found.steps} ioctls and runs"
        + ("" if found.layout is None else ", kernel memory compared"),
        HEADING,
    )
    for why, count in sorted(found.open.items()):
        yield Text(f"  {count} not compared to the end: {why}", FAINT)
    for guest, plan, words in found.crashes:
        yield Text(f"  the host kernel crashed on {printable(plan)} ({printable(guest)}):")
        yield Text(f"    {printable(words)}", FAINT)
    for one in found.disagreements:
        wrong = one.mismatch
        ours, theirs = (
            "none" if value is None else observed(wrong.name, value)
            for value in (wrong.model, wrong.kernel)
        )
        yield Text(f"  step {one.step}, {wrong.name}: kernel {theirs}, model {ours}", "bold red")
        yield Text(f"    {printable(command(one, result))}")
    count = len(found.disagreements)
    style = "bold red" if count else "bold green"
    yield Text(f"model and kernel disagree on {count} of {found.sequences} sequences", style)
