"""The report of ``simulate``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.text import Text

from qemu_svm.findings.recorded import RecordedDifference, difference_words
from qemu_svm.findings.results import SimulationReport
from qemu_svm.findings.verdict import Judgement, Verdict
from qemu_svm.model.area import Area
from qemu_svm.model.kernels.derive import COMMITS
from qemu_svm.model.kvm.run import Outcome
from qemu_svm.model.kvm.vcpu import RunEnd
from qemu_svm.model.profile import Profile
from qemu_svm.model.profiles import ranges
from qemu_svm.model.simulate import Result, Simulation, Snapshot
from qemu_svm.nested import bits
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import (
    FAINT,
    HEADING,
    KEY,
    VERDICTS,
    columns,
    named_bits,
    register,
)
from qemu_svm.render.text.simulate_against import against_lines
from qemu_svm.render.text.steps import INDENT, carried_line, change, heading, indented

_SHOWN = (
    *("efer", "cr0", "cr3", "cr4", "rip", "rsp", "rax", "rflags", "dr6", "dr7"),
    *("cs", "ss", "ds", "es", "gdtr", "idtr", "cpl", "int_state"),
    *("asid", "nested_ctl", "nested_cr3"),
)
_QUIET = frozenset({"arch"})
_BRIEF = 8


def render(result: SimulationReport, *, verbose: bool) -> Iterable[Text]:
    """Return the verdict and the steps of one simulation, or a table of several.

    :param verbose: the whole state after every step.
    """
    path = printable(result.machine.stream.source.path)
    put = result.put
    of = "" if put is None else f" ({put.label})"
    yield Text(f"{path}: plan {printable(result.plan)}{of}", HEADING)
    if result.against is not None:
        yield from against_lines(result, result.against)
        return
    if len(result.simulations) > 1:
        yield from _table(result)
        return
    (one,), (judgement,) = result.simulations, result.judgements
    kernel = one.kernel
    yield Text(f"kernel {kernel.name}: {kernel.about}")
    basis = "; ".join(
        f"{kind} {', '.join(names)}"
        for kind, names in (("measured on", kernel.measured), ("read in", kernel.read))
        if names
    )
    yield Text(f"  {basis or 'derived'}", FAINT)
    yield from _verdict(judgement)
    if result.recorded:
        yield _recorded(result.recorded[0], kernel)
    if put is not None and put.carried:
        yield Text(f"before the put: {put.carried}")
    before = one.start
    carried = [] if verbose else [step for step in one.results if step.step.carried]
    if carried:
        yield Text()
        yield carried_line([step.step.text for step in carried])
        before = carried[-1].state
    for step in one.results[len(carried) :]:
        yield Text()
        yield from _step(step, before, verbose=verbose)
        before = step.state


def _recorded(found: RecordedDifference | None, kernel: Profile) -> Text:
    if found is None:
        return Text("recording: KVM answered as the model does")
    line = Text("recording: ").append("first difference", "bold red")
    return line.append(f", {printable(difference_words(found, f'the model of {kernel.name}'))}")


def _verdict(judgement: Judgement) -> Iterator[Text]:
    line = Text("verdict: ", HEADING)
    yield line.append(judgement.verdict.value, VERDICTS[judgement.verdict])
    for text in judgement.lines[:_BRIEF]:
        yield Text(f"  {text}")
    if len(judgement.lines) > _BRIEF:
        yield Text(f"  and {len(judgement.lines) - _BRIEF} more registers (--json lists them)")


def _table(result: SimulationReport) -> Iterator[Text]:
    # Kernels that follow each other and answer alike are one row.
    pairs = zip(result.simulations, result.judgements, strict=True)
    rows: list[list[str | Text]] = []
    for (_, verdict, words), alike in groupby(pairs, lambda pair: _answer(*pair)):
        kernels = [one.kernel for one, _ in alike]
        names = ranges(kernel.name for kernel in kernels)
        rows.append([names, _basis(kernels), Text(verdict.value, VERDICTS[verdict]), words])
    yield from columns(rows, ("kernel", "basis", "verdict", "first reason"))


def _answer(one: Simulation, judgement: Judgement) -> tuple[bool, Verdict, str]:
    # Also whether it is a release: proposals have rows of their own.
    errors = [f"{r.step.text.split(':')[0]} {r.failed}" for r in one.results if r.failed]
    words = ", ".join(errors) if errors else (judgement.lines[0] if judgement.lines else "")
    return any(one.kernel.numbers), judgement.verdict, words


def _basis(kernels: Sequence[Profile]) -> str:
    measured = [version for kernel in kernels for version in kernel.measured]
    if measured:
        return "measured on " + ", ".join(measured)
    read = any(kernel.read != COMMITS for kernel in kernels)
    return "read" if read else "derived"


_INSTEAD = {
    RunEnd.WAITS: "waits for INIT or SIPI",
    RunEnd.RESET: "resets the vCPU (INIT)",
    RunEnd.SMI: "enters SMM first",
}


def _how(outcome: Outcome) -> str:
    if outcome.result in _INSTEAD:
        return _INSTEAD[outcome.result]
    level = f"entered {outcome.level}, " if outcome.level else ""
    return f"{level}ended with {outcome.result}"


def _step(result: Result, before: Snapshot, *, verbose: bool) -> Iterator[Text]:
    line = heading(result.number, result.step.text, result.errno)
    if result.errno:
        line.append(f" ({result.failed})")
    elif result.outcome is not None:
        line.append(f"  {_how(result.outcome)}")
    yield line
    yield from (Text(f"{INDENT}note: {note}", "yellow") for note in result.notes)
    state = result.state
    yield from _flags(before, state)
    for name, area in state.areas.items():
        old = before.areas.get(name)
        rows = list(_changes(area, old, verbose=verbose))
        if rows and (verbose or name not in _QUIET or result.outcome is None):
            yield Text(f"{INDENT}{name}", KEY)
            yield from indented(rows)
    if result.outcome is not None and result.outcome.entry is not None:
        yield from _entry(result)


def _flags(before: Snapshot, state: Snapshot) -> Iterator[Text]:
    words = []
    for name in ("guest_mode", "gif", "smm", "run_pending", "mmu"):
        old, new = getattr(before, name), getattr(state, name)
        if old != new:
            words.append(f"{name} {_word(old)} -> {_word(new)}")
    if before.nested.flags != state.nested.flags:
        flags = state.nested.flags
        text = Text(f"{INDENT}KVM_GET_NESTED_STATE would return flags ")
        yield text.append_text(named_bits(f"{flags:#x}", bits.FLAGS.names(flags)))
    if words:
        yield Text(INDENT + ", ".join(words))


def _word(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _changes(area: Area, old: Area | None, *, verbose: bool) -> Iterator[list[str | Text]]:
    shown = [name for name in area if verbose or name in _SHOWN]
    for name in shown:
        value = area.content(name)
        previous = old.content(name) if old is not None and name in old else None
        writer = area.writer(name)
        if value == previous and not verbose:
            continue
        words = None if previous is None else register(previous, name)
        text = change(register(value, name), words, changed=value != previous)
        by = f"step {writer.step}" if writer.step else "reset"
        yield [f"  {name}", text, Text(by, FAINT)]


def _entry(result: Result) -> Iterator[Text]:
    outcome = result.outcome
    assert outcome is not None
    assert outcome.entry is not None
    yield Text(f"{INDENT}the processor enters {outcome.level} with", KEY)
    yield from _brief(outcome.entry)
    if outcome.l1 is not None:
        yield Text(f"{INDENT}after the next #VMEXIT L1 continues with", KEY)
        yield from _brief(outcome.l1)


def _brief(area: Area) -> Iterator[Text]:
    rows: list[list[str | Text]] = []
    for name in ("rip", "rsp", "cr0", "cr3", "efer", "cs"):
        if name in area:
            writer = area.writer(name)
            by = f"step {writer.step}" if writer.step else "reset"
            rows.append([f"  {name}", register(area.content(name), name), Text(by, FAINT)])
    yield from indented(rows)
