"""The report of ``mem core``."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.memory.reports import CoreReport
from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words


def render(result: CoreReport) -> Iterator[str]:
    """Return what a core has and lacks, and the commands that open it."""
    plan = result.plan
    loads = len(plan.loads if plan.form == "crash" else plan.virtual)
    level = plan.level.replace("l", "L", 1)
    yield f"{printable(result.path)}: core of {level} for {plan.form}, {size_words(plan.size)}"
    counts = plan.counts
    yield (f"  memory      {loads} loads; pages: {counts['data']} with data, {counts['zero']} zero")
    vcpus = ", ".join(str(one.vcpu) for one in plan.registers)
    sources = sorted({source for one in plan.registers for source in one.sources})
    yield f"  registers   vCPU {vcpus}: {'; '.join(sources)}" if vcpus else "  registers   none"
    note = plan.vmcoreinfo
    if note is not None:
        offset = note.kaslr_offset
        shift = "" if offset is None else f", KASLR offset {offset:#x}"
        where = f" at {note.address:#x}" if note.address else ""
        yield f"  VMCOREINFO{where}: {printable(note.release)}{shift}"
    for words in plan.missing:
        yield f"  missing     {printable(words)}"
    for command in result.commands:
        yield f"  open with   {printable(command)}"
