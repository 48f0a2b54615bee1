"""The report of ``why``; no line is wider than 80 columns unless a name is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich.text import Text

from qemu_svm.diagnosis.dump import DumpMatch, VmcbDump, field_text, words
from qemu_svm.diagnosis.results import Answer, KernelSaid, Likelihood, Why
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING

_WIDTH = 80
_FEW = 8
_BESIDES = 2
_STYLES = {
    Likelihood.CERTAIN: "bold red",
    Likelihood.LIKELY: "yellow",
    Likelihood.POSSIBLE: "blue",
}


def render(result: Why, *, verbose: bool) -> Iterable[Text]:
    """Return what happened, the answers, and what to collect next.

    :param verbose: all evidence, and each dump in full.
    """
    yield from _head(result)
    if result.happened:
        yield Text()
        yield Text("What happened", HEADING)
        for one in result.happened:
            yield from _wrapped(one, 2)
    for dump, match in result.dumps:
        yield Text()
        yield from _dump(dump, match, verbose=verbose)
    yield Text()
    yield from _verdict(result)
    shown = result.answers if verbose else _few(result)
    before: tuple[str, ...] = ()
    for number, answer in enumerate(shown, 1):
        told = () if answer.evidence == before else answer.evidence
        before = answer.evidence
        yield from _answer(number, answer, told, verbose=verbose)
    if len(shown) < len(result.answers):
        yield Text(f"  {len(result.answers) - len(shown)} more possibilities (-v lists them)")
    if result.collect:
        yield Text()
        yield Text("Collect next" if result.answers else "Collect", HEADING)
        for one in result.collect:
            yield from _wrapped(one, 4, first="  - ")


def _head(result: Why) -> Iterable[Text]:
    names = [] if result.machine is None else [result.machine.stream.source.path]
    if result.log is not None:
        names.append(result.log)
    yield Text(printable(" and ".join(names) or "error line"), HEADING)
    used = result.facts.used
    kinds = ", ".join(f"{count} of {kind}" for kind, count in used.most_common() if count)
    if result.log is not None:
        count = result.facts.lines
        lines = f"{count} line{'s' * (count != 1)}"
        yield from _wrapped(f"{lines}, recognised: {kinds or 'none'}", 2)
    for word, kernel in (("from", result.source), ("to", result.destination)):
        if kernel is not None:
            yield Text(f"  {word} Linux {printable(kernel.name)}{_given(kernel)}")
    yield from _qemu(result)


def _qemu(result: Why) -> Iterable[Text]:
    if result.facts.qemu_version is not None:
        yield Text(f"  QEMU {result.facts.qemu_version} (named in the log)")


def _given(kernel: KernelSaid) -> str:
    if kernel.given != "log":
        return ""
    return f" (named in line {kernel.line})" if kernel.line else " (named in the line)"


def _verdict(result: Why) -> Iterable[Text]:
    if not result.found:
        words = "No cause found."
        if not result.facts.recognised and result.machine is None:
            words = "Nothing here is recognised as a message about nested SVM."
        yield Text(words, HEADING)
    elif result.sure:
        yield Text("Why", HEADING)
    else:
        yield from _wrapped("Not sure: these fit, and nothing here tells which it is.", 0)


def _few(result: Why) -> Sequence[Answer]:
    # Behind a cause that is sure, a few that are merely possible.
    sure = sum(one.likelihood is not Likelihood.POSSIBLE for one in result.answers)
    return result.answers[: min(_FEW, sure + _BESIDES) if sure else _FEW]


def _answer(number: int, one: Answer, told: Sequence[str], *, verbose: bool) -> Iterable[Text]:
    rule = f" [{one.rule}]" if one.rule else ""
    cves = f" {', '.join(one.cves)}" if one.cves else ""
    head = f"  {number}. {one.likelihood.value}: "
    first, *rest = _wrapped(f"{one.why}{rule}{cves}", 5, first=head)
    first.stylize(_STYLES[one.likelihood], len(head) - len(one.likelihood.value) - 2, len(head) - 2)
    yield first
    yield from rest
    if one.fixed_in:
        yield from _wrapped(f"fixed in {one.fixed_in}", 7, first="     ")
    if one.do:
        yield from _wrapped(f"Do: {one.do}", 7, first="     ")
    where = f" at {one.offset:#x} {one.path}".rstrip() if one.offset is not None else ""
    for text in told if verbose else told[:2]:
        for line in _wrapped(text, 9, first="       "):
            line.stylize(FAINT)
            yield line
    if where:
        yield Text(f"       stream{printable(where)}", FAINT)


def _dump(one: VmcbDump, match: DumpMatch | None, *, verbose: bool) -> Iterable[Text]:
    cpu = "" if one.cpu is None else f", CPU {one.cpu}"
    yield Text(f"VMCB dump at line {one.line}{cpu}", HEADING)
    for text in words(one):
        yield from _wrapped(text, 6, first="  ")
    if match is None:
        return
    yield from _wrapped(
        f"the stream's vCPU {match.vcpu}: the save area is {match.level}'s; equal are "
        f"{' '.join(match.same)}", 4, first="  ",
    )  # fmt: skip
    for name, ours, theirs in match.differs if verbose else match.differs[:4]:
        dump, stream = field_text(name, ours), field_text(name, theirs)
        yield from _wrapped(f"{name}: {dump} in the dump; {stream} in the stream", 8, first="    ")


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
