"""The report of ``lab witness``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from rich.text import Text

from qemu_svm.findings.witness import Field, Part, Verdict, Witness
from qemu_svm.model.area import Content
from qemu_svm.nested import bits
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, columns, entry
from qemu_svm.x86.segments import Segment, attrib_words

_WIDTH = 80
_STYLES = {Verdict.RIGHT: "green", Verdict.EXPLAINED: "blue", Verdict.WRONG: "bold red"}
_TITLES = {
    ("vmcb02", "L2", True): "the first entry: L2 by vmcb02",
    ("vmcb01", "L2", True): "the first entry: by vmcb01, not in guest mode",
    ("vmcb01", "L1", True): "the first entry: L1 by vmcb01",
    ("vmcb01", "L1", False): "the first entry of L1 after that: vmcb01",
    ("control", "L2", False): "control area of the first entry: what KVM merged for L2",
}
"""By name, level and whether it is the first."""
_QUIET = frozenset({"control"})


def report(
    path: str, plan: str, versions: dict[str, str], found: Witness, *, verbose: bool
) -> Iterable[Text]:
    """Lines of the report.

    :param verbose: all fields, and the intercepts as one number.
    """
    yield Text(f"{printable(path)}: {printable(plan)}", HEADING)
    yield entry("host", f"Linux {versions['kernel']}, QEMU {versions['qemu']}")
    yield entry("emulated by", f"QEMU {versions['emulator']}")
    yield entry("model", f"profile {found.kernel.name}")
    for refusal in found.refusals:
        yield from _wrapped(f"The model foresees: {refusal}")
    for at, part in enumerate(found.parts):
        yield Text()
        yield from _part(part, first=at == 0, verbose=verbose)
    yield Text()
    yield from verdict(found)


def _part(part: Part, *, first: bool, verbose: bool) -> Iterator[Text]:
    title = _TITLES[part.name, part.level, first]
    yield Text(f"VMRUN {part.number}, VMCB at {part.address:#x}, {title}", HEADING)
    rows = [_row(field, verbose=verbose) for field in part.fields if verbose or _shown(part, field)]
    header = ("", "the processor got", "stream", "model", "")
    yield from columns(rows, header)
    hidden = len(part.fields) - len(rows)
    if hidden:
        yield Text(f"  {hidden} more fields are right (-v shows them)", FAINT)


def _shown(part: Part, field: Field) -> bool:
    if part.name in _QUIET:
        return field.verdict is not Verdict.RIGHT
    return not isinstance(field.given, Segment) or field.verdict is not Verdict.RIGHT


def _row(field: Field, *, verbose: bool) -> list[str | Text]:
    verdict = Text(field.verdict.value, _STYLES[field.verdict])
    if field.why:
        verdict.append(f": {field.why}", FAINT)
    if field.predicted is False:
        verdict.append(", not foreseen", "bold red")
    if field.name == "intercepts" and not verbose:
        return [field.name, *_intercepts(field), verdict]
    return [field.name, content(field.given), *_others(field), verdict]


def _others(field: Field) -> list[str]:
    return ["-" if value is None else "same" if value == field.given else content(value)
            for value in (field.stream, field.model)]  # fmt: skip


def _intercepts(field: Field) -> list[str]:
    # Some fifty of them: how many, and what the others have less.
    assert isinstance(field.given, int)
    given = field.given
    cells = [f"{given.bit_count()} intercepts"]
    for value in (field.stream, field.model):
        assert isinstance(value, int)
        less = bits.INTERCEPTS.names(given & ~value)
        more = [f"+{name}" for name in bits.INTERCEPTS.names(value & ~given)]
        words = [f"-{name}" for name in less] + more
        short = " ".join(words) if len(words) <= 2 else f"{value.bit_count()} of them"
        cells.append(short or "same")
    return cells


def content(value: Content) -> str:
    """A number or a segment in a few words."""
    if isinstance(value, Segment):
        words = attrib_words(value.attrib) if value.attrib else f"limit {value.limit:#x}"
        return f"{value.selector:#x} base {value.base:#x} {words}"
    return f"{value:#x}"


def verdict(found: Witness) -> Iterator[Text]:
    """The verdict and its reasons, one a line."""
    line = Text("witness: ", HEADING)
    if found.clean:
        yield line.append("each level was given its own registers, as the model foresaw", "green")
        return
    word = "WRONG" if found.wrong else "not what the model foresaw" if found.refuted else "not seen"
    if found.wrong and not found.refuted:
        word = "WRONG, as the model foresaw"
    yield line.append(word, "bold red")
    for part in found.parts:
        for field in part.fields:
            if field.verdict is Verdict.WRONG:
                yield from _wrapped(_wrong(part, field))
            elif field.predicted is False:
                assert field.model is not None
                foreseen = content(field.model)
                yield from _wrapped(f"{field.name} is right, but the model foresaw {foreseen}")
    for missing in found.missing:
        yield from _wrapped(missing)


def _wrong(part: Part, field: Field) -> str:
    whose = field.why if part.name != "control" and field.why else "a wrong value"
    wanted = field.stream if field.stream is not None else field.model
    if part.name == "control":
        wanted = field.model
    text = f"{part.level} runs with {whose} of {field.name.upper()}: {content(field.given)}"
    if wanted is not None:
        text += f" instead of {content(wanted)}"
    return text


def _wrapped(text: str) -> list[Text]:
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False
    )
    return [Text(line) for line in lines]
