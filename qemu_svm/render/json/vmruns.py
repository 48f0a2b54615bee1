"""The JSON document of ``vmruns``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from itertools import islice
from typing import Any

from qemu_svm.render.json.base import SCHEMA_VERSION, Hex, hex_text, problem, source
from qemu_svm.render.json.vmcb import content
from qemu_svm.render.vmruns_words import CERTAINTY, exit_words, role_name
from qemu_svm.vmruns.fields import Change, changes
from qemu_svm.vmruns.results import RunsReport
from qemu_svm.vmruns.roles import Vmcb
from qemu_svm.vmruns.runs import control_field, save_field
from qemu_svm.vmruns.select import SelectedRun, select
from qemu_svm.vmruns.structs import kind_name

MAX_RUNS = 50_000
"""What one document holds at most; some 200 MB of memory.  Filters select others."""
_REGISTERS = ("rip", "rsp", "rax", "rflags", "cr0", "cr3", "cr4", "efer")


def render(result: RunsReport) -> dict[str, Any]:
    """Return what the log holds, and the first ``MAX_RUNS`` of the selected runs."""
    log = result.log
    found = select(log, result.selection)
    chosen = [_run(one) for one in islice(found, MAX_RUNS)]
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source(log.source),
        "log": {
            "api": log.header.api,
            "vcpus": log.header.vcpus,
            "complete": log.damage is None,
            "end": log.end,
            "time_ns": log.nanoseconds,
            "records": {kind_name(kind): count for kind, count in sorted(log.counts.items())},
            "problem": None if log.damage is None else problem(log.damage),
        },
        "vmcbs": [_vmcb(vmcb) for vmcb in log.vmcbs],
        "runs": chosen,
        "runs_complete": next(found, None) is None,
    }


def _vmcb(vmcb: Vmcb) -> dict[str, Any]:
    return {
        "address": hex_text(vmcb.address),
        "role": "shared" if vmcb.shared else role_name(vmcb.role),
        "certainty": CERTAINTY[vmcb.certainty],
        "vcpu": vmcb.pair if vmcb.pair >= 0 else None,
        "entries": vmcb.runs,
        "first": vmcb.first,
        "last": vmcb.last,
        "exits": [
            {"code": hex_text(code), "name": exit_words(code), "count": count}
            for code, count in sorted(vmcb.exits.items())
        ],
    }


def _run(chosen: SelectedRun) -> dict[str, Any]:
    known, old = chosen.attributed, chosen.before
    run = known.run
    page, left = run.entry.page, run.exit.page if run.exit is not None else None
    return {
        "number": run.number,
        "cpu": run.entry.vcpu,
        "time_ns": run.entry.time,
        "vmcb": hex_text(run.address),
        "role": role_name(known.role),
        "certainty": CERTAINTY[known.certainty],
        "entry": None if page is None else _registers(page),
        "changed": None
        if page is None or old is None
        else [_change(change) for change in changes(old, page)],
        "exit": None
        if run.exit is None or left is None
        else {
            "number": run.exit.number,
            "time_ns": run.exit.time,
            "code": hex_text(run.exit_code or 0),
            "name": exit_words(run.exit_code),
            "info_1": hex_text(control_field(left, "exit_info_1")),
            "info_2": hex_text(control_field(left, "exit_info_2")),
            **_registers(left),
        },
        "vmrun": None
        if run.vmrun is None
        else {
            "number": run.vmrun.number,
            "rip": hex_text(run.vmrun.rip),
            "vmcb12_gpa": hex_text(run.vmrun.rax),
            "vmcb12_number": None if run.vmcb12 is None else run.vmcb12.number,
        },
    }


def _registers(page: bytes) -> dict[str, Hex]:
    return {name: hex_text(save_field(page, name)) for name in _REGISTERS}


def _change(change: Change) -> dict[str, Any]:
    return {
        "field": change.field.path,
        "old": content(change.old),
        "new": content(change.new),
    }
