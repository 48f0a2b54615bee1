"""Words that text and JSON of ``lab conform`` share."""

from __future__ import annotations

import shlex

from qemu_svm.replay.conform import Disagreement
from qemu_svm.replay.results import ConformReport


def command(one: Disagreement, result: ConformReport) -> str:
    """Return the command line that shows one disagreement again."""
    words = ["svmstream", "replay", one.guest.place, "--plan", one.shrunk]
    words += ["--lab", result.kernel, "--compare", "--shorten"]
    words += [] if result.report.layout is None else ["--inside"]
    words += [] if one.options.irqchip else ["--no-irqchip"]
    words += [] if result.npt else ["--npt", "off"]
    return shlex.join(words)
