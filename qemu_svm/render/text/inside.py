"""The report of ``inside``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text

from qemu_svm.inside.looking import InsideLook, State, VcpuLook
from qemu_svm.inside.view import Inside
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, KEY, columns
from qemu_svm.render.text.observed import observed
from qemu_svm.render.text.steps import BAD, change

_NUMBERS = (
    *("rip", "rsp", "rax", "rflags", "cr0", "cr2", "cr3", "cr4", "efer", "dr6", "dr7", "cpl"),
)
_SEGMENTS = ("cs", "ss", "ds", "es", "gdtr", "idtr")
_CONTROL = ("exit_code", "exit_info_1", "exit_info_2", "event_inj", "int_ctl", "int_state", "asid")
_GPRS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
    "rip",
)
_NESTED = ("vmcb12_gpa", "last_vmcb12_gpa", "run_pending", "initialized", "vm_hsave_pa")
_CACHES = (("nested.save", "what VMRUN checked"), ("nested.ctl", "what L1 asked for L2"))
_RESTLESS = frozenset({"exits", "cpu", "mode", "requests", "arch.regs_avail", "arch.regs_dirty"})
_STATES = {
    State.STOPPED: "stopped while it was read",
    State.RUNNING: "in the guest while it was read: the values are those of the last exit",
    State.CHANGING: "running: it changed in each of several reads, so values may not fit together",
}
_NO_ADDRESS = (1 << 64) - 1


def render(result: InsideLook, *, verbose: bool = False, changes: bool = False) -> Iterable[Text]:
    """Return every vCPU: who runs, L1's and L2's registers, both caches.

    :param verbose: every member by its name.
    :param changes: only what differs from the look before.
    """
    count = len(result.vcpus)
    name = f" ({printable(result.name)})" if result.name else ""
    vcpus = f"{count} vCPU{'' if count == 1 else 's'}"
    if not changes:
        yield Text(
            f"process {result.pid}{name}: {vcpus}, Linux {printable(result.kernel)}", HEADING
        )
    for vcpu in result.vcpus:
        if changes:
            yield from _changes(result.number, vcpu, verbose=verbose)
            continue
        yield Text()
        yield _heading(vcpu)
        if vcpu.values:
            yield from _all(vcpu.values) if verbose else _parts(vcpu.values)


def _heading(vcpu: VcpuLook) -> Text:
    line = Text(vcpu.label, HEADING)
    if vcpu.state is State.GONE:
        return line.append(f": {printable(vcpu.gone or 'gone')}", BAD)
    seen = vcpu.values
    where = f" ({printable(str(seen['current']))} is current)" if "current" in seen else ""
    words = [f"{vcpu.guest}{where}", _STATES[vcpu.state]]
    if seen.get("smm"):
        words.insert(1, "in SMM")
    if seen.get("nested.run_pending"):
        words.insert(1, "VMRUN is done, L2 was not entered yet")
    if not seen.get("gif", 1):
        words.insert(1, "GIF is clear")
    return line.append(f": {', '.join(words)}", "")


def _parts(seen: Inside) -> Iterator[Text]:
    l1, l2 = _vmcbs(seen)
    yield Text("  registers out of the VMCBs", KEY)
    rows: list[list[str | Text]] = []
    for name in _NUMBERS:
        cells = [_cell(seen, f"{vmcb}.save.{name}") for vmcb in (l1, l2)]
        if any(cells):
            rows.append([f"  {name}", *cells])
    for name in _CONTROL:
        cells = [_cell(seen, f"{vmcb}.control.{name}") for vmcb in (l1, l2)]
        if any(cells):
            rows.append([f"  {name}", *cells])
    yield from columns(rows, ("", f"L1: {l1}", f"L2: {l2}" if _has(seen, l2) else ""))
    rows = []
    for name in _SEGMENTS:
        for whose, vmcb in (("L1", l1), ("L2", l2)):
            if cell := _cell(seen, f"{vmcb}.save.{name}"):
                rows.append([f"  {name}", whose, cell])
    yield from columns(rows)
    running = "L2's" if seen.get("guest_mode") else "L1's"
    yield Text(f"  registers that KVM keeps (vcpu->arch): {running}", KEY)
    yield from columns(list(_paired([
        (name, observed(name, seen[f"arch.{name}"])) for name in _GPRS if f"arch.{name}" in seen
    ])))  # fmt: skip
    yield Text("  svm->nested", KEY)
    rows = []
    for name in _NESTED:
        if f"nested.{name}" in seen:
            rows.append([f"  {name}", _cell(seen, f"nested.{name}")])
    yield from columns(rows)
    for cache, words in _CACHES:
        yield from _cache(seen, cache, words)


def _vmcbs(seen: Inside) -> tuple[str, str]:
    # Names of the VMCBs that have L1's and L2's registers.
    if "current" in seen:
        return "vmcb01", "vmcb02"
    return ("hsave", "vmcb01") if seen.get("guest_mode") else ("vmcb01", "hsave")


def _has(seen: Inside, vmcb: str) -> bool:
    return any(name.startswith(f"{vmcb}.") for name in seen)


def _cell(seen: Inside, name: str) -> str:
    if name not in seen:
        return ""
    value = seen[name]
    words = observed(name, value)
    if name.endswith(".exit_code"):
        return f"{words} {exit_name(value)}"
    if name.endswith("vmcb12_gpa") and value == _NO_ADDRESS:
        return f"{words} (none)"
    return words


def _paired(found: list[tuple[str, str]]) -> Iterator[list[str | Text]]:
    # Two registers on a line.
    for first in range(0, len(found), 2):
        cells = [cell for pair in found[first : first + 2] for cell in pair]
        yield [f"  {cells[0]}", *cells[1:]]


def _cache(seen: Inside, cache: str, words: str) -> Iterator[Text]:
    found = {name: value for name, value in seen.items() if name.startswith(f"{cache}.")}
    if not found:
        return
    full = {name: value for name, value in found.items() if _any(value)}
    if not full:
        yield Text(f"  {cache} is empty", KEY)
        return
    yield Text(f"  {cache}: ", KEY).append(words, FAINT)
    yield from columns([[f"  {name.removeprefix(cache + '.')}", _cell(seen, name)]
                        for name in full])  # fmt: skip


def _any(value: Any) -> bool:
    return any(value) if isinstance(value, list) else bool(value)


def _all(seen: Inside) -> Iterator[Text]:
    yield from columns([[name, _cell(seen, name)] for name in seen])


def _changes(number: int, vcpu: VcpuLook, *, verbose: bool) -> Iterator[Text]:
    names = [one for one in vcpu.changed if verbose or one not in _RESTLESS]
    if vcpu.state is not State.GONE and not names:
        return
    yield Text(f"look {number}: ", FAINT).append_text(_heading(vcpu))
    yield from columns([
        [name, change(_cell(vcpu.values, name) or "absent",
                      _cell(vcpu.before, name) or None, changed=True)]
        for name in names
    ])  # fmt: skip
