"""``svmstream check FILE``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options
from qemu_svm.cli.destination import chosen, destination_options
from qemu_svm.cli.output import print_json, show
from qemu_svm.cli.status import EXIT_FINDINGS, report_damage, report_failure
from qemu_svm.cli.streams import opened, opened_saved
from qemu_svm.cli.verbs import verb
from qemu_svm.errors import PlanError, SvmStreamError

if TYPE_CHECKING:
    from qemu_svm.findings.results import CheckReport
    from qemu_svm.render.json.check_several import Unreadable


@verb(
    "check",
    "svmstream check dump.bin",
    "svmstream check dump.bin --kernel 5.10 --kernel 6.1 --qemu 7.2",
    "svmstream check dump.bin --from 6.1.100 --to 6.12.118 --cpu EPYC,+svm",
    "svmstream check rec.jsonl --saved dump.bin",
    "svmstream check --explain SV-03",
)
@click.argument("files", metavar="FILE...", nargs=-1)
@options.json_option
@options.limit_option
@options.state_options
@options.saved_option
@options.description_option
@options.page_size_option
@options.channel_option
@destination_options
@click.option("--ram", is_flag=True,
              help="Look into guest memory for known bugs, however large the stream is.",
              )  # fmt: skip
@options.fail_on_option()
@click.option("-v", "--verbose", is_flag=True, help="Show the verdict of every kernel.")
@click.option("--rules", "list_rules", is_flag=True, help="List all rules.")
@click.option("--explain", "word", metavar="ID",
              help="Explain a rule, a CVE number or a commit of KVM.")  # fmt: skip
def command(
    *,
    files: tuple[str, ...],
    as_json: bool,
    lender: str | None,
    channels: tuple[str, ...],
    kernels: tuple[str, ...],
    destination: str | None,
    source: str | None,
    qemu_version: str | None,
    npt: str,
    cpu: str | None,
    maxphyaddr: int,
    ram: bool,
    saved: str | None,
    verbose: bool,
    list_rules: bool,
    word: str | None,
) -> int:
    """Check which kernels would accept the nested state in each stream FILE.

    Restores the stream in a model of every kernel, in QEMU's order, and looks
    for parts that contradict each other and for known bugs. Of several files each
    is judged, whatever the others are; the exit status is the worst of them.
    FILE may be state that is no stream, or a recording (docs/state.md).
    """
    if list_rules or word:
        from qemu_svm.findings.rules import all_rules, explained

        show(explained(word) if word else all_rules(), as_json=as_json)
        return 0
    if not files:
        raise click.UsageError("Missing argument 'FILE'.")
    kernels = chosen(kernels, destination)
    if files.count("-") > 1:
        raise click.UsageError("only one FILE can be standard input")
    if channels and len(files) > 1:
        raise click.UsageError("--channel is for a single FILE")

    def judged(file: str) -> tuple[CheckReport, int]:
        with (
            opened_saved(saved) as original,
            opened(file, channels=channels, description=lender) as dump,
        ):
            report = dump.check(kernels, source=source, qemu=qemu_version, npt=npt == "on",
                                maxphyaddr=maxphyaddr, cpu=cpu, ram=ram,
                                saved=original)  # fmt: skip
            if not as_json:
                show(report, as_json=False, verbose=verbose)
            unreadable = report_damage(dump)
        found = options.fails(one.severity for one in report.findings)
        return report, unreadable or (EXIT_FINDINGS if found else 0)

    if len(files) > 1:
        return _several(files, judged, as_json=as_json)
    report, status = judged(files[0])
    if as_json:
        show(report, as_json=True)
    return status


def _several(
    files: Sequence[str], judged: Callable[[str], tuple[CheckReport, int]], *, as_json: bool
) -> int:
    # A file that cannot be read does not stop the others.
    from qemu_svm.render.json import check_several

    worst = 0

    def results() -> Iterator[CheckReport | Unreadable]:
        nonlocal worst
        for file in files:
            try:
                report, status = judged(file)
            except PlanError:
                raise  # of the options: it is the same for every file
            except SvmStreamError as error:
                status = report_failure(error)
                yield check_several.Unreadable(file, error)
            else:
                yield report
                if not as_json and file != files[-1]:
                    click.echo()
            worst = max(worst, status)

    if as_json:
        print_json(check_several.render(results()), name="check_several")
    else:
        for _one in results():
            pass  # it is printed
    return worst
