"""The report of ``trace``; no line is wider than 80 columns unless a name is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich.text import Text

from qemu_svm.recording.records import Header
from qemu_svm.recording.values import decode, ignored
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, STYLES, columns, entry
from qemu_svm.rules import Severity
from qemu_svm.trace.model import Trace, VcpuTrace
from qemu_svm.trace.phases import NESTED, Phase, PhaseKind, Step
from qemu_svm.trace.refusals import Refusal
from qemu_svm.trace.rules import ALL_KERNELS
from qemu_svm.trace.verdict import Content, Put, PutVerdict, RuleOutcome, RuleResult, Whose

_WIDTH = 80
_WHAT = 36
_BRIEF = 12
_HEAD, _TAIL = 6, 3
_NAMED = frozenset({PhaseKind.CREATION, PhaseKind.APIC, PhaseKind.OTHER})
_PUTTING = frozenset({PhaseKind.CREATION, PhaseKind.APIC, PhaseKind.FULL, PhaseKind.RESET})
_VERDICTS = {
    PutVerdict.OK: "green",
    PutVerdict.VIOLATES: STYLES[Severity.ERROR],
    PutVerdict.UNKNOWN: STYLES[Severity.WARNING],
}


def render(result: Trace, *, verbose: bool, arrow: str = "→") -> Iterable[Text]:
    """Return the phases of each vCPU, and which rules each put of nested state keeps.

    :param verbose: every ioctl and every rule.
    :param arrow: between the ioctls of a put.
    """
    yield from _head(result, verbose=verbose)
    explained: set[str] = set()
    for vcpu in result.vcpus:
        yield Text()
        yield from _vcpu(vcpu, verbose=verbose)
        yield from _puts(vcpu, arrow, explained, verbose=verbose)
        if verbose and vcpu.contents:
            yield Text("  what was put")
            for content in vcpu.contents:
                yield from _content(content)
        for one in vcpu.results:
            yield Text(f"  line {one.line}")
            yield from _judged(one, explained) if one.bad else _rest(one)
        yield from _refusals(vcpu.refusals, explained, verbose=verbose)
    if any(one.bad for one in result.refusals) or (verbose and result.refusals):
        yield Text()
        yield Text("The VM and the system", HEADING)
        yield from _refusals(result.refusals, explained, verbose=verbose)
    if verbose and result.others:
        yield Text()
        yield from _others(result)
    if any(vcpu.puts for vcpu in result.vcpus):
        yield Text()
        yield Text("What this log cannot show", HEADING)
        for blind in result.not_shown:
            yield from _wrapped(f"{blind.what} ({', '.join(blind.rules)})", 2)


def _head(trace: Trace, *, verbose: bool) -> Iterable[Text]:
    state = "" if trace.complete else ", NOT READ TO THE END"
    yield Text(f"{printable(trace.path)}: log of KVM ioctls{state}", HEADING)
    kinds = ", ".join(kind.value for kind, _ in trace.formats)
    if trace.header is not None:
        kinds += _recorded(trace.header)
    packed = "" if trace.compression == "none" else f" (from {trace.compression})"
    yield entry("format", f"{kinds}{packed}")
    yield entry("lines", f"{trace.lines}, {trace.used} used, {trace.lines - trace.used} ignored")
    results = {0: "without results", trace.calls: "with results"}
    some = f"{trace.results} with results"
    yield entry("ioctls", f"{trace.calls}, {results.get(trace.results, some)}")
    if trace.lost:
        yield entry("LOST", Text(f"{trace.lost} calls are missing", STYLES[Severity.WARNING]))
    if trace.others and not verbose:
        count = sum(other.count for other in trace.others)
        yield entry("other ioctls", f"{count}, {len(trace.others)} kinds (-v lists them)")
    if trace.vcpus:
        yield entry("QEMU", f"{trace.guess.words()} (a guess from the order)")
    if verbose:
        for clue in trace.guess.clues:
            yield entry("", clue.seen)
    yield entry("nested state", _summary(trace))


def _recorded(header: Header) -> str:
    words = [
        f"by {header.recorder}" if header.recorder else "",
        f"of {header.exe}" if header.exe else "",
        f"on Linux {header.release}" if header.release else "",
        "redacted" if header.redacted else "",
    ]
    return printable("".join(f" {word}" for word in words if word))


def _summary(trace: Trace) -> Text:
    puts = [put for vcpu in trace.vcpus for put in vcpu.puts]
    if not puts:
        return Text("is never set")
    text = Text(f"set {len(puts)} times: " if len(puts) > 1 else "set once: ")
    words = []
    for verdict in PutVerdict:
        count = sum(put.verdict is verdict for put in puts)
        if count:
            words.append((f"{count} {_words(verdict)}", _VERDICTS[verdict]))
    for at, (word, style) in enumerate(words):
        text.append(", " if at else "").append(word, style)
    return text


def _words(verdict: PutVerdict) -> str:
    return {PutVerdict.OK: "ok", PutVerdict.VIOLATES: "against the rules"}.get(
        verdict, verdict.value
    )


# --- a vCPU's phases ---


def _vcpu(vcpu: VcpuTrace, *, verbose: bool) -> Iterable[Text]:
    yield Text(f"{vcpu.vcpu.label}: {vcpu.ioctls} ioctls, {vcpu.runs} of them KVM_RUN", HEADING)
    rows: list[list[str | Text]] = []
    if verbose:
        for at, phase in enumerate(vcpu.phases):
            rows.append([_lines(phase.line, phase.last_line), *_phase(vcpu, at, phase)])
            rows += [["", *_step(step)] for step in phase.steps]
        yield from columns(rows, ("lines", "phase, ioctl", "count", "what"))
        return
    for at, hidden in _brief(vcpu.phases):
        if hidden:
            rows.append(["...", f"{hidden} phases", "", "(-v lists them)"])
        else:
            phase = vcpu.phases[at]
            rows.append([_lines(phase.line, phase.last_line), *_phase(vcpu, at, phase)])
    yield from columns(rows, ("lines", "phase", "ioctls", "what"))


def _lines(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _phase(vcpu: VcpuTrace, at: int, phase: Phase) -> list[str | Text]:
    what = []
    if phase.times > 1:
        what.append(f"{phase.times} times in turn")
    if at == vcpu.migrated:
        what.append("the migrated state")
    elif phase.nested:
        what.append("with nested state")
    if phase.kind in _NAMED:
        what.append(" ".join(step.short for step in phase.steps))
    text = ", ".join(what)
    if len(text) > _WHAT:
        text = text[: _WHAT - 3].rpartition(" ")[0] + " ..."
    row: list[str | Text] = [phase.kind.value, str(phase.count)]
    return [*row, text] if text else row


def _step(step: Step) -> list[str | Text]:
    where = f"line {_lines(step.line, step.last_line)}"
    words = [f"before {where}, inferred" if step.inferred else where]
    if step.value is not None:
        words.append(f"= {step.error or step.value}")
    if step.exit_reason is not None:
        words.append(f"exit reason {step.exit_reason}")
    if step.efer is not None:
        words.append(f"EFER {step.efer:#x}")
    name = Text("  ").append(printable(step.name), STYLES[Severity.ERROR] if step.error else "")
    return [name, str(step.count), " ".join(words)]


def _brief(phases: Sequence[Phase]) -> Iterable[tuple[int, int]]:
    # Numbers of the phases to show; many in the middle become one (number, hidden).
    start = 0
    while start < len(phases):
        if phases[start].kind in _PUTTING:
            yield start, 0
            start += 1
            continue
        end = start
        while end < len(phases) and phases[end].kind not in _PUTTING:
            end += 1
        if end - start <= _BRIEF:
            yield from ((at, 0) for at in range(start, end))
        else:
            yield from ((at, 0) for at in range(start, start + _HEAD))
            yield start + _HEAD, end - start - _HEAD - _TAIL
            yield from ((at, 0) for at in range(end - _TAIL, end))
        start = end


# --- puts ---


def _puts(vcpu: VcpuTrace, arrow: str, explained: set[str], *, verbose: bool) -> Iterable[Text]:
    # A rule is explained where it is first broken.
    for put in vcpu.puts:
        kind = vcpu.phases[put.phase].kind.value
        line = Text(f"  line {put.line}, {kind}")
        if put.phase == vcpu.migrated:
            line.append(", the migrated state")
        line.append(": ").append(_words(put.verdict), _VERDICTS[put.verdict])
        if put.run is not None:
            runs = "ran before" if put.run.inferred else "runs at"
            line.append(f", {runs} line {put.run.line}", FAINT)
        elif put.superseded is not None:
            line.append(f", set again at line {put.superseded}", FAINT)
        yield line
        yield from _order(put, arrow)
        for one in put.results:
            if one.outcome in (RuleOutcome.VIOLATED, RuleOutcome.UNKNOWN):
                yield from _judged(one, explained)
            elif verbose:
                yield from _rest(one)


def _content(content: Content) -> Iterable[Text]:
    # What a call sets, by name; what is zero, or says nothing, is left out.
    step = content.step
    values = decode(step.name, step.data or b"")
    hidden = ignored(step.name, values)
    words = [
        f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value}"
        for name, value in values.items()
        if name not in hidden and value and not (isinstance(value, str) and not value.strip("0"))
    ]
    line = Text(f"    line {step.line} {printable(step.short)}", HEADING)
    if content.whose is not None:
        style = "" if content.whose is Whose.L2 else STYLES[Severity.WARNING]
        line.append(f" ({content.whose})", style)
    yield line
    yield from _wrapped(" ".join(words) or "all zero", 6)


def _order(put: Put, arrow: str) -> Iterable[Text]:
    line = Text("    ")
    for at, step in enumerate(put.order):
        word = step.short + (f"({step.error})" if step.error else "")
        if at:
            line.append(arrow)
            if len(line) + len(word) + 1 > _WIDTH:
                yield line
                line = Text("    ")
        style = HEADING if step.name == NESTED else ""
        line.append(printable(word), STYLES[Severity.ERROR] if step.error else style)
    yield line


def _judged(one: RuleResult, explained: set[str]) -> Iterable[Text]:
    severity = one.rule.trace_severity
    word = severity.value if one.outcome is RuleOutcome.VIOLATED else "unknown"
    text = f"{one.rule.id} {one.rule.requires}"
    if one.note:
        text += f": {one.note}"
    first, *rest = _wrapped(text, 6, first=f"    {word} ")
    first.stylize(STYLES[severity], 4, 4 + len(word))
    yield first
    yield from rest
    if one.outcome is RuleOutcome.VIOLATED and one.rule.id not in explained:
        explained.add(one.rule.id)
        yield from _wrapped(one.rule.means, 6)
        kernels = "" if one.rule.scope == ALL_KERNELS else f" Linux {one.rule.scope}."
        yield from _wrapped(f"Do: {one.rule.do}.{kernels}", 6)


def _refusals(refusals: Sequence[Refusal], explained: set[str], *, verbose: bool) -> Iterable[Text]:
    for one in refusals:
        if one.bad or verbose:
            yield from _refusal(one, explained, verbose=verbose)


def _refusal(one: Refusal, explained: set[str], *, verbose: bool) -> Iterable[Text]:
    where = f"line {_lines(one.line, one.last_line)}: "
    what = f"{one.name} is refused: {one.error}"
    more = f", {one.count} times" if one.count > 1 else ""
    if one.resolved is not None:
        more += f", succeeds at line {one.resolved}"
    elif one.ran is not None:
        more += f", the vCPU runs without it at line {one.ran}"
    first, *rest = _wrapped(where + what + more, 4, first="  ")
    first.stylize(STYLES[one.severity], 2 + len(where), 2 + len(where) + len(what))
    yield from (first, *rest)
    if not one.bad:
        return
    assert one.rule is not None
    yield from _wrapped(f"{one.rule.id} {one.rule.requires}", 6)
    if not one.causes:
        yield from _wrapped("why: not known here", 6)
    seen = [cause for cause in one.causes if cause.seen]
    for cause in one.causes if verbose or not seen else seen:
        word = "likely" if cause.seen or len(one.causes) == 1 else "perhaps"
        rule = f" [{cause.rule}]" if cause.rule else ""
        yield from _wrapped(f"{word}: {cause.why}{rule}", 8, first="      ")
        if cause.do and word == "likely":
            yield from _wrapped(f"Do: {cause.do}.", 8)
    if one.rule.id not in explained:
        explained.add(one.rule.id)
        yield from _wrapped(f"{one.rule.means}. Do: {one.rule.do}.", 6)


def _rest(one: RuleResult) -> Iterable[Text]:
    note = f": {one.note}" if one.note else ""
    first, *rest = _wrapped(
        f"{one.rule.id} {one.rule.requires}{note}", 6, first=f"    {one.outcome.value} "
    )
    for line in (first, *rest):
        line.stylize(FAINT)
        yield line


def _others(trace: Trace) -> Iterable[Text]:
    yield Text("Ioctls not of a vCPU", HEADING)
    rows: list[list[str | Text]] = [
        [
            str(other.line),
            other.name,
            str(other.count),
            other.level + (f", {other.failed} failed" if other.failed else ""),
        ]
        for other in trace.others
    ]
    yield from columns(rows, ("first line", "ioctl", "count", "of the"))


def _wrapped(text: str, indent: int, *, first: str | None = None) -> list[Text]:
    return [
        Text(line)
        for line in textwrap.wrap(
            printable(text),
            _WIDTH,
            initial_indent=" " * indent if first is None else first,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
