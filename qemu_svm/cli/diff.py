"""``svmstream diff A B``."""

from __future__ import annotations

import click

from qemu_svm.cli import EXIT_FINDINGS, common


@click.command(
    "diff",
    epilog="Examples: svmstream diff before.bin after.bin; svmstream diff a.bin b.bin --mask "
    "'section:mc146818rtc' --mask '*.rcx'; svmstream diff --list-masks",
)
@click.argument("a", metavar="A", required=False)
@click.argument("b", metavar="B", required=False)
@common.json_option
@click.option("--all", "all_differences", is_flag=True, help="Show masked differences too.")
@click.option("--mask", "patterns", multiple=True, metavar="PATTERN",
              help="A path that does not count, with all below it; * is any text.")  # fmt: skip
@click.option("--no-masks", is_flag=True, help="Only the masks of --mask, if any.")
@click.option("--list-masks", is_flag=True, help="List the built-in masks with their reasons.")
def command(
    *,
    a: str | None,
    b: str | None,
    as_json: bool,
    all_differences: bool,
    patterns: tuple[str, ...],
    no_masks: bool,
    list_masks: bool,
) -> int:
    """Compare the streams A and B field by field.

    Configuration, RAM blocks, sections, vCPUs, nested state and devices, by
    name and not by place. Fields known to differ between kernels, and clocks,
    are masked: counted, and listed in one line for each reason.
    """
    from qemu_svm.findings.masks import DEFAULT, user_masks

    masks = user_masks(patterns) + (() if no_masks else DEFAULT)
    if list_masks:
        return _list(as_json=as_json)
    if a is None or b is None:
        raise click.UsageError(f"Missing argument '{'A' if a is None else 'B'}'.")
    if a == b == "-":
        raise click.UsageError("only one of A and B can be standard input")
    from qemu_svm.findings.diff import compare

    with common.opened(a) as first, common.opened(b) as second:
        found = compare(first, second, masks)
        if as_json:
            from qemu_svm.render.diff_document import document

            common.print_json(document(first, second, found))
        else:
            from qemu_svm.render.diff_text import report

            common.print_lines(report(first, second, found, all_differences=all_differences))
        common.warn(first)
        common.warn(second)
        unreadable = common.status(first, []) or common.status(second, [])
    if unreadable:
        return unreadable
    return EXIT_FINDINGS if found.counting else 0


def _list(*, as_json: bool) -> int:
    from qemu_svm.findings.masks import DEFAULT

    if as_json:
        from qemu_svm.render.diff_document import mask_list

        common.print_json(mask_list(DEFAULT))
    else:
        from qemu_svm.render.diff_text import mask_table

        common.print_lines(mask_table([(m.id, m.pattern, m.reason, m.source) for m in DEFAULT]))
    return 0
