"""The report of ``check FILE``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from qemu_svm.findings.advisories import COMMON
from qemu_svm.findings.check import summary
from qemu_svm.findings.results import CheckReport
from qemu_svm.findings.rules import RULES
from qemu_svm.model.kernels.table import BY_ID
from qemu_svm.model.profiles import RELEASED, ranges
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, STYLES, columns, stream_heading
from qemu_svm.rules import Finding, Severity

_ORDER = {severity: place for place, severity in enumerate(Severity)}


def render(result: CheckReport, *, verbose: bool) -> Iterable[Text]:
    """Return the verdict for each vCPU, alike ones together, then the findings, worst first.

    :param verbose: also the verdict of every kernel with its reasons.
    """
    machine = result.machine
    yield stream_heading(machine)
    if not result.verdicts:
        yield Text("  no vCPU with SVM state to judge")
    groups: dict[str, list[int]] = {}
    for index in result.verdicts:
        vcpu = next(vcpu for vcpu in machine.vcpus if vcpu.index == index)
        mode = "in guest mode" if vcpu.guest_mode else "not in guest mode"
        groups.setdefault(f"({mode}): {summary(result.report, index)}", []).append(index)
    for words, numbers in groups.items():
        yield Text(f"  vCPU{'s' * (len(numbers) > 1)} {_spans(numbers)} {words}")
    yield Text()
    if not machine.stream.complete:
        words = "Findings" if result.findings else "No findings"
        yield Text(f"{words} in the part that can be read; the stream is not complete.")
    elif not result.findings:
        yield Text("No findings.")
    common = [one for one in result.findings if one.rule in COMMON and _is_info(one)]
    own = [one for one in result.findings if one not in common]
    for finding in sorted(own, key=lambda f: _ORDER[f.severity]):
        line = Text("  ").append(finding.severity.value, STYLES[finding.severity])
        line.append(f" {finding.rule}", HEADING)
        if finding.offset is not None:
            line.append(f" at {finding.offset:#x}")
        yield line.append(f": {printable(finding.message)}")
        if finding.kernels:
            yield Text(f"    kernels: {_concerned(finding)}", FAINT)
        yield Text(f"    do: {finding.do}", FAINT)
    if common:
        yield from _of_any_such_stream(common)
    if verbose:
        yield from _kernels(result)


def _concerned(finding: Finding) -> str:
    # A row may begin without a fix and end with it: the fix is told, not the rows.
    change = BY_ID.get(RULES[finding.rule].change) if finding.rule in RULES else None
    if change is None or not set(finding.kernels) <= set(RELEASED) or len(finding.kernels) == 1:
        return ranges(finding.kernels)
    since = f"{change.broken[0]} and later" if change.broken else "all"
    return f"{since} before {change.fixed_in}"


def _is_info(finding: Finding) -> bool:
    return finding.severity is Severity.INFO


def _of_any_such_stream(findings: Sequence[Finding]) -> Iterable[Text]:
    # They tell about kernels, not about this stream: a line each.
    yield Text("  info: bugs of these kernels that any such L1 meets (check --explain ID)")
    rows = {
        one.rule: [one.rule, one.message.partition(": ")[2].partition(":")[0], _concerned(one)]
        for one in findings
    }
    yield from columns(list(rows.values()), ("rule", "when", "kernels"))


def _kernels(result: CheckReport) -> Iterable[Text]:
    for index, verdicts in result.verdicts.items():
        yield Text()
        yield Text(f"vCPU {index}, kernel by kernel", HEADING)
        rows = [[ranges([name]), one.verdict.value, " ".join(one.lines)]
                for name, one in verdicts.items()]  # fmt: skip
        yield from columns(rows, ("kernel", "verdict", "why"))


def _spans(numbers: Sequence[int]) -> str:
    # 0-3, 7
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
