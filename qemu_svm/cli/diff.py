"""``svmstream diff A B``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import EXIT_FINDINGS, EXIT_UNREADABLE, common, output

if TYPE_CHECKING:
    from qemu_svm.findings.masks import Mask
    from qemu_svm.findings.ram_diff import RamDiff
    from qemu_svm.machine import Machine


@click.command(
    "diff",
    epilog="Examples: svmstream diff before.bin after.bin; svmstream diff a.bin b.bin --mask "
    "'section:mc146818rtc' --mask '*.rcx'; svmstream diff a.bin b.bin --ram; "
    "svmstream diff --list-masks",
)
@click.argument("a", metavar="A", required=False)
@click.argument("b", metavar="B", required=False)
@common.json_option
@common.limit_option
@click.option("--all", "all_differences", is_flag=True, help="Show masked differences too.")
@click.option("--mask", "patterns", multiple=True, metavar="PATTERN",
              help="A path that does not count, with all below it; * is any text.")  # fmt: skip
@click.option("--no-masks", is_flag=True, help="Only the masks of --mask, if any.")
@click.option("--ram", is_flag=True, help="Compare RAM too, page by page.")
@click.option("--channel-a", "channels_a", multiple=True, metavar="FILE",
              help="A multifd channel of A, for --ram.")  # fmt: skip
@click.option("--channel-b", "channels_b", multiple=True, metavar="FILE",
              help="A multifd channel of B, for --ram.")  # fmt: skip
@click.option("--list-masks", is_flag=True, help="List the built-in masks with their reasons.")
def command(
    *,
    a: str | None,
    b: str | None,
    as_json: bool,
    all_differences: bool,
    patterns: tuple[str, ...],
    no_masks: bool,
    ram: bool,
    channels_a: tuple[str, ...],
    channels_b: tuple[str, ...],
    list_masks: bool,
) -> int:
    """Compare the streams A and B field by field.

    Configuration, RAM blocks, sections, vCPUs, nested state and devices, by
    name and not by place. Fields known to differ between kernels, and clocks,
    are masked: counted, and listed in one line for each reason.  --ram compares
    what the pages hold at the end, however they were sent.
    """
    from qemu_svm.findings.masks import DEFAULT, user_masks

    masks = user_masks(patterns) + (() if no_masks else DEFAULT)
    if list_masks:
        return _list(as_json=as_json)
    if a is None or b is None:
        raise click.UsageError(f"Missing argument '{'A' if a is None else 'B'}'.")
    if a == b == "-":
        raise click.UsageError("only one of A and B can be standard input")
    if (channels_a or channels_b) and not ram:
        raise click.UsageError("--channel-a and --channel-b are for --ram")
    from qemu_svm.findings.diff import compare
    from qemu_svm.findings.results import DiffReport

    with common.opened(a) as first, common.opened(b) as second:
        found = compare(first, second, masks)
        pages = None
        if ram:
            pages, unreadable = compare_pages(first, second, (channels_a, channels_b), masks)
        else:
            unreadable = any([common.told(first), common.told(second)])
        report = DiffReport(first, second, found, pages)
        output.show(report, as_json=as_json, all_differences=all_differences)
    if unreadable:
        return EXIT_UNREADABLE
    return 0 if report.same else EXIT_FINDINGS


def compare_pages(
    a: Machine, b: Machine, channels: tuple[Sequence[str], Sequence[str]], masks: Sequence[Mask]
) -> tuple[RamDiff, bool]:
    """Compare RAM; also whether something was wrong with one of the streams, which is told."""
    from qemu_svm.cli.ram import opened_ram, tell
    from qemu_svm.findings.ram_diff import compare_ram

    with opened_ram(a.stream, channels[0]) as ours, opened_ram(b.stream, channels[1]) as theirs:
        whole = sum(theirs.pages_of(number) for number in range(len(theirs.entries)))
        found = compare_ram(ours, theirs, masks, common.progress(whole, "of the pages compared"))
        told = [
            tell(machine.stream, ram, machine.problems) for machine, ram in ((a, ours), (b, theirs))
        ]
    return found, any(told) or bool(found.problems)


def _list(*, as_json: bool) -> int:
    from qemu_svm.findings.masks import DEFAULT
    from qemu_svm.findings.results import MaskList

    output.show(MaskList(DEFAULT), as_json=as_json)
    return 0
