"""The report of ``vmruns``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.text import Text

from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, KEY, columns, entry
from qemu_svm.render.vmruns_words import (
    CERTAINTY,
    change_words,
    exit_words,
    role_name,
    vmcb_name,
)
from qemu_svm.vmruns.fields import changes
from qemu_svm.vmruns.log import AttributedRun, Log
from qemu_svm.vmruns.results import RunsReport
from qemu_svm.vmruns.roles import Certainty
from qemu_svm.vmruns.runs import save_field
from qemu_svm.vmruns.select import SelectedRun, select
from qemu_svm.vmruns.structs import Flag, RecordKind, kind_name

_CHUNK = 512
_EXITS = 4


def render(result: RunsReport, *, verbose: bool) -> Iterable[Text]:
    """Return what the log holds, then the selected runs.

    :param verbose: every run on its own, with what changed since the last entry of its VMCB.
    """
    log = result.log
    yield from _head(log)
    yield Text()
    yield from _vmcbs(log)
    yield Text()
    chosen = select(log, result.selection)
    yield from _verbose(chosen) if verbose else _brief(one.attributed for one in chosen)


def _head(log: Log) -> Iterator[Text]:
    state = "NOT READ TO THE END" if log.damage is not None else "complete"
    yield Text(f"{printable(log.source.path)}: log of svmtrace, {state}", HEADING)
    cpus = "1 CPU" if log.header.vcpus == 1 else f"{log.header.vcpus} CPUs"
    yield entry("recorded on", f"{cpus} through plugin interface {log.header.api}")
    ended = log.end or "no end record: the emulator was killed, or is still running"
    yield entry("ends", f"after {log.nanoseconds / 1e9:.3f} s: {ended}")
    names = [
        f"{count} {kind_name(kind)}"
        for kind, count in sorted(log.counts.items())
        if kind != RecordKind.END
    ]
    yield entry("records", ", ".join(names))


def _vmcbs(log: Log) -> Iterator[Text]:
    rows: list[list[str | Text]] = []
    for vmcb in log.vmcbs:
        common = sorted(vmcb.exits.items(), key=lambda item: -item[1])
        exits = ", ".join(f"{exit_words(code)} {count}" for code, count in common[:_EXITS])
        more = f" and {len(common) - _EXITS} more" if len(common) > _EXITS else ""
        name = vmcb_name(vmcb) + (f" of vCPU {vmcb.pair}" if vmcb.pair >= 0 else "")
        certainty = Text(CERTAINTY[vmcb.certainty], FAINT)
        rows.append([f"{vmcb.address:#x}", name, certainty, str(vmcb.runs), exits + more])
    yield Text("VMCBs", HEADING)
    yield from columns(rows, ("at", "is", "", "entries", "exits"))


_COLUMNS = ("VMRUN", "CPU", "VMCB", "is", "enters at", "exit", "")


def _brief(chosen: Iterator[AttributedRun]) -> Iterator[Text]:
    # Runs of the same kind in a row are one line.
    rows: list[list[str | Text]] = []
    header: tuple[str, ...] = _COLUMNS
    for first, count, last in _grouped(chosen):
        rows.append(_row(first, f"and {count - 1} more, to {last.run.number}" if count > 1 else ""))
        if len(rows) == _CHUNK:
            yield from columns(rows, header)
            rows, header = [], ()
    yield from columns(rows, header)


def _grouped(chosen: Iterator[AttributedRun]) -> Iterator[tuple[AttributedRun, int, AttributedRun]]:
    first = last = next(chosen, None)
    count = 1
    for known in chosen:
        assert first is not None
        assert last is not None
        if _same(known) == _same(last):
            count, last = count + 1, known
            continue
        yield first, count, last
        first, count, last = known, 1, known
    if first is not None and last is not None:
        yield first, count, last


def _same(known: AttributedRun) -> tuple[object, ...]:
    run = known.run
    vmrun = run.number if run.vmrun is not None else 0
    return (run.entry.vcpu, run.address, known.role, run.exit_code, vmrun)


def _row(known: AttributedRun, more: str) -> list[str | Text]:
    run = known.run
    page = run.entry.page
    notes = [more] if more else []
    if run.vmrun is not None:
        notes.append(f"L1's VMRUN, vmcb12 at {run.vmrun.rax:#x}")
    if Flag.UNPAIRED in run.entry.flags:
        notes.append("the exit before was not seen")
    return [
        str(run.number),
        str(run.entry.vcpu),
        f"{run.address:#x}",
        _role(known),
        "not readable" if page is None else f"{save_field(page, 'rip'):#x}",
        exit_words(run.exit_code),
        Text(", ".join(notes), FAINT),
    ]


def _role(known: AttributedRun) -> str:
    doubt = "?" if known.certainty is Certainty.INFERRED else ""
    return role_name(known.role) + doubt


def _verbose(chosen: Iterator[SelectedRun]) -> Iterator[Text]:
    for one in chosen:
        known, run = one.attributed, one.attributed.run
        line = Text(f"{run.number}", HEADING)
        line.append(f"  CPU {run.entry.vcpu}, {run.entry.time / 1e9:.6f} s, ", FAINT)
        line.append(f"{run.address:#x} {_role(known)}")
        line.append(f", exit {exit_words(run.exit_code)}")
        yield line
        if run.vmrun is not None:
            yield Text(f"    L1's VMRUN at {run.vmrun.rip:#x}, vmcb12 at {run.vmrun.rax:#x}")
        if run.entry.page is None:
            continue
        yield from _changed("entered with", one.before, run.entry.page)
        if run.exit is not None and run.exit.page is not None:
            yield from _changed("left with", run.entry.page, run.exit.page)


def _changed(title: str, old: bytes | None, new: bytes) -> Iterator[Text]:
    if old is None:
        yield Text(f"    {title} a page that was not seen before", FAINT)
        return
    found = [[f"  {one.field.path}", change_words(one)] for one in changes(old, new)]
    if found:
        yield Text(f"    {title}", KEY)
        yield from (Text("    ").append_text(row) for row in columns(found))
