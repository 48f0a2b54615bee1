"""What a core has and lacks, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qemu_svm.memory.core import Plan
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import size_words


def report(path: str, plan: Plan, commands: Sequence[str]) -> Iterator[str]:
    """Lines about a core that was written."""
    loads = len(plan.loads if plan.form == "crash" else plan.virtual)
    level = plan.level.replace("l", "L", 1)
    yield f"{printable(path)}: core of {level} for {plan.form}, {size_words(plan.size)}"
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
    for command in commands:
        yield f"  open with   {printable(command)}"
