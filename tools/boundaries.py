#!/usr/bin/env python3
"""Hold boundaries of the table of changes against kernels: both sides, each in a box.

``tests/model/kernels/boundaries.json`` has, for each boundary, a plan and the nearest two
kernels that Debian's mirrors have, one before and one after the update, and what they
answered.  Each kernel is booted once and performs all its plans; the table that is
printed has both answers, and whether they are the recorded ones.  With names of kernels
as arguments, only those; ``--write`` records the answers; ``--missing`` takes kernels of
which answers are missing.  Exit status 1 if an answer is not the recorded one.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qemu_svm.errors import SvmStreamError
from qemu_svm.lab import Box
from qemu_svm.lab.kvm import InBox
from qemu_svm.lab.progress import Progress
from qemu_svm.machine import read_machine
from qemu_svm.model import plans
from qemu_svm.replay.answers import Answer, answer_of
from qemu_svm.replay.conform import Guest, read_guest
from qemu_svm.replay.job import ReplayJob, ReplayOptions
from qemu_svm.replay.replay import perform
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests/model/kernels/boundaries.json"
SECONDS = 5.0
_WARNING = re.compile(r"WARNING: .*? at (\S+?):\d+ (\w+)\+|WARNING: (\S+?):\d+ at (\w+)\+")

Json = dict[str, Any]


class Shown(Progress):
    """Prints what is fetched."""

    def note(self, what: str) -> None:
        """Print it."""
        print(f"    {what}", flush=True)


def recorded(answer: Answer, watched: list[str], warning: str | None) -> Json:
    """Return an answer as the file has it.

    :param watched: parts of the state after the last step that belong to it.
    """
    state = dict(answer.steps[-1].state) if answer.steps else {}
    found: Json = {
        "steps": [
            {
                name: value
                for name, value in (
                    ("errno", step.errno), ("run", step.run), ("exit_code", step.exit_code)
                )
                if value is not None
            }
            for step in answer.steps
        ]
    }  # fmt: skip
    if answer.end != "done":
        found["end"] = answer.end
    if answer.error:
        found["error"] = answer.error
    if warning:
        found["warning"] = warning
    if watched:
        found["state"] = {name: state.get(name) for name in watched}
    return found


def performed(kernel: str, cases: list[Json], guests: dict[str, Path]) -> dict[str, Json]:
    """Return what one kernel answers, by plan."""
    found = {}

    def boot(share: Path) -> Box:
        return Box(kernel=kernel, share=share, progress=Shown())

    with InBox(boot) as target:
        probe = target.probe()
        for number, case in enumerate(cases):
            with open_source(str(guests[case["guest"]])) as source:
                machine = read_machine(read_stream(source))
                guest: Guest = read_guest(machine, target.folder / f"ram{number}")
                options = ReplayOptions(seconds=SECONDS, emulated=True)
                job = ReplayJob(str(number), guest.saved, plans.parse(case["plan"]), options)
                before = len(target.box.console())
                (result,) = perform(target, guest.ram, [job], probe)
                console = "" if result.host else target.box.console()[before:]
                guest.ram.close()
            words = _WARNING.search(console)
            warning = None if words is None else " ".join(one for one in words.groups() if one)
            found[case["plan"]] = recorded(
                answer_of(result, state=True), case.get("watched", []), warning
            )
    return found


def words(answer: Json | None) -> str:
    """Return an answer on one line."""
    if answer is None:
        return "not recorded"
    steps = answer["steps"]
    parts = [f"{number} {step['errno']}" for number, step in enumerate(steps, 1) if "errno" in step]
    parts += [
        f"{number} {step['run']}" + (f" {step['exit_code']:#x}" if "exit_code" in step else "")
        for number, step in enumerate(steps, 1)
        if "run" in step
    ]
    parts += [f"{name} {value:#x}" for name, value in answer.get("state", {}).items()]
    if "end" in answer:
        why = answer.get("error", answer["end"]).partition(": ")[2].partition(" (")[0]
        parts.append(f"ends after {len(steps)}, {why or answer['end']}")
    if "warning" in answer:
        parts.append(f"WARN {answer['warning']}")
    return ", ".join(parts) or "accepted"


def main() -> int:
    """Run it."""
    write = "--write" in sys.argv
    missing = "--missing" in sys.argv
    only = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    document: Json = json.loads(FILE.read_text())
    cases, answers = document["boundaries"], document["answers"]
    streams = ROOT / "streams"
    guests = {name: streams / f"{name}.mig.zst" for name in {case["guest"] for case in cases}}
    now: dict[str, dict[str, Json]] = {}
    for kernel in dict.fromkeys(case[side] for case in cases for side in ("before", "after")):
        mine = [case for case in cases if kernel in (case["before"], case["after"])]
        known = answers.get(kernel, {})
        if missing and all(case["plan"] in known for case in mine):
            continue
        if only and kernel not in only:
            continue
        started = time.monotonic()
        now[kernel] = performed(kernel, mine, guests)
        print(f"{kernel}: {len(mine)} plans, {time.monotonic() - started:.0f} s", flush=True)
        if write:
            document = json.loads(FILE.read_text())  # it may have been edited meanwhile
            document["answers"].setdefault(kernel, {}).update(now[kernel])
            with tempfile.NamedTemporaryFile("w", dir=FILE.parent, delete=False) as file:
                file.write(json.dumps(document, indent=1) + "\n")
            Path(file.name).replace(FILE)
    wrong = 0
    for case in cases:
        print(f"\n{case['change']}: {case['before']} | {case['after']}  {case['plan']}")
        for side in ("before", "after"):
            old = answers.get(case[side], {}).get(case["plan"])
            new = now.get(case[side], {}).get(case["plan"], old)
            wrong += new != old
            mark = "" if new == old else f"  recorded: {words(old)}"
            print(f"  {side:6} {words(new)}{mark}")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SvmStreamError as error:
        sys.exit(f"boundaries: {error}")
