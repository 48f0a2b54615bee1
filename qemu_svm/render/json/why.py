"""The JSON document of ``why``, version 1 (``docs/why.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.diagnosis.dump import DumpMatch, VmcbDump, field_text, impossible, words
from qemu_svm.diagnosis.results import Answer, KernelSaid, Why
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.json.base import SCHEMA_VERSION, hex_text, optional_hex


def render(result: Why) -> dict[str, Any]:
    """Return the document."""
    facts = result.facts
    return {
        "schema_version": SCHEMA_VERSION,
        "stream": None if result.machine is None else result.machine.stream.source.path,
        "log": result.log,
        "lines": facts.lines,
        "recognised": dict(facts.used),
        "from": _kernel(result.source),
        "to": _kernel(result.destination),
        "qemu": facts.qemu_version,
        "found": result.found,
        "sure": result.sure,
        "happened": list(result.happened),
        "answers": [_answer(one) for one in result.answers],
        "collect": list(result.collect),
        "dumps": [_dump(one, match) for one, match in result.dumps],
        "dumps_left_out": facts.more_dumps,
    }


def _kernel(one: KernelSaid | None) -> dict[str, Any] | None:
    return None if one is None else {"name": one.name, "given": one.given, "line": one.line}


def _answer(one: Answer) -> dict[str, Any]:
    return {
        "likelihood": one.likelihood.value,
        "what": one.what,
        "why": one.why,
        "rule": one.rule or None,
        "cve": list(one.cves),
        "fixed_in": one.fixed_in or None,
        "do": one.do or None,
        "evidence": list(one.evidence),
        "line": one.line,
        "offset": optional_hex(one.offset),
        "path": one.path or None,
    }


def _dump(one: VmcbDump, match: DumpMatch | None) -> dict[str, Any]:
    return {
        "line": one.line,
        "cpu": one.cpu,
        "vcpu": one.vcpu,
        "exit_code": hex_text(one.exit_code),
        "exit": exit_name(one.exit_code),
        "fields": list(words(one)),
        "impossible": [
            {"rule": wrong.rule or None, "words": wrong.words, "field": wrong.field}
            for wrong in impossible(one)
        ],
        "stream": None
        if match is None
        else {
            "vcpu": match.vcpu,
            "level": match.level,
            "same": list(match.same),
            "differs": [
                {
                    "field": name,
                    "dump": field_text(name, ours),
                    "stream": field_text(name, theirs),
                }
                for name, ours, theirs in match.differs
            ],
        },
    }
