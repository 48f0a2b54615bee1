"""The JSON document of ``trace``, version 1 (``docs/trace.md``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qemu_svm.recording.values import decode, ignored
from qemu_svm.render.json.base import SCHEMA_VERSION, Digits, hex_text, optional_hex
from qemu_svm.trace.guess import Guess, Version
from qemu_svm.trace.model import Trace, VcpuTrace
from qemu_svm.trace.phases import Phase, Step
from qemu_svm.trace.refusals import Refusal
from qemu_svm.trace.rules import DATA, ORDERS
from qemu_svm.trace.verdict import Content, Put, PutVerdict, RuleResult


def render(result: Trace) -> dict[str, Any]:
    """Return the document."""
    verdict = _verdict([put for vcpu in result.vcpus for put in vcpu.puts])
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": result.path, "compression": result.compression},
        "log": {
            "lines": result.lines,
            "used": result.used,
            "ignored": result.lines - result.used,
            "formats": [{"name": kind.value, "lines": lines} for kind, lines in result.formats],
            "ioctls": result.calls,
            "results": result.results,
            "complete": result.complete,
        },
        "recording": _recording(result),
        "qemu": _guess(result.guess),
        "verdict": None if verdict is None else verdict.value,
        "clean": result.clean,
        "vcpus": [_vcpu(vcpu) for vcpu in result.vcpus],
        "others": [
            {
                "name": other.name,
                "level": other.level,
                "count": other.count,
                "line": other.line,
                "failed": other.failed,
            }
            for other in result.others
        ],
        "refusals": [_refusal(one, None) for one in result.refusals],
        "rules": _rules(result),
        "not_shown": [{"what": one.what, "rules": list(one.rules)} for one in result.not_shown],
    }


def _recording(trace: Trace) -> dict[str, Any] | None:
    header = trace.header
    if header is None:
        return None
    return {
        "vendor": header.vendor,
        "recorder": header.recorder or None,
        "program": header.exe or None,
        "pid": header.pid or None,
        "kernel": header.release or None,
        "redacted": header.redacted,
        "lost": trace.lost,
    }


def _verdict(puts: Sequence[Put]) -> PutVerdict | None:
    for verdict in (PutVerdict.VIOLATES, PutVerdict.UNKNOWN, PutVerdict.OK):
        if any(put.verdict is verdict for put in puts):
            return verdict
    return None


def _guess(guess: Guess) -> dict[str, Any]:
    return {
        "guess": guess.words(),
        "low": _version(guess.low),
        "high": _version(guess.high),
        "clues": [clue.seen for clue in guess.clues],
    }


def _version(version: Version | None) -> str | None:
    return None if version is None else f"{version[0]}.{version[1]}"


def _vcpu(vcpu: VcpuTrace) -> dict[str, Any]:
    return {
        "index": vcpu.vcpu.index,
        "fd": vcpu.vcpu.fd,
        "ioctls": vcpu.ioctls,
        "runs": vcpu.runs,
        "migrated": vcpu.migrated,
        "phases": [_phase(phase) for phase in vcpu.phases],
        "puts": [_put(put) for put in vcpu.puts],
        "refusals": [_refusal(one, vcpu.vcpu.index) for one in vcpu.refusals],
        "results": [_result(one) for one in vcpu.results],
        "values": [_content(one) for one in vcpu.contents],
    }


def _phase(phase: Phase) -> dict[str, Any]:
    return {
        "kind": phase.kind.value,
        "line": phase.line,
        "last_line": phase.last_line,
        "count": phase.count,
        "times": phase.times,
        "ioctls": [_step(step) for step in phase.steps],
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "number": optional_hex(step.number),
        "line": step.line,
        "last_line": step.last_line,
        "count": step.count,
        "value": step.value,
        "error": step.error,
        "efer": optional_hex(step.efer),
        "exit_reason": step.exit_reason,
        "inferred": step.inferred,
    }


def _put(put: Put) -> dict[str, Any]:
    return {
        "phase": put.phase,
        "line": put.line,
        "verdict": put.verdict.value,
        "order": [step.name for step in put.order],
        "run_line": None if put.run is None else put.run.line,
        "superseded_line": put.superseded,
        "rules": [_result(one) for one in put.results],
    }


def _content(one: Content) -> dict[str, Any]:
    step = one.step
    values = decode(step.name, step.data or b"")
    return {
        "line": step.line,
        "ioctl": step.name,
        "whose": None if one.whose is None else one.whose.value,
        "values": {
            name: hex_text(value) if isinstance(value, int) else Digits(value)
            for name, value in values.items()
        },
        "ignored": sorted(ignored(step.name, values)),
    }


def _result(one: RuleResult) -> dict[str, Any]:
    return {
        "id": one.rule.id,
        "outcome": one.outcome.value,
        "severity": one.rule.trace_severity.value,
        "line": one.line,
        "note": one.note,
    }


def _refusal(one: Refusal, vcpu: int | None) -> dict[str, Any]:
    return {
        "name": one.name,
        "error": one.error,
        "vcpu": vcpu,
        "level": one.level.value,
        "line": one.line,
        "last_line": one.last_line,
        "count": one.count,
        "rule": None if one.rule is None else one.rule.id,
        "severity": one.severity.value,
        "ran_line": one.ran,
        "resolved_line": one.resolved,
        "causes": [
            {"rule": cause.rule or None, "why": cause.why, "do": cause.do, "seen": cause.seen}
            for cause in one.causes
        ],
    }


def _rules(trace: Trace) -> dict[str, Any]:
    results = [
        *(one for vcpu in trace.vcpus for put in vcpu.puts for one in put.results),
        *(one for vcpu in trace.vcpus for one in vcpu.results),
    ]
    used = {one.rule.id for one in results}
    used |= {one.rule.id for one in trace.all_refusals if one.rule is not None}
    return {
        rule.id: {
            "severity": rule.trace_severity.value,
            "rule": rule.requires,
            "broken": rule.means,
            "advice": rule.do,
            "kernels": rule.scope,
            "source": rule.source,
        }
        for rule in (*ORDERS, *DATA)
        if rule.id in used
    }
