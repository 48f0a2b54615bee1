"""What the schemas of the documents notice, and what they leave open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from qemu_svm.render.documents import DOCUMENTS, document_schema, document_shape, schema
from tests.conftest import STREAMS, Run
from tests.support.documents import Count, check_printed, loose, of_verb

FILE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
OTHER = STREAMS / "qemu7.2-linux6.1-nested-npt.mig.zst"
RUNS = STREAMS / "qemu10.0-linux6.12-nested-npt.restore.svmtrace.zst"
LOG = STREAMS / "qemu10.0-linux6.12-nested-npt.restore-ioctls.log.zst"
VIRTIO = next((STREAMS / "virtio").glob("*.mig.zst"))
LINE = "Failed to put registers after init: Invalid argument"
LEAST = 0.95

COMMANDS: dict[str, list[tuple[Any, ...]]] = {
    "check": [("check", FILE)],
    "check_rules": [("check", "--rules"), ("check", "--explain", "CVE-2025-38455")],
    "check_several": [("check", FILE, "none")],
    "diff": [("diff", FILE, OTHER), ("diff", "--ram", FILE, OTHER)],
    "diff_masks": [("diff", "--list-masks")],
    "doctor": [("doctor",)],
    "failure": [("inspect", "none"), ("show", FILE, "vcpu7"), ("inspect",)],
    "inspect": [("inspect", FILE), ("inspect", "--ram", OTHER)],
    "lab_guests": [("lab", "capture", "--guests")],
    "lab_list": [("lab", "list")],
    "mem_layout": [("mem", "map", FILE)],
    "mem_map": [("mem", "map", FILE, "l2p")],
    "mem_read": [("mem", "read", FILE, "l1p:0x1000")],
    "mem_search": [("mem", "search", FILE, "--hex", "0f01d8")],
    "mem_translate": [("mem", "translate", FILE, "l2v:0x1002a2")],
    "ram": [("ram", FILE)],
    "show": [("show", FILE, "vcpu0.nested"), ("show", FILE, "section:apic")],
    "simulate": [
        ("simulate", FILE, "--kernel", "6.1", "--plan", "nested", "--against", "sregs,run"),
    ],
    "survey": [("survey", FILE, OTHER, "/etc/hostname", "-j", "1", "--to", "6.1.170")],
    "trace": [("trace", LOG)],
    "vmruns": [("vmruns", RUNS, "--first", "20")],
    "vmruns_page": [("vmruns", RUNS, "--show", "1")],
    "why": [("why", "--error", LINE, FILE)],
}
"""Commands that print a document without a QEMU and without the box."""


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_wrong_is_noticed(name: str, command: Run) -> None:
    count = Count()
    for words in COMMANDS[name]:
        out = command(*words, "--json").stdout
        verb = next(one for one in (" ".join(map(str, words[:2])), words[0]) if one in DOCUMENTS)
        count.change(json.loads(out), verb, document_shape(name))
    assert count.tried["type"] + count.tried["member"] > 15
    missed = [f"{number} {kind} {path}" for (kind, path), number in count.missed.items() if number]
    print(f"{name}: {count.noticed():.3f} of {sum(count.tried.values())}", *missed, sep="\n  ")
    assert count.noticed() >= LEAST


OPEN = {
    "check_rules": {".rules[]": "shown_by,unseen", "": "changes"},
    "diff": {f"diff.{one}": "meaning,names" for one in ("leaf", "number", "size")},
    "doctor": {".host": "inside", ".host.kernel": "machine"},
    "mem_translate": {".result": "l2_physical"},
    "show": {
        "": "children,description,meaning,names,virtio",
        "show.node": "children,description,meaning,names",
    },
    "simulate": {"": "against", "recorded.recorded_difference": "kernel,model"},
    # QEMU's own answers, as they are
    "watch": {".settings.parameters": "any object", ".query_migrate": "any object"},
}
"""What need not be there by document and place, and what may be anything."""
_OPTIONS = "cpu,emulator,emulator_args,kernel,memory,mirror,modules,npt,own,qemu,share,smp,words"
_STATE = "nested.size,shadow,smm"
OPEN["roundtrip"] = OPEN["diff"]
OPEN["lab_up"] = {".box.options": _OPTIONS}
OPEN["lab_list"] = {".boxes[].options": _OPTIONS}
OPEN["inside"] = {"inside.vcpu.inside": _STATE, "inside.vcpu.saved": _STATE}
OPEN["replay"] = {
    "replay.inside": _STATE, "replay.step.state": _STATE,
    "recorded.recorded_difference": "kernel,model",
}  # fmt: skip


def names() -> Iterator[str]:
    yield from sorted({name for some in DOCUMENTS.values() for name in some} | {"failure"})


@pytest.mark.parametrize("name", [*names()])
def test_nothing_else_is_left_open(name: str) -> None:
    assert loose(name) == OPEN.get(name, {})


CLOSED = (
    "severity",
    "verdict",
    "likelihood",
    "outcome",
    "certainty",
    "described",
    "change",
    "role",
)
"""Members whose values are a closed set (docs/json.md)."""


def enumerated(schema: Any) -> Iterator[tuple[str, bool]]:
    if isinstance(schema, dict):
        for key, one in schema.get("properties", {}).items():
            if key in CLOSED:
                parts = one.get("anyOf", [one])
                yield key, all("enum" in part or part == {"type": "null"} for part in parts)
        for one in schema.values():
            yield from enumerated(one)
    elif isinstance(schema, list):
        for one in schema:
            yield from enumerated(one)


def test_closed_sets_are_enumerated() -> None:
    found = [(name, *one) for name in names() for one in enumerated(document_schema(name))]
    assert {key for _, key, _ in found} == set(CLOSED)
    assert [one for one in found if not one[2]] == [("compat", "described", False)]


def test_a_document_is_not_taken_for_another_one_of_its_verb(command: Run) -> None:
    document = json.loads(command("diff", FILE, FILE, "--json").stdout)
    assert document["masks"] == []  # as of diff --list-masks
    assert of_verb("diff").is_valid(document)
    assert not of_verb("diff").is_valid({**document, "differences": 4711})


def test_alternatives_are_told_apart() -> None:
    for verb in DOCUMENTS:
        for shape in schema(verb)["anyOf"]:
            taken = {
                name for one in shape.get("not", {"anyOf": ()})["anyOf"] for name in one["required"]
            }
            assert not taken & {"schema_version"}, verb


def test_members_may_come(command: Run) -> None:
    document = json.loads(command("inspect", FILE, "--json").stdout)
    document["vcpus"][0]["nested"]["control"]["new"] = document["new"] = 1
    assert of_verb("inspect").is_valid(document)


def test_what_a_test_prints_is_held_against_its_schema() -> None:
    error = b'{"schema_version": 1, "error": {"rule": 1}}'
    check_printed(("inspect", "FILE"), error)
    with pytest.raises(AssertionError, match="rule"):
        check_printed(("inspect", "FILE", "--json"), error)
