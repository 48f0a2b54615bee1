"""The report of ``lab patch``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.text import Text

from qemu_svm.lab.trial.differ import IOCTLS, Change, Difference
from qemu_svm.lab.trial.sides import Crash
from qemu_svm.lab.trial.trial import Trial
from qemu_svm.model.observed import comparable
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING
from qemu_svm.render.text.observed import observed
from qemu_svm.render.text.steps import BAD, INDENT
from qemu_svm.replay.compare import INSIDE

_SHOWN = 12
_OF = "'s"
_GROUPS = {
    "errno": "the errno of every ioctl",
    "run": "how every KVM_RUN ends",
    "nested": "flags and address of the nested state",
    "ctl": "L1's control area",
    "l1": "L1's registers",
    "shared": "the blob's other fields",
    "sregs": "SREGS",
    "regs": "REGS",
    "msr": "MSRs",
    "smm": "SMM",
    "shadow": "the interrupt shadow",
    "vmcb12": "what L1 finds in vmcb12",
    "gif": "GIF",
    "hflags": "hflags",
}


def render(result: Trial, *, verbose: bool) -> Iterable[Text]:
    """Return what was built, what differs, and what does not.

    :param verbose: all changes of a step.
    """
    patch, module = result.patch, result.module
    beside = f", beside {printable(result.kernel)}" if result.other else ""
    kernel = printable(result.other or result.kernel)
    yield Text(f"{printable(result.path)} on Linux {kernel}{beside}", HEADING)
    if patch is not None:
        yield Text(f"  changes {', '.join(patch.files)}")
        if patch.skipped:
            yield Text(f"  not built: {printable(', '.join(patch.skipped))}", FAINT)
    if module.files:
        files = " and ".join(sorted(module.files, reverse=True))
        built = f"built: {files}, {printable(module.source)}" if module.source else f"uses {files}"
        yield Text(f"  {built}", FAINT)
    for words in module.remarks:
        yield Text(f"  {'patch: ' if patch else ''}{printable(words)}", "yellow")
    for words in module.warnings:
        yield Text(f"  compiler: {printable(words)}", "yellow")
    yield Text(
        f"  {result.guests} guest{'s' * (result.guests != 1)}, {result.plans} plans, "
        f"{result.sequences} random sequences, "
        f"{result.steps} ioctls and runs on each side, outside"
        + (" and inside" if result.inside else " only: a kernel does not say where its types are")
    )
    yield from _crashes(result)
    for warning in result.warnings:
        yield Text()
        where = ", ".join(one for one in (*warning.functions[:1], warning.place) if one)
        yield Text(f"the kernel with the patch warns (WARN) in {printable(where)}", BAD)
        yield Text(f"{INDENT}called by {printable(', '.join(warning.functions[1:5]))}", FAINT)
    for one in result.differences:
        yield Text()
        yield from _difference(one, verbose=verbose)
    yield Text()
    yield from _verdict(result)


def _crashes(result: Trial) -> Iterator[Text]:
    seen: dict[tuple[bool, str, bool], list[Crash]] = {}
    for crash in result.crashes:
        place = result.places.get(crash.words, crash.words) if crash.with_patch else crash.words
        seen.setdefault((crash.with_patch, place, crash.hung), []).append(crash)
    for (with_patch, place, hung), crashes in seen.items():
        first = min(crashes, key=lambda one: (one.step, len(one.plan)))
        side = "with the patch" if with_patch else "without the patch"
        yield Text()
        yield Text(
            f"in step {first.step}, {_ioctl(first.text, first.plan)}, the kernel {side} "
            f"{'hangs' if hung else 'crashes'}: {printable(first.words)}", BAD,
        )  # fmt: skip
        if place != first.words:
            yield Text(f"{INDENT}in {printable(place)}", BAD)
        yield Text(f"{INDENT}{printable(first.plan)}  ({_where(first.guest, len(crashes))})", FAINT)
    if result.stopped:
        yield Text(f"{INDENT}the plans after that were not performed", FAINT)


def _where(guest: str, plans: int) -> str:
    more = f", and {plans - 1} more plan{'s' * (plans > 2)}" if plans > 1 else ""
    return f"{printable(guest)}{more}"


def _until(plan: str, step: int) -> str:
    return ",".join(plan.split(",")[:step])


def _ioctl(text: str, plan: str = "") -> str:
    # :param plan: up to this step.
    if text == "run" and plan.endswith("run,run"):
        return "KVM_RUN, in which L1 executes VMRUN"
    name, _, settings = text.partition(":")
    return printable(IOCTLS.get(name, name) + (f" ({settings})" if settings else ""))


def _difference(one: Difference, *, verbose: bool) -> Iterator[Text]:
    yield Text(
        f"after step {one.step}, {_ioctl(one.text, _until(one.plan, one.step))}: {_sentence(one)}",
        BAD,
    )
    yield Text(f"{INDENT}{printable(one.plan)}  ({_where(one.guest, one.plans)})", FAINT)
    yield from _changes(one.changes, verbose=verbose)
    if one.shown is not None:
        ioctl = _ioctl(one.shown.text, one.shown.plan)
        yield Text(f"{INDENT}after step {one.shown.step}, {ioctl}, outside:", BAD)
        yield from _changes(one.shown.changes, verbose=verbose)


def _changes(changes: Sequence[Change], *, verbose: bool) -> Iterator[Text]:
    shown = changes if verbose else changes[:_SHOWN]
    for change in shown:
        yield Text(f"{INDENT}{_change(change)}")
    if len(shown) < len(changes):
        yield Text(f"{INDENT}{len(changes) - len(shown)} more (-v)", FAINT)


def _sentence(one: Difference) -> str:
    # What the step does with the patch, in a line.
    by_name = {change.name: change for change in one.changes}
    if "errno" in by_name:
        errno = by_name["errno"]
        return f"{_result(errno.with_patch)} with the patch, {_result(errno.without)} without"
    if "run" in by_name:
        run = by_name["run"]
        return (f"ends with {printable(str(run.with_patch))} with the patch, with "
                f"{printable(str(run.without))} without")  # fmt: skip
    if "end" in by_name:
        return "the plan does not end in the same way"
    outside = [change for change in one.changes if not change.is_inside]
    what = _holders(outside or one.changes)
    if outside:
        return f"{_seen_by(outside)} {what}"
    if one.shown is not None:
        return f"{what} in the kernel's memory; ioctls show it after step {one.shown.step}"
    until = f" until step {one.until[0]}, {_ioctl(one.until[1])}" if one.until is not None else ""
    return f"{what} in the kernel's memory only{until}; no ioctl shows it"


def _seen_by(changes: Sequence[Change]) -> str:
    own = [change.name.startswith("vmcb12.") for change in changes]
    return "L1 finds" if all(own) else "ioctls and L1 show" if any(own) else "ioctls show"


def _result(errno: str | None) -> str:
    return "succeeds" if errno is None else f"fails with {printable(errno)}"


def _holders(changes: Sequence[Change]) -> str:
    # nested.save with L1's cr3; l1.rip
    holders: dict[str, list[Change]] = {}
    for change in changes:
        holder, _, member = change.name.removeprefix(INSIDE).rpartition(".")
        holders.setdefault(holder or member, []).append(change)
    words = []
    for holder, several in list(holders.items())[:3]:
        owners = {change.owner for change in several if change.owner}
        if len(several) == 1 and not owners:
            words.append(several[0].name.removeprefix(INSIDE))
        elif len(owners) == 1:
            words.append(
                f"{holder} with registers of {next(iter(owners)).removesuffix(chr(39) + 's')}"
            )
        else:
            words.append(f"another {holder}")
    if len(holders) > 3:
        words.append(f"{len(holders) - 3} other parts")
    return ", ".join(printable(word) for word in words)


def _change(change: Change) -> str:
    name = change.name.removeprefix(INSIDE)
    whose = f", {change.owner}" if change.owner else ""
    return (
        f"{name}  without {_words(change.name, change.without)}, "
        f"with {_words(change.name, change.with_patch)}{whose}"
    )


def _words(name: str, value: Any) -> str:
    return "none" if value is None else observed(name, comparable(name, value))


def _verdict(result: Trial) -> Iterator[Text]:
    if result.good:
        yield Text("nothing differs: every errno, every answer, both VMCBs and the caches", "green")
        return
    if not result.crashes and not any(one.outside for one in result.differences):
        yield Text("errno and every answer of the ioctls are the same with the patch and without")
    if not result.stopped:
        yield from _same(result.same)
    places = {result.places.get(one.words, one.words) for one in result.crashes}
    count = len(result.differences) + len(places)
    count += len(result.warnings)
    yield Text(f"the patch changes what KVM does in {count} way{'s' * (count != 1)}", BAD)


def _same(same: Sequence[str]) -> Iterator[Text]:
    outside = [_GROUPS.get(one, one) for one in same if not one.startswith(INSIDE)]
    inside = [one.removeprefix(INSIDE) for one in same if one.startswith(INSIDE)]
    for words, names in (("does not differ", outside), ("nor inside", inside)):
        if names:
            yield Text(f"{words}: {printable(', '.join(names))}", "green")
