"""The report of ``lab witness``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.text import Text

from qemu_svm.findings.witness import FieldComparison, FieldVerdict, VmcbComparison
from qemu_svm.lab.results import WitnessReport
from qemu_svm.nested import bits
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, columns, entry, register
from qemu_svm.render.text.witness_verdict import verdict, wrapped
from qemu_svm.x86.segments import Segment

_STYLES = {
    FieldVerdict.RIGHT: "green",
    FieldVerdict.EXPLAINED: "blue",
    FieldVerdict.WRONG: "bold red",
}
_TITLES = {
    ("vmcb02", "L2", True): "the first entry: L2 by vmcb02",
    ("vmcb01", "L2", True): "the first entry: by vmcb01, not in guest mode",
    ("vmcb01", "L1", True): "the first entry: L1 by vmcb01",
    ("vmcb01", "L1", False): "the first entry of L1 after that: vmcb01",
    ("control", "L2", False): "control area of the first entry: what KVM merged for L2",
}
"""By name, level and whether it is the first."""
_LATE = "the first entry of L2, after L1 has run: vmcb02"
_QUIET = frozenset({"control"})


def render(result: WitnessReport, *, verbose: bool) -> Iterable[Text]:
    """Return every part field by field, and the verdict.

    :param verbose: all fields, and the intercepts as one number.
    """
    found, versions = result.witness, result.versions
    yield Text(f"{printable(result.path)}: {printable(result.plan)}", HEADING)
    yield entry("host", f"Linux {versions['kernel']}, QEMU {versions['qemu']}")
    yield entry("emulated by", f"QEMU {versions['emulator']}")
    yield entry("model", f"profile {found.kernel.name}")
    for refusal in found.refusals:
        yield from wrapped(f"The model predicts: {refusal}")
    for at, part in enumerate(found.parts):
        yield Text()
        yield from _part(part, first=at == 0, verbose=verbose)
    yield Text()
    yield from verdict(found)


def _part(part: VmcbComparison, *, first: bool, verbose: bool) -> Iterator[Text]:
    title = _LATE if part.late else _TITLES[part.name, part.level, first]
    yield Text(f"VMRUN {part.number}, VMCB at {part.address:#x}, {title}", HEADING)
    rows = [_row(field, verbose=verbose) for field in part.fields if verbose or _shown(part, field)]
    header = ("", "the processor got", "stream", "model", "")
    yield from columns(rows, header)
    hidden = len(part.fields) - len(rows)
    if hidden:
        yield Text(f"  {hidden} more fields are right (-v shows them)", FAINT)


def _shown(part: VmcbComparison, field: FieldComparison) -> bool:
    if part.name in _QUIET:
        return field.verdict is not FieldVerdict.RIGHT
    return not isinstance(field.given, Segment) or field.verdict is not FieldVerdict.RIGHT


def _row(field: FieldComparison, *, verbose: bool) -> list[str | Text]:
    verdict = Text(field.verdict.value, _STYLES[field.verdict])
    if field.why:
        verdict.append(f": {field.why}", FAINT)
    if field.predicted is False:
        verdict.append(", not predicted", "bold red")
    if field.name == "intercepts" and not verbose:
        return [field.name, *_intercepts(field), verdict]
    return [field.name, register(field.given, field.name), *_others(field), verdict]


def _others(field: FieldComparison) -> list[str]:
    return ["-" if value is None else "same" if value == field.given
            else register(value, field.name) for value in (field.stream, field.model)]  # fmt: skip


def _intercepts(field: FieldComparison) -> list[str]:
    # Some fifty of them: their number, and by which the others differ.
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
