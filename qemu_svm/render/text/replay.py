"""The report of ``replay``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text

from qemu_svm.findings.recorded import difference_words
from qemu_svm.inside.view import Inside
from qemu_svm.model.observed import Observed, comparable
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, KEY
from qemu_svm.render.text.observed import observed
from qemu_svm.render.text.steps import BAD, INDENT, carried_line, change, heading, indented
from qemu_svm.replay.compare import Comparison, Mismatch, StepComparison
from qemu_svm.replay.job import ReplayResult, ReplayStep, RunResult, kernel_of
from qemu_svm.replay.replay import Replay

_QUIET = ("ctl.", "shared.", "msr.")
_QUIET_INSIDE = ("arch.", "requests", "hflags", "cpu", "mode", "exits")
_SAVE = "nested.save."
_BRIEF_SAVE = frozenset({"cr0", "cr3", "cr4", "efer"})
_L1 = (
    *("rip", "rsp", "rax", "rflags"),
    *("cr0", "cr3", "cr4", "efer", "cs", "ss", "ds", "es", "gdtr", "idtr"),
)
_EXIT_CODE = slice(0x70, 0x78)


def render(result: Replay, *, verbose: bool) -> Iterable[Text]:
    """Return every step with what it changed, and how the replay ended.

    :param verbose: the whole state after every step.
    """
    replayed, comparison = result.result, result.comparison
    of = "" if result.put is None else f" ({result.put.label})"
    yield Text(f"{printable(result.path)}: plan {printable(result.plan)}{of}", HEADING)
    against = ""
    if result.simulation is not None:
        against = f", compared with profile {result.simulation.kernel.row}"
    yield Text(f"Linux {printable(kernel_of(result.probe))}{against}")
    compared = {one.number: one for one in comparison.steps} if comparison else {}
    before: Observed = {}
    inside: Inside = replayed.start or {}
    if result.put is not None and result.put.carried:
        yield Text(f"before the put: {result.put.carried}")
    carried = [] if verbose else [step for step in replayed.steps if step.step.carried]
    if carried and all(step.errno is None for step in carried):
        yield Text()
        yield carried_line([step.step.text for step in carried])
        before, inside = carried[-1].state, carried[-1].inside or {}
    else:
        carried = []
    for step in replayed.steps[len(carried) :]:
        yield Text()
        yield from _step(step, before, inside, compared.get(step.number), verbose=verbose)
        before, inside = step.state, step.inside or {}
    yield Text()
    yield from _ending(replayed)
    if result.lost:
        yield Text("the vCPU ran outside guest mode: L2's code continued as L1", BAD)
    if result.put is not None:
        yield _recorded(result)
    if comparison is not None:
        yield from _verdict(comparison)


def _step(
    step: ReplayStep,
    before: Observed,
    inside: Inside,
    compared: StepComparison | None,
    *,
    verbose: bool,
) -> Iterator[Text]:
    line = heading(step.number, step.step.text, step.errno)
    if step.refused_msr is not None:
        line.append(f" at MSR {step.refused_msr:#x}", BAD)
    if not step.errno and step.run is not None:
        line.append("  " + _how(step.run), "" if step.run.result == "exit" else BAD)
    yield line
    if step.run is None and not step.killed:
        yield from indented(list(_changes(before, step.state, verbose=verbose)))
    if step.run is not None and step.run.result == "exit":
        yield from _returned(step)
    if step.inside is not None:
        yield from _inside(inside, step.inside, verbose=verbose)
    if compared is not None:
        yield from (Text(INDENT).append_text(_marked(one)) for one in compared.mismatches)
        if compared.open:
            yield Text(f"{INDENT}not compared further: {compared.open}", FAINT)


_HOW = {
    "exit": "L2 ran until L1 got control again",
    "hang": "did not return in time",
    "skipped": "not entered: an emulated host would crash",
}


def _how(run: RunResult) -> str:
    if run.result in _HOW:
        return _HOW[run.result]
    if run.at_stop:
        return "L2 ran until the replay's OUT, without an exit to L1"
    details = ", ".join(f"{name} {value:#x}" for name, value in run.found.detail.items())
    return f"ended with {run.result}" + (f" ({details})" if details else "")


def _changes(before: Observed, after: Observed, *, verbose: bool) -> Iterator[list[str | Text]]:
    for name, value in after.items():
        old = before.get(name)
        if value == old and not verbose:
            continue
        if not verbose and (not before or name.startswith(_QUIET)):
            continue
        words = None if old is None else observed(name, old)
        yield [f"  {name}", change(observed(name, value), words, changed=value != old)]


def _inside(before: Inside, after: Inside, *, verbose: bool) -> Iterator[Text]:
    current = f"{after['current']} is current" if "current" in after else "there is one VMCB"
    yield Text(f"{INDENT}inside: {current}{_save_cache(after)}", KEY)
    rows: list[list[str | Text]] = []
    for name, value in after.items():
        old = before.get(name)
        quiet = name.startswith(_QUIET_INSIDE) or ".control." in name
        if not verbose and (value == old or quiet or (old is None and not _any(value))):
            continue
        words = None if old is None else observed(name, old)
        rows.append([f"  {name}", change(observed(name, value), words, changed=value != old)])
    yield from indented(rows)


def _save_cache(inside: Inside) -> str:
    cache = {name: value for name, value in inside.items() if name.startswith(_SAVE)}
    if not cache:
        return ""
    full = [name for name, value in cache.items() if _any(value)]
    numbers = [f"{name.removeprefix(_SAVE)} {cache[name]:#x}" for name in full
               if name.removeprefix(_SAVE) in _BRIEF_SAVE]  # fmt: skip
    return f", nested.save has {', '.join(numbers)}" if full else ", nested.save is empty"


def _any(value: Any) -> bool:
    return any(value) if isinstance(value, list) else bool(value)


def _returned(step: ReplayStep) -> Iterator[Text]:
    assert step.run is not None
    if step.run.vmcb12:
        code = int.from_bytes(step.run.vmcb12[_EXIT_CODE], "little")
        yield Text(f"{INDENT}vmcb12 in memory has exit code {code:#x} {exit_name(code)}")
    yield Text(f"{INDENT}L1 continues with", KEY)
    rows: list[list[str | Text]] = []
    for name in _L1:
        key = next(k for k in (f"regs.{name}", f"sregs.{name}") if k in step.state)
        rows.append([f"  {name}", observed(key, step.state[key])])
    yield from indented(rows)


def _marked(one: Mismatch) -> Text:
    text = Text("DIFFERS ", BAD)
    return text.append(
        f"{one.name}: kernel {_shown(one.name, one.kernel)}, model {_shown(one.name, one.model)}"
    )


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "none"
    return observed(name, comparable(name, value))


def _recorded(result: Replay) -> Text:
    if result.recorded is None:
        return Text("KVM answers as in the recording")
    words = difference_words(result.recorded, f"Linux {kernel_of(result.probe)}")
    return Text(f"first difference from the recording: {printable(words)}", BAD)


def _ending(replayed: ReplayResult) -> Iterator[Text]:
    if replayed.killed:
        yield Text(f"KVM killed the VM in step {replayed.killed}: every later ioctl is EIO", BAD)
    if replayed.host:
        first = printable(replayed.host.splitlines()[0])
        yield Text(f"the host kernel crashed: {first}", BAD)
    if replayed.error:
        yield Text(f"the replay failed: {printable(replayed.error)}", BAD)
    if replayed.end != "done":
        yield Text(f"ended by {printable(replayed.end)} after step {len(replayed.steps)}", BAD)


def _verdict(comparison: Comparison) -> Iterator[Text]:
    count = sum(len(step.mismatches) for step in comparison.steps) + (comparison.ending is not None)
    if comparison.ending is not None:
        yield _marked(comparison.ending)
    if count:
        yield Text(f"model and kernel differ in {count} places", BAD)
    elif comparison.open is not None:
        yield Text(
            f"model and kernel agree up to step {comparison.open.number}, whose end and what "
            "follows could not be compared",
            "bold yellow",
        )
    else:
        yield Text(f"model and kernel agree in {len(comparison.steps)} steps", "bold green")
