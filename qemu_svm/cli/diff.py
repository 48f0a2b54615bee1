"""``svmstream diff A B``."""

from __future__ import annotations

import click

from qemu_svm import api
from qemu_svm.cli import options, progress
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, EXIT_UNREADABLE, report_damage
from qemu_svm.cli.streams import opened
from qemu_svm.cli.verbs import verb


@verb(
    "diff",
    "svmstream diff before.bin after.bin",
    "svmstream diff a.bin b.bin --mask section:mc146818rtc --mask '*.rcx'",
    "svmstream diff a.bin b.bin --ram",
    "svmstream diff now.json dump.bin",
    "svmstream diff vmm.rec dump.bin --put 2",
    "svmstream diff --list-masks",
)
@click.argument("a", metavar="A", required=False)
@click.argument("b", metavar="B", required=False)
@options.json_option
@options.limit_option
@options.fail_on_option()
@options.description_option
@options.page_size_option
@click.option("-v", "--all", "all_differences", is_flag=True, help="Show masked differences too.")
@options.mask_option
@click.option("--no-masks", is_flag=True, help="Use only the masks given with --mask.")
@click.option("--ram", is_flag=True, help="Compare RAM too, page by page.")
@click.option("--channel-a", "channels_a", multiple=True, metavar="FILE",
              help="A multifd channel of A, for --ram.")  # fmt: skip
@click.option("--channel-b", "channels_b", multiple=True, metavar="FILE",
              help="A multifd channel of B, for --ram.")  # fmt: skip
@options.choice_options(of="Of a recording, A or B")
@click.option("--vm-b", metavar="N", type=click.IntRange(1), help="The VM of B, if not that of A.")
@click.option("--put-b", metavar="N", type=click.IntRange(1),
              help="The put of B, if not that of A: two puts of one recording.")  # fmt: skip
@click.option("--list-masks", is_flag=True, help="List the built-in masks with their reasons.")
def command(
    *,
    a: str | None,
    b: str | None,
    as_json: bool,
    all_differences: bool,
    patterns: tuple[str, ...],
    lender: str | None,
    no_masks: bool,
    ram: bool,
    channels_a: tuple[str, ...],
    channels_b: tuple[str, ...],
    put_b: int | None,
    vm_b: int | None,
    list_masks: bool,
) -> int:
    """Compare the streams A and B field by field.

    Configuration, RAM blocks, sections, vCPUs, nested state and devices are
    matched by name, not by offset. Fields known to differ between kernels, and
    clocks, are masked: counted, and listed on one line for each reason. --ram
    compares what each page finally contains, however it was sent.

    Either may be a file of `inside -o`: with a stream, what would be saved
    now is compared; two of them member by member. Either may be a recording:
    --put and --vm choose what is compared, and with --put-b it is two puts.
    """
    if list_masks:
        from qemu_svm.findings.masks import DEFAULT
        from qemu_svm.findings.results import MaskList

        show(MaskList(DEFAULT), as_json=as_json)
        return 0
    from qemu_svm.inside.file import is_kept

    if a is None or b is None:
        raise click.UsageError(f"Missing argument '{'A' if a is None else 'B'}'.")
    if a == b == "-":
        raise click.UsageError("only one of A and B can be standard input")
    kept = [path for path in (a, b) if is_kept(path)]
    if kept:
        if ram or channels_a or channels_b:
            raise click.UsageError(f"--ram is for two streams; {kept[0]} is a look of inside")
        return _inside(a, b, patterns, lender, as_json=as_json, all_differences=all_differences)
    if (channels_a or channels_b) and not ram:
        raise click.UsageError("--channel-a and --channel-b need --ram")
    chosen = _choices(a, b, options.Choice(put_b, vm_b))
    with (
        opened(a, channels=channels_a, description=lender, chosen=chosen[0]) as first,
        opened(b, channels=channels_b, description=lender, chosen=chosen[1]) as second,
    ):
        shown = progress.share(second.ram.page_count, "of the pages compared") if ram else None
        report = api.diff(first, second, mask=patterns, masks=not no_masks, ram=ram,
                          progress=shown)  # fmt: skip
        unreadable = any([report_damage(first), report_damage(second)])
        show(report, as_json=as_json, all_differences=all_differences)
    if unreadable or (report.pages is not None and report.pages.problems):
        return EXIT_UNREADABLE
    return EXIT_FINDINGS if not report.same and options.fails() else 0


def _choices(a: str, b: str, of_b: options.Choice) -> tuple[options.Choice, options.Choice]:
    # What is chosen is for the sides that are recordings.
    from qemu_svm.snapshots.open import is_recorded

    first = options.choice()
    if not any((*first, *of_b)):
        return first, of_b
    none = options.Choice()
    if a == b and a != "-":
        recorded = [is_recorded(a)] * 2
    else:
        recorded = [path == "-" or is_recorded(path) for path in (a, b)]
    if not any(recorded):
        raise click.UsageError("--put and --vm are for recordings, and neither A nor B is one")
    if any(of_b) and not recorded[1]:
        raise click.UsageError("--put-b and --vm-b are for a recording, and B is none")
    second = options.Choice(of_b.put or first.put, of_b.vm or first.vm)
    return first if recorded[0] else none, second if recorded[1] else none


def _inside(
    a: str,
    b: str,
    patterns: tuple[str, ...],
    lender: str | None,
    *,
    as_json: bool,
    all_differences: bool,
) -> int:
    from contextlib import ExitStack

    from qemu_svm.inside.file import is_kept
    from qemu_svm.inside.kept import read_kept

    with ExitStack() as stack:
        sides = [
            read_kept(path) if is_kept(path)
            else stack.enter_context(opened(path, description=lender))
            for path in (a, b)
        ]  # fmt: skip
        found = api.diff_inside(sides[0], sides[1], mask=patterns)
        unreadable = any(report_damage(one) for one in sides if isinstance(one, api.Dump))
        show(found, as_json=as_json, **({} if as_json else {"all_differences": all_differences}))
    if unreadable:
        return EXIT_UNREADABLE
    return EXIT_FINDINGS if not found.same and options.fails() else 0
