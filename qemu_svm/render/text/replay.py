"""The report of ``replay``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text

from qemu_svm.model.observed import Observed, comparable
from qemu_svm.nested import bits
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, KEY, columns
from qemu_svm.replay.compare import Comparison, Mismatch, StepComparison
from qemu_svm.replay.job import ReplayResult, ReplayStep, RunResult, kernel_of
from qemu_svm.replay.replay import Replay
from qemu_svm.x86.segments import attrib_words

_QUIET = ("ctl.", "shared.", "msr.")
_L1 = (
    *("rip", "rsp", "rax", "rflags"),
    *("cr0", "cr3", "cr4", "efer", "cs", "ss", "ds", "es", "gdtr", "idtr"),
)
_BAD = "bold red"
_EXIT_CODE = slice(0x70, 0x78)


def render(replay: Replay, *, verbose: bool) -> Iterable[Text]:
    """Every step with what it changed, and how it ended."""
    simulation, comparison = replay.simulation, replay.comparison
    yield Text(f"{printable(replay.path)}: plan {printable(replay.plan)}", HEADING)
    against = f", compared with profile {simulation.kernel.name}" if simulation else ""
    yield Text(f"Linux {printable(kernel_of(replay.probe))}{against}")
    compared = {one.number: one for one in comparison.steps} if comparison else {}
    before: Observed = {}
    for step in replay.result.steps:
        yield Text()
        yield from _step(step, before, compared.get(step.number), verbose=verbose)
        before = step.state
    yield Text()
    yield from _ending(replay.result)
    if comparison is not None:
        yield from _verdict(comparison)


def _step(
    step: ReplayStep, before: Observed, compared: StepComparison | None, *, verbose: bool
) -> Iterator[Text]:
    line = Text(f"{step.number:2} {printable(step.step.text)}", HEADING)
    if step.errno:
        line.append(f"  {step.errno}", _BAD)
    elif step.run is not None:
        line.append("  " + _how(step.run), "" if step.run.result == "exit" else _BAD)
    yield line
    rows = list(_changes(before, step.state, verbose=verbose)) if step.run is None else []
    yield from (Text("     ").append_text(row) for row in columns(rows))
    if step.run is not None and step.run.result == "exit":
        yield from _returned(step)
    if compared is not None:
        yield from (Text("     ").append_text(_marked(one)) for one in compared.mismatches)
        if compared.open:
            yield Text(f"     not compared further: {compared.open}", FAINT)


_HOW = {
    "exit": "L2 ran until L1 had control again",
    "hang": "did not come back in time",
    "skipped": "not entered: an emulated host does not survive this",
}


def _how(run: RunResult) -> str:
    if run.result in _HOW:
        return _HOW[run.result]
    details = ", ".join(f"{name} {value:#x}" for name, value in run.found.detail.items())
    return f"ended with {run.result}" + (f" ({details})" if details else "")


def _changes(before: Observed, after: Observed, *, verbose: bool) -> Iterator[list[str | Text]]:
    for name, value in after.items():
        old = before.get(name)
        if value == old and not verbose:
            continue
        if not verbose and (not before or name.startswith(_QUIET)):
            continue
        text = Text(content(name, value), "bold" if value != old else "")
        if old is not None and value != old:
            text.append(f"  was {content(name, old)}", FAINT)
        yield [f"  {name}", text]


def content(name: str, value: Any) -> str:
    """A part of the state in words."""
    if isinstance(value, list) and len(value) == 4:
        selector, base, limit, attrib = value
        system = name.endswith(("tr", "ldtr"))
        return (
            f"{selector:#x} base {base:#x} limit {limit:#x} {attrib_words(attrib, system=system)}"
        )
    if isinstance(value, list):
        return f"base {value[0]:#x} limit {value[1]:#x}"
    if name == "nested.flags":
        return f"{value:#x} {' '.join(bits.FLAGS.names(value))}".rstrip()
    return f"{value:#x}" if isinstance(value, int) else printable(str(value))


def _returned(step: ReplayStep) -> Iterator[Text]:
    assert step.run is not None
    if step.run.vmcb12:
        code = int.from_bytes(step.run.vmcb12[_EXIT_CODE], "little")
        yield Text(f"     vmcb12 in memory says exit code {code:#x} {exit_name(code)}")
    yield Text("     L1 goes on with", KEY)
    rows: list[list[str | Text]] = []
    for name in _L1:
        key = next(k for k in (f"regs.{name}", f"sregs.{name}") if k in step.state)
        rows.append([f"  {name}", content(key, step.state[key])])
    yield from (Text("     ").append_text(row) for row in columns(rows))


def _marked(one: Mismatch) -> Text:
    text = Text("DIFFERS ", _BAD)
    return text.append(
        f"{one.name}: kernel {_shown(one.name, one.kernel)}, model {_shown(one.name, one.model)}"
    )


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "none"
    return content(name, comparable(name, value))


def _ending(result: ReplayResult) -> Iterator[Text]:
    if result.host:
        first = printable(result.host.splitlines()[0])
        yield Text(f"the host kernel did not survive: {first}", _BAD)
    if result.error:
        yield Text(f"the replay failed: {printable(result.error)}", _BAD)
    if result.end != "done":
        yield Text(f"ended by {printable(result.end)} after step {len(result.steps)}", _BAD)


def _verdict(comparison: Comparison) -> Iterator[Text]:
    count = sum(len(step.mismatches) for step in comparison.steps) + (comparison.ending is not None)
    if comparison.ending is not None:
        yield _marked(comparison.ending)
    if count:
        yield Text(f"model and kernel differ in {count} places", _BAD)
    else:
        yield Text(f"model and kernel agree in {len(comparison.steps)} steps", "bold green")
