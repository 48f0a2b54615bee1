"""The report of ``lab conform``, and its JSON document."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from rich.text import Text

from qemu_svm.render.escape import printable
from qemu_svm.render.json.inspect import SCHEMA_VERSION
from qemu_svm.render.json.replay import shown
from qemu_svm.render.text.base import FAINT, HEADING
from qemu_svm.render.text.replay import content
from qemu_svm.replay.conform import Disagreement, Report
from qemu_svm.replay.job import kernel_of


def command(one: Disagreement, kernel: str, *, npt: bool) -> str:
    """The command that shows one disagreement again."""
    words = ["svmstream", "replay", one.guest.place, "--plan", one.shrunk, "--lab", kernel]
    words += ["--compare", "--shorten"]
    words += [] if one.options.irqchip else ["--no-irqchip"]
    words += [] if npt else ["--npt", "off"]
    return shlex.join(words)


def report(found: Report, kernel: str, *, npt: bool) -> Iterable[Text]:
    """What was tried, and each disagreement with its command."""
    yield Text(
        f"Linux {printable(kernel_of(found.probe))} against profile {found.profile}: "
        f"{found.sequences} sequences of seed {found.seed}, {found.steps} ioctls and runs",
        HEADING,
    )
    for why, count in sorted(found.open.items()):
        yield Text(f"  {count} not compared to the end: {why}", FAINT)
    for guest, plan, words in found.crashes:
        yield Text(f"  the host kernel did not survive {printable(plan)} ({printable(guest)}):")
        yield Text(f"    {printable(words)}", FAINT)
    for one in found.disagreements:
        wrong = one.mismatch
        ours, theirs = (
            "none" if value is None else content(wrong.name, value)
            for value in (wrong.model, wrong.kernel)
        )
        yield Text(f"  step {one.step}, {wrong.name}: kernel {theirs}, model {ours}", "bold red")
        yield Text(f"    {printable(command(one, kernel, npt=npt))}")
    count = len(found.disagreements)
    style = "bold red" if count else "bold green"
    yield Text(f"model and kernel disagree on {count} of {found.sequences} sequences", style)


def document(found: Report, kernel: str, *, npt: bool) -> dict[str, Any]:
    """The JSON document, version 1 (``docs/replay.md``)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kernel": kernel_of(found.probe),
        "profile": found.profile,
        "npt": npt,
        "seed": found.seed,
        "sequences": found.sequences,
        "steps": found.steps,
        "repeated": found.repeated,
        "ends": dict(found.ends),
        "open": dict(found.open),
        "crashes": [
            {"guest": guest, "plan": plan, "host": words} for guest, plan, words in found.crashes
        ],
        "disagreements": [
            {
                "guest": one.guest.name,
                "sequence": one.number,
                "plan": one.plan,
                "shrunk": one.shrunk,
                "step": one.step,
                "name": one.mismatch.name,
                "kernel": shown(one.mismatch.name, one.mismatch.kernel),
                "model": shown(one.mismatch.name, one.mismatch.model),
                "command": command(one, kernel, npt=npt),
            }
            for one in found.disagreements
        ],
    }
