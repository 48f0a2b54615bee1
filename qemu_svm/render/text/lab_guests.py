"""The reports of ``lab capture`` and ``lab restore``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text

from qemu_svm.lab.guests import Guest
from qemu_svm.lab.restore import Outcome
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, STYLES, columns, entry
from qemu_svm.rules import Finding, Severity


def capture_report(record: Mapping[str, Any]) -> Iterable[Text]:
    """What was captured, out of its record."""
    guest = record["guest"]
    yield Text(f"{printable(record['file'])}: guest {guest['name']}: {guest['about']}", HEADING)
    for vcpu in record["vcpus"]:
        yield entry(f"vCPU {vcpu['index']}", _vcpu(vcpu))
    yield entry("size", f"{record['size']} bytes, sha256 {record['sha256'][:16]}…")
    yield entry("saves", f"{record['tries']} until the state was met")
    yield from _versions(record["versions"])


def _vcpu(vcpu: Mapping[str, Any]) -> str:
    level = "in SMM" if vcpu["smm"] else "in L2" if vcpu["guest_mode"] else "in L1"
    parts = [level] if vcpu["gif"] is None else [level, f"GIF {int(vcpu['gif'])}"]
    if vcpu["flags"]:
        parts.append(f"nested flags {vcpu['flags']}")
    return ", ".join(parts)


def _versions(versions: Mapping[str, str]) -> Iterable[Text]:
    for name, version in versions.items():
        yield entry(name, version)


def guest_table(guests: Sequence[Guest]) -> Iterable[Text]:
    """The guests by name."""
    yield from columns([(guest.name, guest.about) for guest in guests])


def restore_report(
    path: str, outcome: Outcome, versions: Mapping[str, str], why: Sequence[Finding]
) -> Iterable[Text]:
    """What became of a restore, and which rules explain it."""
    style = HEADING if outcome.good else STYLES[Severity.ERROR]
    yield Text(f"{printable(path)}: {outcome.verdict.value}", style)
    yield entry("reason", outcome.reason)
    if outcome.guest is not None:
        yield entry("guest", outcome.guest)
    yield from _versions(versions)
    if outcome.good:
        return
    yield Text("  rules that apply here:" if why else "  no rule of this project explains it")
    for finding in why:
        line = Text(f"    {printable(finding.message)}").append(f" ({finding.rule})", FAINT)
        yield line
        yield Text(f"      do: {finding.do}", FAINT)
