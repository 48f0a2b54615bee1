"""The JSON documents of ``lab capture``, ``restore`` and ``matrix``, version 1."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qemu_svm.lab.capture import Capture
from qemu_svm.lab.guests import Guest
from qemu_svm.lab.matrix import Result
from qemu_svm.lab.restore import Outcome
from qemu_svm.lab.vm import Settings
from qemu_svm.render.json.inspect import SCHEMA_VERSION
from qemu_svm.rules import Finding


@dataclass(frozen=True, slots=True)
class Made:
    """How a capture came to be.

    :param recipe: the command line.
    :param versions: exact package versions.
    :param box: options of the box that were given.
    """

    recipe: str
    versions: Mapping[str, str]
    guest: Guest
    settings: Settings
    box: Mapping[str, Any]


def capture_document(path: str, taken: Capture, made: Made) -> dict[str, Any]:
    """The record of a capture."""
    with taken.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return {
        "schema_version": SCHEMA_VERSION,
        "file": path,
        "size": taken.path.stat().st_size,
        "sha256": digest.hexdigest(),
        "guest": {"name": made.guest.name, "about": made.guest.about},
        "vcpus": [
            {"index": index, **asdict(state), "flags": None if flags is None else f"{flags:#x}"}
            for index, (state, flags) in enumerate(zip(made.guest.vcpus, taken.flags, strict=True))
        ],
        "tries": taken.tries,
        "versions": dict(made.versions),
        "box": {name: _plain(value) for name, value in made.box.items()},
        "settings": asdict(made.settings),
        "recipe": made.recipe,
    }


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int) else str(value)


def guests_document(guests: Sequence[Guest]) -> dict[str, Any]:
    """The list of guests."""
    return {
        "schema_version": SCHEMA_VERSION,
        "guests": [
            {
                "name": guest.name,
                "about": guest.about,
                "mode": guest.mode.value,
                "nested_paging": guest.nested_paging,
                "vcpus": [asdict(state) for state in guest.vcpus],
                "counters": list(guest.counters),
            }
            for guest in guests
        ],
    }


def restore_document(
    path: str,
    outcome: Outcome,
    settings: Settings,
    versions: Mapping[str, str],
    why: Sequence[Finding],
) -> dict[str, Any]:
    """The document of ``lab restore``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "file": path,
        **outcome_document(outcome),
        "rules": rules_document(why),
        "versions": dict(versions),
        "settings": asdict(settings),
    }


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """A verdict with its reason."""
    return {
        "verdict": outcome.verdict.value,
        "reason": outcome.reason,
        "guest": outcome.guest,
        "moved": list(outcome.moved),
    }


def rules_document(why: Sequence[Finding]) -> list[dict[str, Any]]:
    """The rules that a stream meets on a destination."""
    return [
        {
            "rule": one.rule,
            "severity": one.severity.value,
            "message": one.message,
            "do": one.do,
        }
        for one in why
    ]


def matrix_document(result: Result) -> dict[str, Any]:
    """The document of ``lab matrix``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "hosts": {str(host): dict(versions) for host, versions in result.versions.items()},
        "cells": [
            {
                "guest": cell.guest,
                "source": str(cell.source),
                "target": str(cell.target),
                "machine": cell.machine,
                "verdict": cell.outcome.verdict.value,
                "reason": cell.outcome.reason,
                "moved": list(cell.outcome.moved),
                "rules": rules_document(cell.rules),
            }
            for cell in result.cells
        ],
    }
