"""``svmstream survey PATH...``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.cluster import scheduler_option, workers
from qemu_svm.cli.destination import chosen, destination_options
from qemu_svm.cli.output import print_lines
from qemu_svm.cli.status import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_UNREADABLE, print_error
from qemu_svm.cli.verbs import verb
from qemu_svm.errors import OutputExists
from qemu_svm.rules import Severity

if TYPE_CHECKING:
    from qemu_svm.qmp.output import Output
    from qemu_svm.survey.row import Survey


def _table(_ctx: click.Context, _param: click.Parameter, path: str | None) -> str | None:
    from qemu_svm.render.tables import KINDS

    if path is not None and path.rpartition(".")[2] not in KINDS:
        raise click.BadParameter(f"the name ends in one of .{', .'.join(KINDS)}")
    return path


@verb(
    "survey",
    "svmstream survey /var/lib/libvirt/qemu/save --to 6.1.170",
    "svmstream survey captures/ --to 6.12.86 -o results.csv",
    "svmstream survey s3://bucket/saves/ --scheduler tcp://10.0.0.1:8786 --jsonl",
)
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option("--list", "list_file", metavar="FILE",
              help="Also the paths in FILE, one on a line; - for standard input.")  # fmt: skip
@destination_options
@click.option("-o", "--output", metavar="NEW", callback=_table,
              help="Write a table: NEW.csv, .sqlite, .parquet or .html.")  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Replace NEW.")
@options.json_option
@click.option("-j", "--processes", type=click.IntRange(1, 1024), metavar="N",
              help="Processes of this host.  [default: one for each processor]")  # fmt: skip
@scheduler_option
@options.limit_option
@options.fail_on_option("error")
def command(
    *,
    paths: tuple[str, ...],
    list_file: str | None,
    kernels: tuple[str, ...],
    destination: str | None,
    source: str | None,
    qemu_version: str | None,
    npt: str,
    cpu: str | None,
    maxphyaddr: int,
    output: str | None,
    force: bool,
    as_json: bool,
    processes: int | None,
    scheduler: str | None,
) -> int:
    """Judge many streams: who restores them, which rules stop how many.

    PATH is a file, a folder with all below it, a pattern, a qcow2 image with all its
    snapshots, or a URL that fsspec knows. The summary comes first, then a row for each
    stream, the worst first. With -o an interrupted survey is continued by the same command.
    """
    if not paths and list_file is None:
        raise click.UsageError("Missing argument 'PATH...'.")
    if processes and scheduler:
        raise click.UsageError("--processes is for this host, and --scheduler for a cluster")
    kernels = chosen(kernels, destination)
    from qemu_svm.qmp.output import Output
    from qemu_svm.survey.find import inputs, listed
    from qemu_svm.survey.row import Question
    from qemu_svm.survey.run import survey
    from qemu_svm.survey.store import Store
    from qemu_svm.work.items import Runner
    from qemu_svm.work.processes import Processes

    question = Question(kernels, qemu_version, source, npt == "on", cpu, maxphyaddr,
                        options.limits())  # fmt: skip
    question.check()

    def names() -> Iterator[str]:
        yield from inputs(paths)
        if list_file is not None:
            yield from inputs(listed(list_file))

    signals.interrupt_on_termination()
    with ExitStack() as stack:
        table = None
        if output is not None:  # before anything is read
            try:
                table = stack.enter_context(Output(output, replace=force))
            except OutputExists as error:
                raise click.UsageError(f"{error}; -f replaces it") from error
        store = stack.enter_context(Store(question, output and _partial(output)))
        runner: Runner = Processes(processes)
        if scheduler is not None:
            runner = stack.enter_context(workers(scheduler))
        shown = progress.rate()
        try:
            found = survey(names(), question, store, runner=runner, progress=shown,
                           folder=os.getcwd() if scheduler is not None else "")  # fmt: skip
        except KeyboardInterrupt:
            progress.clear()
            again = "the same command continues" if output else "with -o it could be continued"
            print_error(f"interrupted: {again}")
            return EXIT_INTERRUPTED
        progress.clear()
        if table is not None:
            _write(found, table)
        _print(found, as_json=as_json, rows=table is None)
        status = _status(found, paths)
        store.finish()
        return status


def _print(found: Survey, *, as_json: bool, rows: bool) -> None:
    from qemu_svm.cli.rows import print_rows
    from qemu_svm.render.json import survey_rows as as_document
    from qemu_svm.render.text import survey as as_text

    if options.quiet():
        return
    form = options.form()
    if form.jsonl or form.fields:
        print_rows({**as_document.head(found), "streams": found.rows()}, "survey", form)
    elif as_json:
        options.note_output()
        for piece in as_document.pieces(found):
            click.echo(piece, nl=False)
    else:
        print_lines(as_text.render(found, rows=rows))


def _partial(output: str) -> str:
    folder, name = os.path.split(output)
    return os.path.join(folder, f".{name}.part")


def _write(found: Survey, table: Output) -> None:
    from qemu_svm.qmp.output import writing
    from qemu_svm.render.tables import write

    with writing(table.path):
        write(found, table.path.rpartition(".")[2], table.temporary)
    table.commit()


def _status(found: Survey, paths: Sequence[str]) -> int:
    from qemu_svm.survey.row import State

    states = found.summary.states
    if states.get("unreadable") or states.get("incomplete"):
        return EXIT_UNREADABLE
    # What lies in a folder beside streams is no error; what was named is.
    other = states.get(State.NO_STREAM)
    if other and any(r["state"] == State.NO_STREAM and r["path"] in paths for r in found.rows()):
        return EXIT_UNREADABLE
    bad = any(states.get(one) for one in ("refused", "broken", "wrong"))
    severities = [Severity.ERROR] if bad else [Severity.WARNING] if states.get("warned") else []
    return EXIT_FINDINGS if options.fails(severities) else 0
