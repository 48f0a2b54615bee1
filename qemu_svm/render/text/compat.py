"""The report of ``compat``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.findings.results import CompatReport
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, STYLES, entry, stream_heading
from qemu_svm.rules import Severity

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


def render(result: CompatReport, *, verbose: bool) -> Iterable[Text]:
    """Return the verdict, the reasons, and what could not be compared.

    :param verbose: also findings that cannot be decided from the dump alone.
    """
    machine, found, target = result.machine, result.compatibility, printable(result.target)
    stream = machine.stream
    yield stream_heading(machine)
    errors = sum(one.severity is Severity.ERROR for one in found.findings)
    if errors:
        reasons = "one reason" if errors == 1 else f"{errors} reasons"
        verdict = f"{target} would refuse it: {reasons}"
    else:
        verdict = f"no reason found for {target} to refuse it"
    yield Text(f"  {verdict}")
    shown = [one for one in found.findings if verbose or one.severity is not Severity.INFO]
    if shown:
        yield Text()
    for one in sorted(shown, key=lambda one: _ORDER[one.severity]):
        line = Text("  ").append(one.severity.value, STYLES[one.severity])
        line.append(f" {printable(one.path)}", HEADING)
        if one.offset is not None:
            line.append(f" at {one.offset:#x}")
        yield line.append(f": {printable(one.message)}").append(f" ({one.rule})", FAINT)
        yield Text(f"    do: {printable(one.do)}", FAINT)
    yield Text()
    yield entry("compared", f"{len(found.compared)} sections, {found.fields} fields")
    if stream.description is None:
        yield entry("", "the stream has no description: only names and versions were compared")
    yield entry("not in dump", ", ".join(found.unlisted) or "none")
    hidden = len(found.findings) - len(shown)
    if hidden:
        yield entry("", f"{hidden} more that cannot be decided without the source's QEMU (-v)")
