"""Printing: results as text or JSON, by the renderers of their verb."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import click

from qemu_svm.cli import options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from qemu_svm.results import Result

_PIECES = 10_000
"""Pieces of a JSON document that are written at once."""


def show(result: Result, *, as_json: bool, indent: int | None = 1, **options_: Any) -> None:
    """Print a result, unless ``--quiet`` was given.

    :param as_json: as one JSON document, else as text.
    :param indent: of JSON; None for a document on one line.
    :param options_: of the text; see ``render`` in ``render/text/VERB``.
    """
    if as_json:
        print_json(result.to_json(), indent, name=result.verb)
    else:
        renderer = import_module(f"qemu_svm.render.text.{result.verb}")
        print_lines(renderer.render(result, **options_))


def print_json(document: dict[str, Any], indent: int | None = 1, *, name: str = "") -> None:
    """Print a document; ASCII only, so nothing in it can reach a terminal raw.

    :param name: of its module in ``render/json``; ``--jsonl`` and ``--fields`` print its rows.
    """
    form = options.form()
    if name and (form.jsonl or form.fields):
        from qemu_svm.cli import rows

        rows.print_rows(document, name, form)
        return
    if options.quiet():
        return
    options.note_output()
    if indent is None:
        click.echo(json.dumps(document))
        return
    # Piece by piece, so that there is no second copy of all of it.
    pieces = json.JSONEncoder(indent=indent).iterencode(document)
    while text := "".join(islice(pieces, _PIECES)):
        click.echo(text, nl=False)
    click.echo()


def print_lines(lines: Iterable[Text | str]) -> None:
    """Print a report.

    On a terminal lines are wrapped to its width, and a report longer than the screen is
    shown by a pager; in a pipe neither.

    :param lines: plain strings are never wrapped, and have nothing to escape.
    """
    if options.quiet():
        for _line in lines:
            pass  # the exit status may depend on what is found on the way
        return
    if not sys.stdout.isatty():
        for line in _printed(lines, wrap=False):
            click.echo(line, color=True)
        return
    printed = _printed(lines, wrap=True)
    if not sys.stdin.isatty():
        first: list[str] = []
    else:
        first, rows = [], 0
        from shutil import get_terminal_size

        height = get_terminal_size().lines
        for line in printed:
            first.append(line)
            rows += 1 + line.count("\n")
            if rows >= height:
                os.environ.setdefault("LESS", "FRX")
                newline = (f"{one}\n" for one in chain(first, printed))
                click.echo_via_pager(newline, color=options.color() != "never")
                return
    for line in chain(first, printed):
        click.echo(line, color=True)


def _printed(lines: Iterable[Text | str], *, wrap: bool) -> Iterator[str]:
    # Styled text as a terminal is sent it, one or more rows a line.
    out: Console | None = None
    plain = not wrap and options.color() != "always"
    for line in lines:
        if isinstance(line, str):
            yield line
            continue
        if plain:
            yield line.plain
            continue
        if out is None:
            from qemu_svm.render.text.base import console

            out = console(options.color())
        if wrap or out.color_system is not None or "\t" in line.plain:
            yield _row(out, line, wrap=wrap)
        else:
            yield line.plain  # the same, without the way through the console


def _row(out: Console, line: Text, *, wrap: bool) -> str:
    from qemu_svm.render.text.base import hanging

    with out.capture() as captured:
        for row in hanging(out, line) if wrap else (line,):
            out.print(row, soft_wrap=True)
    return captured.get().removesuffix("\n")
