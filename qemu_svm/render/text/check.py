"""The report of ``check FILE``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from qemu_svm.findings.check import summary
from qemu_svm.findings.results import CheckReport
from qemu_svm.model.profiles import ranges
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, STYLES, columns, stream_heading
from qemu_svm.rules import Severity

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
    for finding in sorted(result.findings, key=lambda f: _ORDER[f.severity]):
        line = Text("  ").append(finding.severity.value, STYLES[finding.severity])
        line.append(f" {finding.rule}", HEADING)
        if finding.offset is not None:
            line.append(f" at {finding.offset:#x}")
        yield line.append(f": {printable(finding.message)}")
        if finding.kernels:
            yield Text(f"    kernels: {ranges(finding.kernels)}", FAINT)
        yield Text(f"    do: {finding.do}", FAINT)
    if verbose:
        yield from _kernels(result)


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
